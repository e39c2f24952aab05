"""Importance weights of leaves and masks, on hand trees and against one trajectory at a time."""

import math

import numpy as np
import pytest
import torch

from tests.support_credit import build
from tests.support_policy import ragged_tree, tiny_llama
from tests.support_update import (
    Recorder,
    gradients_by_name,
    plain_model,
    row_logprobs,
    store_logprobs,
    unweighted,
    use_exact_norm,
    worst,
)
from treerl.config import (
    AdvantageSettings,
    LossSettings,
    Recipe,
    SamplerSettings,
    UpdateSettings,
)
from treerl.credit.assign import assign, assign_with_summary
from treerl.credit.importance import Importance
from treerl.credit.rows import Forest, training_rows
from treerl.engine.scores import comparable, credit_scores
from treerl.errors import UpdateError
from treerl.policy.pack import training_leaves
from treerl.policy.update import update_policy
from treerl.verifiers.verdict import Verdict

DR_GRPO = AdvantageSettings(estimator="dr_grpo")


def aggregation_tree():
    """p (2 tokens) with children a (1, right) and b (3), c (4) beside p."""
    shape = {"p": (2, {"a": (1, 1.0), "b": (3, 0.0)}), "c": (4, 0.0)}
    return build(shape, max_completion_length=8)


def weights_of(tree, names, values, **rule) -> Importance:
    column = np.zeros(len(tree.tokens))
    for name, logs in values.items():
        row = names[name]
        column[tree.nodes.start[row] : tree.nodes.stop[row]] = logs
    given = {"level": "sequence", "mask": False, "low": 0.0, "high": math.inf} | rule
    return Importance(log_weights=[column], **given)


def hand(**rule):
    """Credit and summary of the hand tree; log v: p (.1, .1), a .3, b (-.5, 0, .2), c .05 each."""
    tree, names = aggregation_tree()
    logs = {"p": [0.1, 0.1], "a": [0.3], "b": [-0.5, 0.0, 0.2], "c": [0.05] * 4}
    mode = rule.pop("mode", "token-mean")
    credits, summary = assign_with_summary(
        [tree], DR_GRPO, loss_agg_mode=mode, importance=weights_of(tree, names, logs, **rule)
    )
    at = {name: int(tree.nodes.start[names[name]]) for name in "pabc"}
    return credits[0], summary, at


def test_sequence_weights_of_the_hand_tree():
    credit, summary, at = hand()
    v = np.array([1.648721, 0.904837, 1.221403])
    a = np.array([2 / 3, -1 / 3, -1 / 3])
    found = (credit.positive - credit.negative) / credit.denominator
    assert found[at["p"]] == pytest.approx(0.066461, abs=1e-6)
    assert found[[at["a"], at["b"], at["c"]]] == pytest.approx(v * a / 12, abs=1e-6)
    assert credit.positive[at["p"]] == pytest.approx(v[0] * 2 / 3, abs=1e-6)
    assert credit.negative[at["p"]] == pytest.approx(v[1] / 3, abs=1e-6)
    assert summary.leaf_ess == pytest.approx(v.sum() ** 2 / (3 * (v**2).sum()), abs=1e-6)


def test_a_cut_weight_leaves_weight_and_denominator_as_they_were():
    credit, summary, at = hand(high=1.1)
    assert credit.positive[at["a"]] == pytest.approx(1.1 * 2 / 3)
    assert credit.negative[at["c"]] == pytest.approx(1.1 / 3)
    assert credit.weight[at["p"]] == 2
    assert credit.denominator == 12
    assert summary.rejected == 0


