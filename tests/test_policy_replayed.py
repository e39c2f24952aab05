"""Tokens from the replay cache, corrected by stored log-probs: against separate rows and by enumeration."""

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
    store_logprobs,
    use_exact_norm,
    worst,
)
from treerl.config import LossSettings, UpdateSettings
from treerl.errors import UpdateError
from treerl.policy.losses import TokenColumns, policy_loss
from treerl.policy.update import deal

MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")


def half_cached(seeds):
    """Trees of which the draws with an odd number came from the cache; cached and fresh rows share prefixes."""
    trees = [ragged_tree(seed) for seed in seeds]
    for tree in trees:
        tree.draws.source[1::2] = 9
    return trees


def cached_column(tree):
    return np.repeat(tree.draws.source > 0, tree.draws.length).astype(float)


def stored_rows(trees):
    """(log-probs of the policies that drew, whether from the cache), [B, L]."""
    stored = padded_columns(trees, [tree.tokens.logprob for tree in trees])
    return stored, padded_columns(trees, [cached_column(tree) for tree in trees]) > 0


# Against separate rows


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pack", ["tree", "flat"])
def test_truncated_weights_equal_separate_rows(monkeypatch, mode, pack):
    """Fresh and cached tokens each by their own threshold, with KL and entropy, in float64."""
    use_exact_norm(monkeypatch)
    policy, reference = tiny_llama(torch.float64), tiny_llama(torch.float64, seed=5)
    trees = half_cached((1, 2))
    store_logprobs(policy, trees, spread=0.6, seed=3)
    advantages = random_advantages(trees, seed=4)
    loss = LossSettings(
        loss_agg_mode=mode,
        rollout_is_threshold=1.3,
        replay_is_threshold=1.7,
        kl_coef=0.1,
        entropy_coef=0.05,
    )
    (gradient,), report = recorded(
        policy,
        trees,
        masses(trees, advantages, mode),
        loss=loss,
        reference=reference,
        settings=UpdateSettings(pack=pack),
    )
    model = plain_model(policy)
    lp_old = row_logprobs(model, trees)[0].detach()
    stored, cached = stored_rows(trees)
    weights = torch.where(
        cached, (lp_old - stored).exp().clamp(max=1.7), (lp_old - stored).exp().clamp(max=1.3)
    )
    expected, value = flat_gradient(
        model,
        trees,
        advantages,
        loss,
        lp_old=lp_old,
        weights=weights,
        reference=plain_model(reference),
    )
    assert report.sums.loss == pytest.approx(value, rel=1e-12)
    assert worst(gradient, expected) < 1e-11
    metrics = report.sums.metrics()
    assert 0.1 < metrics["replay/capped_frac"] < 0.5
    assert metrics["train/ratio_max"] == metrics["train/ratio_min"] == 1


def test_ratio_takes_stored_denominators_and_equals_separate_rows(monkeypatch):
    use_exact_norm(monkeypatch)
    policy = tiny_llama(torch.float64)
    trees = half_cached((1, 2))
    store_logprobs(policy, trees, spread=0.6, seed=3)
    advantages = random_advantages(trees, seed=4)
    loss = LossSettings(rollout_is="none", replay_is="ratio")
    (gradient,), report = recorded(
        policy, trees, masses(trees, advantages, "token-mean"), loss=loss
    )
    model = plain_model(policy)
    stored, cached = stored_rows(trees)
    lp_old = torch.where(cached, stored, row_logprobs(model, trees)[0].detach())
    expected, _ = flat_gradient(model, trees, advantages, loss, lp_old=lp_old)
    assert worst(gradient, expected) < 1e-11
    assert report.sums.out_of_band > 0


