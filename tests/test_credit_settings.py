"""Which trees count, how advantages are scaled, signals, and the statistics of a step."""

import dataclasses

import numpy as np
import pytest

from tests.support_credit import PROMPT, build, hand_tree, random_signals, random_tree
from treerl.config import AdvantageSettings
from treerl.credit.assign import assign, assign_with_summary
from treerl.credit.dense import Signals
from treerl.errors import UpdateError
from treerl.search.tree import Tree

DR_GRPO = AdvantageSettings(estimator="dr_grpo")


def one_of(tree: Tree, settings=DR_GRPO, **more):
    return assign([tree], settings, loss_agg_mode="token-mean", **more)[0]


# Which trees count


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.7])
def test_uniform_tree_is_dropped(reward):
    tree, _ = build({"x": (1, reward), "y": (2, reward)})
    credit = one_of(tree, AdvantageSettings(estimator="grpo"))
    assert (credit.denominator, credit.n_rows) == (0.0, 0)
    assert not credit.weight.any()


def test_uniform_tree_that_is_kept_weighs_but_pushes_nothing():
    tree, _ = build({"x": (1, 1.0), "y": (2, 1.0)})
    credit = one_of(tree, AdvantageSettings(estimator="grpo", zero_variance="keep"))
    assert credit.denominator == 3
    assert not (credit.positive + credit.negative).any()


def test_dropped_trees_leave_batch_statistics():
    mixed, _ = build({"x": (1, 1.0), "y": (1, 0.0)})
    uniform, _ = build({"x": (1, 1.0), "y": (1, 1.0)})
    settings = AdvantageSettings(estimator="dr_grpo", scale_rewards="batch", std_ddof=0)
    found = assign([uniform, mixed], settings, loss_agg_mode="token-mean")
    assert found[1].positive.max() == pytest.approx(1.0)
    kept = assign(
        [uniform, mixed],
        settings.model_copy(update={"zero_variance": "keep"}),
        loss_agg_mode="token-mean",
    )
    # The std of raw rewards over the batch (1, 1, 1, 0), not of the centred ones.
    assert kept[1].positive.max() == pytest.approx(1.154701, abs=6e-7)


def test_task_std_over_two_groups():
    one, _ = build({f"l{i}": (1, r) for i, r in enumerate((1.0, 0.0, 0.0, 0.0))})
    two, _ = build({f"l{i}": (1, r) for i, r in enumerate((1.0, 1.0, 0.0, 0.0))})
    settings = AdvantageSettings(estimator="grpo", scale_rewards="batch", std_ddof=0)
    found = assign([one, two], settings, loss_agg_mode="token-mean")
    assert found[0].positive.max() == pytest.approx(1.549193, abs=6e-7)
    assert found[0].negative.max() == pytest.approx(0.516398, abs=6e-7)
    assert found[1].positive.max() == pytest.approx(1.032796, abs=6e-7)


def test_group_scale_divides_value_differences_by_the_std_of_the_prompt():
    tree, names = hand_tree()
    settings = AdvantageSettings(estimator="tree_value", scale_rewards="group", std_ddof=0)
    credit = one_of(tree, settings)
    a1 = int(tree.nodes.start[names["a1"]])
    assert credit.positive[a1] == pytest.approx(2 / 3 / 0.471405, abs=1e-5)


def test_no_scale_turns_grpo_into_dr_grpo():
    tree, _ = hand_tree()
    found = one_of(tree, AdvantageSettings(estimator="grpo", scale_rewards="none"))
    assert found.positive.tolist() == one_of(tree).positive.tolist()


def test_rms_scale_makes_the_mean_square_one_and_keeps_zero():
    trees = [random_tree(seed) for seed in range(6)]
    settings = AdvantageSettings(estimator="tree_value", rms_scale=True)
    found = assign(trees, settings, loss_agg_mode="token-mean")
    plain = assign(trees, AdvantageSettings(), loss_agg_mode="token-mean")
    mean = np.concatenate([c.positive - c.negative for c in found])
    weight = np.concatenate([c.weight for c in found])
    assert (mean**2).sum() / (weight > 0).sum() == pytest.approx(1.0)
    before = np.concatenate([c.positive - c.negative for c in plain])
    assert np.sign(mean).tolist() == np.sign(before).tolist()


