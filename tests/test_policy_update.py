"""`update_policy`: packed trees against separate padded rows, denominators, mini-batches, failures."""

import numpy as np
import pytest
import torch

from tests.support_policy import ragged_tree, random_credit, random_tree, tiny_llama
from tests.support_update import (
    flat_gradient,
    flat_loss,
    mark_cached,
    masses,
    padded_columns,
    plain_model,
    random_advantages,
    recorded,
    row_logprobs,
    run_update,
    same,
    store_logprobs,
    unweighted,
    use_exact_norm,
    weights,
    worst,
)
from treerl.config import LossSettings, UpdateSettings
from treerl.credit.masses import TokenCredit
from treerl.errors import UpdateError
from treerl.policy.pack import training_leaves
from treerl.policy.reference import freeze, score_trees
from treerl.policy.update import deal

MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")


# Against separate rows


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("spread", [0.05, 1.5], ids=["inside-band", "outside-band"])
def test_packed_trees_equal_separate_padded_rows(monkeypatch, mode, spread):
    use_exact_norm(monkeypatch)
    policy = tiny_llama(torch.float64)
    reference = tiny_llama(torch.float64, seed=5)
    trees = mark_cached([ragged_tree(1), ragged_tree(2)])
    store_logprobs(policy, trees, spread=spread, seed=3)
    advantages = random_advantages(trees, seed=4)
    loss = unweighted(
        loss_agg_mode=mode, clip_ratio_c=3.0, kl_coef=0.1, entropy_coef=0.05, rollout_is_threshold=9
    )
    (gradient,), report = recorded(
        policy, trees, masses(trees, advantages, mode), loss=loss, reference=reference
    )
    expected, value = flat_gradient(
        plain_model(policy),
        trees,
        advantages,
        loss,
        lp_old=padded_columns(trees, [tree.tokens.logprob for tree in trees]),
        reference=plain_model(reference),
    )
    assert report.sums.loss == pytest.approx(value, rel=1e-12)
    assert worst(gradient, expected) < 1e-11
    clipped = report.sums.metrics()["clip_ratio/region_mean"]
    assert clipped > 0.5 if spread > 1 else clipped < 0.01
    assert (report.sums.clip_dual > 0) == (spread > 1)


@pytest.mark.parametrize("pack", ["tree", "flat"])
def test_spans_without_credit_are_not_run_and_change_nothing(monkeypatch, pack):
    """Rows whose leaf span has no advantage end where their credit ends; the gradient is that of all rows."""
    use_exact_norm(monkeypatch)
    policy = tiny_llama(torch.float64)
    trees = mark_cached([ragged_tree(1), ragged_tree(2)])
    store_logprobs(policy, trees, spread=0.5, seed=3)
    advantages = random_advantages(trees, seed=4)
    for tree, rows in zip(trees, advantages, strict=True):
        for number, (leaf, row) in enumerate(zip(training_leaves(tree), rows, strict=True)):
            if number % 2 == 0:
                row[-int(tree.nodes.stop[leaf] - tree.nodes.start[leaf]) :] = 0.0
    loss = unweighted(loss_agg_mode="token-mean", clip_ratio_c=3.0)
    settings = UpdateSettings(pack=pack)
    (gradient,), report = recorded(
        policy, trees, masses(trees, advantages, "token-mean"), loss=loss, settings=settings
    )
    expected, value = flat_gradient(
        plain_model(policy),
        trees,
        advantages,
        loss,
        lp_old=padded_columns(trees, [tree.tokens.logprob for tree in trees]),
    )
    assert report.sums.loss == pytest.approx(value, rel=1e-12)
    assert worst(gradient, expected) < 1e-11
    assert report.tokens.trained < sum(len(tree.tokens) - tree.n_prompt for tree in trees)


def test_k3_and_temperature_equal_separate_rows(monkeypatch):
    use_exact_norm(monkeypatch)
    policy, reference = tiny_llama(torch.float64), tiny_llama(torch.float64, seed=5)
    trees = mark_cached([ragged_tree(1)])
    store_logprobs(policy, trees, spread=0.3, seed=3)
    advantages = random_advantages(trees, seed=4)
    loss = unweighted(kl_coef=0.1, kl_estimator="k3", rollout_is_threshold=9)
    (gradient,), _ = recorded(
        policy,
        trees,
        masses(trees, advantages, "token-mean"),
        loss=loss,
        reference=reference,
        temperature=0.7,
    )
    expected, _ = flat_gradient(
        plain_model(policy),
        trees,
        advantages,
        loss,
        lp_old=padded_columns(trees, [tree.tokens.logprob for tree in trees]),
        reference=plain_model(reference),
        temperature=0.7,
    )
    assert worst(gradient, expected) < 1e-11