@pytest.mark.parametrize("old", ["recompute", "sampler"])
def test_later_mini_batches_weigh_by_the_policy_at_the_start(monkeypatch, old):
    """Two passes over two mini-batches, of which the second moves away: a plain loop with weights kept from the
    start gives the same weights of the model."""
    use_exact_norm(monkeypatch)
    policy = tiny_llama(torch.float64)
    trees = half_cached(range(4))
    store_logprobs(policy, trees, spread=0.4, seed=3)
    advantages = random_advantages(trees, seed=4)
    settings = UpdateSettings(
        lr=3e-3, num_iterations=2, mini_batches=2, grad_clip=0.5, old_logprobs=old
    )
    loss = LossSettings(rollout_is="none", replay_is_threshold=1.5)
    hands = deal([True] * 4, 2, np.random.default_rng(0))
    model = plain_model(policy)
    run_update(policy, trees, masses(trees, advantages, "token-mean"), settings=settings, loss=loss)

    plain = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    steps = []
    for hand in hands:
        members = [trees[i] for i in hand]
        start = row_logprobs(model, members)[0].detach()
        stored, cached = stored_rows(members)
        lp_old = start if old == "recompute" else torch.where(cached, start, stored)
        weights = torch.where(cached, (start - stored).exp().clamp(max=1.5), 1.0)
        steps.append((members, [advantages[i] for i in hand], lp_old, weights))
    for _ in range(2):
        for members, rows, lp_old, weights in steps:
            plain.zero_grad()
            flat_loss(model, members, rows, loss, lp_old=lp_old, weights=weights).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            plain.step()
    assert worst(policy.model.state_dict(), model.state_dict()) < 1e-9


def test_only_mini_batches_with_cached_tokens_are_run_for_them():
    policy = tiny_llama()
    trees = [random_tree(seed) for seed in range(4)]
    store_logprobs(policy, trees, spread=0.1, seed=0)
    credits = [random_credit(tree, 1) for tree in trees]
    settings = UpdateSettings(mini_batches=4, old_logprobs="sampler")
    loss = LossSettings(rollout_is="none")
    assert "old" not in run_update(policy, trees, credits, settings=settings, loss=loss).seconds
    last = deal([True] * 4, 4, np.random.default_rng(0))[-1]
    mark_cached([trees[i] for i in last])
    assert "old" in run_update(policy, trees, credits, settings=settings, loss=loss).seconds
    direct = LossSettings(rollout_is="none", replay_is="ratio")
    assert "old" not in run_update(policy, trees, credits, settings=settings, loss=direct).seconds


def test_cached_tokens_of_the_policy_itself_train_like_fresh_ones(monkeypatch):
    use_exact_norm(monkeypatch)
    policy = tiny_llama(torch.float64)
    trees = [ragged_tree(1)]
    store_logprobs(policy, trees, spread=0.0, seed=3)
    credits = masses(trees, random_advantages(trees, seed=4), "token-mean")
    (fresh,), _ = recorded(policy, trees, credits, loss=LossSettings())
    mark_cached(trees)
    for form in ("truncate", "ratio"):
        (cached,), report = recorded(policy, trees, credits, loss=LossSettings(replay_is=form))
        assert worst(cached, fresh) < 1e-5  # log-probs are stored in float32
        assert report.metrics()["replay/ess"] == pytest.approx(1)


# By enumeration: one token of three, drawn by mu and trained towards reward under pi, less its mean .95

MU, PI, ADVANTAGE = (0.5, 0.3, 0.2), (0.8, 0.15, 0.05), (0.05, 0.05, -0.95)


def bandit(**settings):
    """(gradient ascended in the logits, metrics) of all three tokens weighed by mu, as if drawn from it."""
    logits = torch.tensor(PI, dtype=torch.float64).log().requires_grad_()
    lp, mu = logits.log_softmax(0), torch.tensor(MU, dtype=torch.float64)
    loss = LossSettings(clip_ratio_high=9.0, clip_ratio_low=1.0, clip_ratio_c=None, **settings)
    advantage = torch.tensor(ADVANTAGE, dtype=torch.float64)
    columns = TokenColumns(
        positive=mu * advantage.clamp(min=0),
        negative=mu * (-advantage).clamp(min=0),
        weight=mu,
        lp_old=mu.log() if loss.replay_is == "ratio" else lp.detach(),
        lp_beh=mu.log(),
        fresh=torch.zeros(3, dtype=torch.bool),
    )
    outputs = policy_loss(lp, None, columns, loss, 1.0)
    outputs.loss.backward()
    return (-logits.grad).tolist(), outputs.sums.metrics()