@pytest.mark.parametrize(
    ("mode", "denominator"),
    [("token-mean", 5.0), ("seq-mean-token-mean", 1.0), ("seq-mean-token-sum-norm", 8.0)],
)
def test_a_rejected_leaf_leaves_masses_and_denominator(mode, denominator):
    credit, summary, at = hand(mask=True, high=1.1, mode=mode)
    kept = 0.904837 / 3 * (0.2 if mode == "seq-mean-token-mean" else 1)
    assert credit.positive.tolist() == [0.0] * len(credit.positive)
    assert credit.negative[at["p"]] == pytest.approx(kept, abs=1e-6)
    assert credit.weight[at["c"]] == 0
    assert credit.denominator == denominator
    assert credit.n_rows == 1
    assert summary.rejected == pytest.approx(7 / 12)


def test_a_band_rejects_from_both_sides():
    credit, _, at = hand(mask=True, low=1.0, high=1.5)
    assert credit.weight[[at["p"], at["a"], at["b"], at["c"]]].tolist() == [0, 0, 0, 1]


def test_masked_tokens_leave_the_token_mean():
    tree, names = build({"a": (5, 1.0), "b": (1, 0.0)})
    logs = {"a": [0.2, -1.2, 0.9, -6.0, 0.4]}
    importance = weights_of(tree, names, logs, level="token", mask=True, low=0.5, high=2.0)
    (credit,) = assign([tree], DR_GRPO, loss_agg_mode="token-mean", importance=importance)
    start = int(tree.nodes.start[names["a"]])
    column = credit.positive[start : start + 5] / 0.5
    assert column == pytest.approx([math.exp(0.2), 0, 0, 0, math.exp(0.4)])
    assert credit.denominator == 2 + 1
    assert column.sum() / 2 == pytest.approx(1.356614, abs=1e-6)
    assert credit.weight[start : start + 5].tolist() == [1, 0, 0, 0, 1]


def test_a_product_over_a_long_row_does_not_overflow():
    tree, names = build({"a": (900, 1.0), "b": (1, 0.0)})
    importance = weights_of(tree, names, {"a": [1.0] * 900}, high=2.0)
    (credit,) = assign([tree], DR_GRPO, loss_agg_mode="token-mean", importance=importance)
    assert credit.positive.max() == pytest.approx(2 * 0.5)


# Against one trajectory at a time


def judged_trees():
    trees = [ragged_tree(1), ragged_tree(2)]
    for tree in trees:
        for which, leaf in enumerate(tree.leaves().tolist()):
            tree.judge(leaf, Verdict("scored", float(which % 2)))
    return trees


def trajectory_loss(model, trees, recipe, lp_old):
    """Row by row: weight or mask of its own tokens, PPO with dual clip, then the mean over what is left."""
    settings = recipe.loss
    low, high = settings.rollout_is_band
    lp, _ = row_logprobs(model, trees)
    parts, sizes, b = [], [], 0
    for tree in trees:
        leaves = training_leaves(tree)
        rewards = np.array([tree.nodes.reward[leaf] for leaf in leaves])
        for leaf, reward in zip(leaves, rewards, strict=True):
            path = tree.path_index(leaf)
            on = torch.from_numpy(tree.tokens.mask[path])
            a = float(reward - rewards.mean())
            sampled = torch.from_numpy(tree.tokens.logprob[path].astype(np.float64))
            mine, old = lp[b, : len(path)][on], lp_old[b, : len(path)][on]
            v = (old - sampled[on]).exp()
            if settings.rollout_is == "sequence":
                v = v.prod().expand(len(v))
            keep = torch.ones_like(v, dtype=torch.bool)
            if settings.rollout_is_mode == "mask":
                keep = (v >= low) & (v <= high)
            else:
                v = v.clamp(max=high)
            ratio = (mine - old).exp()
            clipped = ratio.clamp(1 - settings.clip_ratio_low, 1 + settings.clip_ratio_high)
            loss = torch.maximum(-a * ratio, -a * clipped)
            if a < 0:
                loss = loss.clamp(max=-a * settings.clip_ratio_c)
            parts.append((v * loss)[keep])
            sizes.append(int(keep.sum()))
            b += 1
    if settings.loss_agg_mode == "token-mean":
        return torch.cat(parts).sum() / sum(sizes)
    rows = [part.mean() for part in parts if len(part)]
    return torch.stack(rows).sum() / len(rows)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize(
    ("level", "how", "threshold"),
    [
        ("sequence", "truncate", 1.2),
        ("sequence", "mask", "0.7_1.6"),
        ("token", "mask", "0.8_1.3"),
        ("token", "truncate", 1.1),
    ],
)
def test_weights_on_packed_trees_equal_single_trajectories(
    monkeypatch, mode, level, how, threshold
):
    use_exact_norm(monkeypatch)
    policy = tiny_llama(torch.float64)
    trees = judged_trees()
    store_logprobs(policy, trees, spread=0.25, seed=3)
    loss = LossSettings(
        rollout_is=level,
        rollout_is_mode=how,
        rollout_is_threshold=threshold,
        loss_agg_mode=mode,
        clip_ratio_c=3.0,
    )
    recipe = Recipe(loss=loss, advantage=DR_GRPO)
    _, importance = credit_scores(recipe, policy, None, trees)
    credits, summary = assign_with_summary(
        trees, DR_GRPO, loss_agg_mode=mode, importance=importance
    )
    optimizer = Recorder(policy.model, UpdateSettings())
    update_policy(
        policy,
        optimizer,
        trees,
        credits,
        loss=loss,
        update=UpdateSettings(),
        temperature=1.0,
        generator=np.random.default_rng(0),
    )
    model = plain_model(policy)
    lp_old = row_logprobs(model, trees)[0].detach()
    trajectory_loss(model, trees, recipe, lp_old).backward()
    expected = gradients_by_name(dict(model.named_parameters()))
    assert worst(optimizer.gradients[0], expected) < 1e-11
    if how == "mask":
        assert 0.05 < summary.rejected < 0.95