def test_fresh_tokens_take_recomputed_old_logprobs_and_truncated_weights(monkeypatch):
    use_exact_norm(monkeypatch)
    policy = tiny_llama(torch.float64)
    trees = [ragged_tree(1), ragged_tree(2)]
    store_logprobs(policy, trees, spread=0.6, seed=3)
    advantages = random_advantages(trees, seed=4)
    loss = LossSettings(rollout_is="token", rollout_is_threshold=1.3)
    (gradient,), report = recorded(
        policy, trees, masses(trees, advantages, "token-mean"), loss=loss
    )
    model = plain_model(policy)
    lp_old = row_logprobs(model, trees)[0].detach()
    stored = padded_columns(trees, [tree.tokens.logprob for tree in trees])
    expected, _ = flat_gradient(
        model,
        trees,
        advantages,
        loss,
        lp_old=lp_old,
        weights=(lp_old - stored).exp().clamp(max=1.3),
    )
    assert worst(gradient, expected) < 1e-11
    assert 0.1 < report.sums.metrics()["mismatch/capped_frac"] < 0.9


def test_two_iterations_of_two_mini_batches_equal_a_plain_training_loop(monkeypatch):
    use_exact_norm(monkeypatch)
    policy = tiny_llama(torch.float64)
    trees = [random_tree(seed) for seed in range(4)]
    advantages = random_advantages(trees, seed=4)
    credits = masses(trees, advantages, "token-mean")
    settings = UpdateSettings(lr=3e-3, num_iterations=2, mini_batches=2, grad_clip=0.5)
    hands = deal([True] * 4, 2, np.random.default_rng(0))
    model = plain_model(policy)
    report = run_update(policy, trees, credits, settings=settings)

    plain = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    chosen = [([trees[i] for i in hand], [advantages[i] for i in hand]) for hand in hands]
    old = [row_logprobs(model, members)[0].detach() for members, _ in chosen]
    for _ in range(2):
        for (members, rows), lp_old in zip(chosen, old, strict=True):
            plain.zero_grad()
            flat_loss(model, members, rows, unweighted(), lp_old=lp_old).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            plain.step()
    assert len(report.steps) == 4
    assert worst(policy.model.state_dict(), model.state_dict()) < 1e-9
    assert report.sums.out_of_band > 0


# Splits


@pytest.mark.parametrize("pack", ["tree", "flat"])
def test_micro_batches_and_parts_of_a_tree_change_nothing(monkeypatch, pack):
    use_exact_norm(monkeypatch)
    policy, reference = tiny_llama(torch.float64), tiny_llama(torch.float64, seed=5)
    trees = mark_cached([ragged_tree(1), ragged_tree(2), random_tree(3)])
    store_logprobs(policy, trees, spread=0.6, seed=3)
    credits = masses(trees, random_advantages(trees, seed=4), "seq-mean-token-mean")
    loss = unweighted(
        loss_agg_mode="seq-mean-token-mean", clip_ratio_c=3, kl_coef=0.1, entropy_coef=0.1
    )
    whole = UpdateSettings(max_tokens_per_microbatch=4096)
    parts = UpdateSettings(max_tokens_per_microbatch=40, pack=pack)
    (a,), one = recorded(policy, trees, credits, loss=loss, settings=whole, reference=reference)
    (b,), many = recorded(policy, trees, credits, loss=loss, settings=parts, reference=reference)
    assert worst(b, a) < 1e-11
    assert many.sums.metrics() == pytest.approx(one.sums.metrics(), rel=1e-9)
    assert many.tokens.packed > one.tokens.packed
    assert many.tokens.trained == one.tokens.trained


def test_mini_batches_are_dealt_whole_evenly_and_by_seed():
    active = [True, False, True, False, True, True, False]
    hands = deal(active, 2, np.random.default_rng(1))
    assert sorted(i for hand in hands for i in hand) == list(range(7))
    assert [sum(active[i] for i in hand) for hand in hands] == [2, 2]
    assert hands == deal(active, 2, np.random.default_rng(1))
    assert any(hands != deal(active, 2, np.random.default_rng(seed)) for seed in range(2, 6))


# First step


def test_first_step_has_ratio_one_and_clips_nothing():
    policy = tiny_llama()
    trees = [random_tree(seed) for seed in range(3)]
    credits = [random_credit(tree, 1) for tree in trees]
    metrics = run_update(policy, trees, credits).metrics()
    assert metrics["train/ratio_max"] == metrics["train/ratio_min"] == 1
    assert metrics["clip_ratio/high_mean"] == metrics["clip_ratio/low_mean"] == 0
    assert metrics["train/approx_kl"] == 0


def test_first_step_has_ratio_one_in_bfloat16_and_moves_the_weights():
    policy = tiny_llama(torch.bfloat16)
    trees = [random_tree(seed) for seed in range(3)]
    before = weights(policy)
    settings = UpdateSettings(lr=1e-2, mini_batches=3, max_tokens_per_microbatch=64)
    report = run_update(
        policy, trees, [random_credit(tree, 1) for tree in trees], settings=settings
    )
    assert report.first.ratio_max == 1 == -report.first.ratio_min_negated
    assert not same(before, weights(policy))


def test_first_mini_batch_has_ratio_one_and_later_ones_move():
    policy = tiny_llama()
    trees = [random_tree(seed) for seed in range(4)]
    credits = [random_credit(tree, 1) for tree in trees]
    settings = UpdateSettings(lr=1e-2, mini_batches=2)
    report = run_update(policy, trees, credits, settings=settings)
    assert report.first.ratio_max == 1 == -report.first.ratio_min_negated
    assert report.sums.ratio_max > 1.01