@pytest.mark.parametrize(
    ("settings", "gradient"),
    [
        ({"replay_is_threshold": 1.6}, (0.04, 0.0075, -0.0475)),
        ({"replay_is_threshold": 1.0}, (0.037, 0.00975, -0.04675)),
        ({"replay_is_threshold": 1.5}, (0.0395, 0.007875, -0.047375)),
        ({"replay_is": "ratio"}, (0.04, 0.0075, -0.0475)),
        ({"replay_is": "none"}, (0.145, 0.0375, -0.1825)),
    ],
    ids=["no weight cut", "cap 1", "cap 1.5", "direct ratio", "uncorrected"],
)
def test_expected_gradient_over_the_drawers_distribution(settings, gradient):
    """Weights that no cap cuts and the direct ratio give the true gradient of E_pi[R] from draws of mu."""
    assert bandit(**settings)[0] == pytest.approx(gradient, abs=1e-9)


def test_band_lies_around_the_policy_at_the_start_or_around_the_drawer():
    """Drawn at p, at the start 2 p, now 2.4 p: inside 1.28 of the start, outside 1.28 of the drawer."""
    drawn, start, now = (float(np.log(p)) for p in (0.2, 0.4, 0.48))

    def gradient(form, lp_old):
        lp = torch.tensor([now], dtype=torch.float64, requires_grad=True)

        def column(*values):
            return torch.tensor(values, dtype=torch.float64)

        columns = TokenColumns(
            positive=column(1),
            negative=column(0),
            weight=column(1),
            lp_old=column(lp_old),
            lp_beh=column(drawn),
            fresh=torch.zeros(1, dtype=torch.bool),
        )
        policy_loss(lp, None, columns, LossSettings(replay_is=form), 1.0).loss.backward()
        return -lp.grad.item()

    assert gradient("truncate", start) == pytest.approx(2.0 * 1.2)
    assert gradient("ratio", drawn) == 0


@pytest.mark.parametrize(
    ("weights", "effective"), [((1, 1, 1, 1), 4), ((2, 1, 1, 1e-9), 8 / 3), ((4, *[1e-9] * 3), 1)]
)
@pytest.mark.parametrize("form", ["truncate", "none"])
def test_effective_sample_size_is_counted_before_the_cap(weights, effective, form):
    lp_old = torch.tensor(weights, dtype=torch.float64).log()
    nothing = torch.zeros(4, dtype=torch.float64)
    columns = TokenColumns(
        positive=nothing + 1,
        negative=nothing,
        weight=nothing,
        lp_old=lp_old,
        lp_beh=nothing,
        fresh=torch.zeros(4, dtype=torch.bool),
    )
    loss = LossSettings(replay_is=form, replay_is_threshold=1.0)
    metrics = policy_loss(lp_old, None, columns, loss, 1.0).sums.metrics()
    assert metrics["replay/ess"] == pytest.approx(effective / 4, rel=1e-6)
    assert metrics["replay/is_max"] == pytest.approx(max(weights))
    assert metrics["replay/capped_frac"] == pytest.approx(np.mean(np.array(weights) > 1))


# Failures


def test_cached_tokens_without_logprobs_are_refused():
    policy = tiny_llama()
    (tree,) = mark_cached([random_tree(2)])
    tree.tokens.logprob[-1] = np.nan
    with pytest.raises(UpdateError, match="stored draw 7 has no behaviour log-probs"):
        run_update(policy, [tree], [random_credit(tree, 1)])