def test_rms_scale_replaces_the_std_of_the_group():
    trees = [random_tree(1), random_tree(2)]
    grpo, plain = (
        assign(trees, AdvantageSettings(estimator=name, rms_scale=True), loss_agg_mode="token-mean")
        for name in ("grpo", "dr_grpo")
    )
    assert grpo[0].positive.tolist() == plain[0].positive.tolist()


def test_reward_low_maps_zero_to_minus_one():
    tree, _ = hand_tree()
    doubled = one_of(tree, AdvantageSettings(estimator="dr_grpo", reward_low=-1.0))
    assert doubled.negative == pytest.approx(2 * one_of(tree).negative)


def test_no_trees_and_trees_without_rows():
    assert assign([], DR_GRPO, loss_agg_mode="token-mean") == []
    bare = Tree(PROMPT, seed=0, max_completion_length=4)
    for zero_variance in ("drop", "keep"):
        settings = AdvantageSettings(zero_variance=zero_variance)
        credit = one_of(bare, settings)
        assert (credit.denominator, credit.n_rows, len(credit.weight)) == (0.0, 0, len(PROMPT))


def test_a_mixed_tree_without_a_selected_leaf_trains_nothing():
    tree, _ = hand_tree()
    tree.nodes.selected[:] = False
    for estimator in ("grpo", "tree_value", "implicit_prm"):
        signals = [random_signals(tree, 0)]
        credit = one_of(tree, AdvantageSettings(estimator=estimator), signals=signals)
        assert credit.denominator == 0


# Signals


def test_dense_estimators_ask_for_signals():
    with pytest.raises(ValueError, match="lp_old and lp_ref"):
        one_of(hand_tree()[0], AdvantageSettings(estimator="frpo"))


def test_signals_of_the_wrong_tree_are_refused():
    tree, _ = hand_tree()
    short = Signals(np.zeros(4), np.zeros(4))
    with pytest.raises(ValueError, match="4"):
        one_of(tree, AdvantageSettings(estimator="frpo"), signals=[short])


def test_a_nan_log_prob_is_named():
    tree, _ = hand_tree()
    signals = random_signals(tree, 0)
    signals.lp_ref[5] = np.nan
    with pytest.raises(UpdateError, match="token 5 of tree 0"):
        one_of(tree, AdvantageSettings(estimator="frpo"), signals=[signals])


def test_signals_follow_their_trees_past_a_dropped_one():
    uniform, _ = build({"x": (1, 1.0), "y": (2, 1.0)})
    mixed, _ = hand_tree()
    signals = [random_signals(uniform, 0), random_signals(mixed, 1)]
    settings = AdvantageSettings(estimator="frpo", beta=0.5)
    both = assign([uniform, mixed], settings, loss_agg_mode="token-mean", signals=signals)
    alone = one_of(mixed, settings, signals=signals[1:])
    assert both[1].positive == pytest.approx(alone.positive)


# Summary


def test_summary():
    uniform, _ = build({"x": (1, 1.0), "y": (2, 1.0)})
    mixed, _ = hand_tree()
    settings = AdvantageSettings(estimator="tree_value")
    _, summary = assign_with_summary([uniform, mixed], settings, loss_agg_mode="token-mean")
    expected = {
        # 16 unique tokens: a -1/3 (2), b 1/3 (1), c 1/3 (4), a1 2/3 (2), a2, a3 -1/3 (4), b1, b2 0 (3)
        "advantage_mean": 1 / 16,
        "advantage_abs": (2 + 1 + 4 + 4 + 4) / 3 / 16,
        "positive_on_wrong": 0.0,
        # a1's row passes the two tokens of a: 2 of the 13 tokens on right rows
        "negative_on_right": 2 / 13,
        "uniform": 0.5,
        "dropped": 1,
        "rows": 6,
        "tokens": 16,
        "rejected": np.nan,  # no weights on rows
        "leaf_ess": np.nan,
    }
    assert dataclasses.asdict(summary) == pytest.approx(expected, nan_ok=True)