def test_missing_sampler_logprobs_are_refused_by_truncated_weights_and_harmless_without():
    policy = tiny_llama()
    tree = random_tree(2)
    tree.tokens.logprob[-1] = np.nan
    credits = [random_credit(tree, 1)]
    before = weights(policy)
    with pytest.raises(UpdateError, match=r"1 of .* tokens have no sampler log-prob"):
        run_update(policy, [tree], credits, loss=LossSettings(rollout_is="token"))
    assert same(before, weights(policy))
    assert len(run_update(policy, [tree], credits).steps) == 1


# Nothing to do, denominators


def no_credit(tree):
    zero = np.zeros(len(tree.tokens))
    return TokenCredit(zero, zero, tree.tokens.mask.astype(float), 10.0, 2)


def test_a_step_without_credit_is_skipped_and_counted():
    policy = tiny_llama()
    trees = [random_tree(seed) for seed in range(3)]
    before = weights(policy)
    report = run_update(
        policy,
        trees,
        [no_credit(tree) for tree in trees],
        settings=UpdateSettings(mini_batches=2, num_iterations=3),
    )
    assert (len(report.steps), report.skipped, report.trees_trained) == (0, 6, 0)
    assert same(before, weights(policy))
    assert "loss" not in report.metrics()


def test_trees_without_credit_are_not_run_but_their_denominator_counts(monkeypatch):
    use_exact_norm(monkeypatch)
    policy = tiny_llama(torch.float64)
    trees = [random_tree(1), random_tree(2)]
    credit = random_credit(trees[0], 1)
    (alone,), one = recorded(policy, trees[:1], [credit])
    (beside,), two = recorded(policy, trees, [credit, no_credit(trees[1])])
    assert one.tokens == two.tokens
    share = credit.denominator / (credit.denominator + 10.0)
    assert worst(beside, {name: share * value for name, value in alone.items()}) < 1e-12


def test_entropy_bonus_acts_on_trees_without_advantages():
    policy = tiny_llama()
    tree = random_tree(1)
    report = run_update(policy, [tree], [no_credit(tree)], loss=unweighted(entropy_coef=0.1))
    assert report.trees_trained == 1
    assert report.steps[0].grad_norm > 0


def test_token_counts_of_a_tree():
    policy = tiny_llama()
    tree = ragged_tree()
    report = run_update(policy, [tree], [random_credit(tree, 1)])
    paths = [7 + 9 + 14, 7 + 9 + 5 + 3, 7 + 9 + 5 + 11, 7 + 1 + 17, 7 + 1 + 8]
    assert report.tokens.trained == 9 + 1 + 14 + 5 + 3 + 11 + 17 + 8
    assert report.tokens.packed == report.tokens.trained + 7
    assert report.tokens.flat == sum(paths)
    assert report.metrics()["train/tree_token_ratio"] == pytest.approx(sum(paths) / 75)


# Reference


def test_a_frozen_reference_stays_while_the_policy_moves():
    policy = tiny_llama()
    reference = freeze(policy)
    trees = [random_tree(1)]
    before = score_trees(reference, trees, temperature=1.0, max_tokens=512)[0]
    assert np.array_equal(
        before, score_trees(policy, trees, temperature=1.0, max_tokens=512)[0], equal_nan=True
    )
    settings = UpdateSettings(lr=1e-2)
    run_update(policy, trees, [random_credit(trees[0], 1)], settings=settings)
    after = score_trees(reference, trees, temperature=1.0, max_tokens=512)[0]
    assert np.array_equal(before, after, equal_nan=True)
    moved = score_trees(policy, trees, temperature=1.0, max_tokens=512)[0]
    assert not np.allclose(moved, after, equal_nan=True)
    assert np.isnan(before[: trees[0].n_prompt]).all()


def test_the_samplers_logprobs_can_stand_for_the_old_ones():
    policy = tiny_llama()
    trees = [random_tree(seed) for seed in range(4)]
    store_logprobs(policy, trees, spread=0.3, seed=0)
    settings = UpdateSettings(lr=1e-2, mini_batches=2, old_logprobs="sampler")
    report = run_update(policy, trees, [random_credit(t, 1) for t in trees], settings=settings)
    assert "old" not in report.seconds
    assert report.first.ratio_max > 1.01
    # What sampler and trainer differ by is measured where the weights are still those that sampled.
    assert report.sums.compared == report.first.tokens < report.sums.tokens
    assert report.metrics()["sampling/sampling_logp_difference/mean"] > 0.1


def test_missing_sampler_logprobs_cannot_stand_for_the_old_ones():
    policy = tiny_llama()
    tree = random_tree(2)
    store_logprobs(policy, [tree], spread=0.0, seed=0)
    tree.tokens.logprob[-1] = np.nan
    settings = UpdateSettings(lr=1e-2, old_logprobs="sampler")
    with pytest.raises(UpdateError, match="recompute"):
        run_update(policy, [tree], [random_credit(tree, 1)], settings=settings)