# What goes in


def test_cached_tokens_take_no_weight():
    trees = judged_trees()
    trees[0].draws.source[1] = 7
    start, length = int(trees[0].draws.start[1]), int(trees[0].draws.length[1])
    recipe = Recipe(loss=LossSettings(rollout_is="sequence"), advantage=DR_GRPO)
    _, importance = credit_scores(recipe, tiny_llama(), None, trees)
    assert not importance.log_weights[0][start : start + length].any()
    assert importance.log_weights[1].any()


def test_tokens_without_a_sampler_logprob_are_refused():
    trees = judged_trees()
    trees[1].tokens.logprob[trees[1].tokens.mask.argmax()] = np.nan
    recipe = Recipe(loss=LossSettings(rollout_is="sequence"), advantage=DR_GRPO)
    with pytest.raises(UpdateError, match=r"1 tokens have no sampler log-prob.*rollout_is"):
        credit_scores(recipe, tiny_llama(), None, trees)


def test_the_model_is_not_run_where_the_loss_weighs_tokens_itself():
    for loss in (LossSettings(), unweighted()):
        assert credit_scores(Recipe(loss=loss), None, None, judged_trees()) == (None, None)


def test_weights_change_no_baseline():
    trees = judged_trees()
    forest = Forest.of(trees)
    assert len(training_rows(forest)) == 10
    logs = [np.random.default_rng(i).normal(0, 2, len(t.tokens)) for i, t in enumerate(trees)]
    importance = Importance("sequence", True, 0.5, 2.0, logs)
    _, plain = assign_with_summary(trees, DR_GRPO, loss_agg_mode="token-mean")
    _, weighed = assign_with_summary(
        trees, DR_GRPO, loss_agg_mode="token-mean", importance=importance
    )
    assert weighed.advantage_abs == plain.advantage_abs
    assert weighed.rejected > 0


def test_a_truncated_distribution_is_not_set_beside_the_trainers():
    row = {"mismatch/kl": 0.1, "sampling/importance_sampling_ratio/min": 0.2, "loss": 0.3}
    assert comparable(SamplerSettings(), row) == row
    assert comparable(SamplerSettings(top_p=0.9), row) == {"loss": 0.3}
    assert comparable(SamplerSettings(top_k=5), row) == {"loss": 0.3}
