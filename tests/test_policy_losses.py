"""Hand numbers and gradients of the per-token losses."""

import itertools

import numpy as np
import pytest
import torch

from tests.support_update import unweighted
from treerl.config import LossSettings
from treerl.policy.loss_sums import LossSums
from treerl.policy.losses import (
    LossOutputs,
    TokenColumns,
    clipped_surrogate,
    kl_penalty,
    policy_loss,
    token_ratio,
    truncated_weights,
)

BAND = {"low": 0.2, "high": 0.28}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def columns(
    *, positive, negative=None, weight=None, lp_old, lp_beh=None, lp_ref=None, fresh=None
) -> TokenColumns:
    positive = torch.as_tensor(positive, dtype=torch.float64)
    full = torch.full_like
    return TokenColumns(
        positive=positive,
        negative=torch.zeros_like(positive) if negative is None else tensor(*negative),
        weight=torch.ones_like(positive) if weight is None else tensor(*weight),
        lp_old=torch.as_tensor(lp_old, dtype=torch.float64),
        lp_beh=full(positive, torch.nan) if lp_beh is None else tensor(*lp_beh),
        fresh=full(positive, True, dtype=torch.bool) if fresh is None else torch.tensor(fresh),
        lp_ref=None if lp_ref is None else tensor(*lp_ref),
    )


def loss_and_gradient(ratios, positive, negative, cap):
    log_ratio = tensor(*ratios).log().requires_grad_()
    loss = clipped_surrogate(log_ratio.exp(), positive, negative, **BAND, cap=cap)
    loss.sum().backward()
    return loss.detach().tolist(), log_ratio.grad.tolist()


# Surrogate


def test_clip_table_of_positive_advantages():
    loss, gradient = loss_and_gradient((0.5, 0.7, 1, 1.25, 1.5, 5), tensor(1), tensor(0), 3.0)
    assert loss == pytest.approx([-0.5, -0.7, -1, -1.25, -1.28, -1.28])
    assert gradient == pytest.approx([-0.5, -0.7, -1, -1.25, 0, 0])


def test_clip_table_of_negative_advantages_with_dual_clip():
    loss, gradient = loss_and_gradient((0.5, 0.7, 1, 1.25, 1.5, 5), tensor(0), tensor(1), 3.0)
    assert loss == pytest.approx([0.8, 0.8, 1, 1.25, 1.5, 3])
    assert gradient == pytest.approx([0, 0, 1, 1.25, 1.5, 0])


def test_without_dual_clip_a_negative_advantage_is_unbounded():
    loss, gradient = loss_and_gradient((5.0,), tensor(0), tensor(1), None)
    assert loss == pytest.approx([5.0])
    assert gradient == pytest.approx([5.0])


def test_shared_token_of_both_signs_clips_each_mass_by_its_own_rule():
    loss, gradient = loss_and_gradient((0.7, 1, 1.5, 5), tensor(2 / 3), tensor(1 / 3), 3.0)
    assert loss == pytest.approx([-0.2, -1 / 3, -0.353333, 0.146667], abs=1e-6)
    assert gradient == pytest.approx([-0.466667, -1 / 3, 0.5, 0], abs=1e-6)


def test_two_masses_equal_separate_rows_at_every_ratio():
    generator = np.random.default_rng(0)
    ratios = torch.tensor(np.exp(generator.normal(0, 1.2, 500)))
    advantages = torch.tensor(generator.normal(size=(500, 4)))

    def row(a):
        plain = torch.maximum(-a * ratios, -a * ratios.clamp(0.8, 1.28))
        return torch.where(a < 0, torch.minimum(plain, -a * 3.0), plain)

    rows = sum(row(advantages[:, i]) for i in range(4))
    masses = clipped_surrogate(
        ratios, advantages.clamp(min=0).sum(1), (-advantages).clamp(min=0).sum(1), **BAND, cap=3.0
    )
    assert torch.allclose(masses, rows, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ratio", [0.5, 0.79, 0.81, 1.1, 1.27, 1.29, 2.9, 3.1])
def test_surrogate_gradient_equals_finite_differences(ratio):
    def value(log_ratio):
        r = torch.tensor(log_ratio, dtype=torch.float64).exp()
        return float(clipped_surrogate(r, tensor(0.7), tensor(0.4), **BAND, cap=3.0).sum())

    step = 1e-6
    log_ratio = float(np.log(ratio))
    expected = (value(log_ratio + step) - value(log_ratio - step)) / (2 * step)
    _, gradient = loss_and_gradient((ratio,), tensor(0.7), tensor(0.4), 3.0)
    assert gradient[0] == pytest.approx(expected, abs=1e-8)


def test_huge_log_ratio_is_clamped_and_gives_no_gradient():
    lp = tensor(0.0, 0.0).requires_grad_()
    ratio = token_ratio(lp, tensor(-50.0, 50.0))
    ratio.sum().backward()
    assert ratio.tolist() == pytest.approx([np.exp(20), np.exp(-20)])
    assert lp.grad.tolist() == [0, 0]


# Truncated importance weights


def test_truncated_weights_of_the_table():
    v = tensor(0.9, 1.1, 3, 0.4, 6)
    assert truncated_weights(v.log(), torch.zeros(5), 2.0).tolist() == pytest.approx(
        [0.9, 1.1, 2, 0.4, 2]
    )


def test_truncated_weights_carry_no_gradient():
    lp_old = tensor(-1.0).requires_grad_()
    assert not truncated_weights(lp_old, tensor(-2.0), 9.0).requires_grad


@pytest.mark.parametrize(
    ("lp_beh", "lp_old", "lp", "loss", "gradient"),
    [
        (-1, -0.8, -0.7, -1.349859, -1.349859),
        (-2.5, -0.8, -0.7, -2.210342, -2.210342),
        (-1, -0.8, -0.5, -1.563396, 0),
    ],
)
def test_surrogate_with_truncated_weights(lp_beh, lp_old, lp, loss, gradient):
    settings = LossSettings(rollout_is="token", rollout_is_threshold=2.0)
    lp = tensor(lp).requires_grad_()
    outputs = policy_loss(
        lp, tensor(0), columns(positive=[1], lp_old=[lp_old], lp_beh=[lp_beh]), settings, 1.0
    )
    outputs.loss.backward()
    assert outputs.loss.item() == pytest.approx(loss, abs=1e-6)
    assert lp.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_effective_sample_size_is_counted_before_the_cap():
    v = tensor(0.9, 1.1, 3, 0.4, 6)
    metrics = run(lp=v.log(), positive=[1] * 5, lp_old=v.log(), lp_beh=[0] * 5).sums.metrics()
    assert metrics["mismatch/ess"] == pytest.approx(0.550911, abs=1e-6)
    assert metrics["mismatch/capped_frac"] == pytest.approx(0.4)
    assert metrics["sampling/importance_sampling_ratio/max"] == pytest.approx(6)
    assert metrics["sampling/importance_sampling_ratio/min"] == pytest.approx(0.4)


def test_mismatch_of_the_table():
    d = tensor(0, 0.1, -0.1)
    metrics = run(lp=d, positive=[1] * 3, lp_old=d, lp_beh=[0] * 3).sums.metrics()
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(0.066667, abs=1e-6)
    assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(0.1)
    assert metrics["mismatch/k1"] == pytest.approx(0, abs=1e-12)
    assert metrics["mismatch/kl"] == pytest.approx(0.003336, abs=1e-6)


def test_cached_tokens_stay_out_of_the_mismatch():
    settings = LossSettings(rollout_is="token", clip_ratio_high=9.0, clip_ratio_c=None)
    outputs = policy_loss(
        tensor(-0.5, -0.5),
        tensor(0, 0),
        columns(positive=[1, 1], lp_old=[-1, -0.5], lp_beh=[-1.4, -0.7], fresh=[False, True]),
        settings,
        1.0,
    )
    assert outputs.loss.item() == pytest.approx(-np.exp(0.5 + 0.4) - np.exp(0.2))
    metrics = outputs.sums.metrics()
    assert outputs.sums.compared == 1
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(0.2)
    assert metrics["replay/is_mean"] == pytest.approx(np.exp(0.4))


# KL

PI, REF, MU = tensor(0.5, 0.3, 0.2), tensor(0.25, 0.25, 0.5), tensor(0.2, 0.3, 0.5)


@pytest.mark.parametrize(
    ("estimator", "values"),
    [
        ("k1", (0.693147, 0.182322, -0.916291)),
        ("k2", (0.240227, 0.016621, 0.419794)),
        ("k3", (0.193147, 0.015655, 0.583709)),
    ],
)
def test_kl_values_of_the_table(estimator, values):
    assert kl_penalty(PI.log(), REF.log(), estimator).tolist() == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize(
    ("d", "estimator", "value", "gradient"),
    [
        (2, "k2", 2, -2),
        (2, "k3", 4.389056, -6.389056),
        (-2, "k2", 2, 2),
        (-2, "k3", 1.135335, 0.864665),
        (2, "k1", -2, -2),
        (-2, "k1", 2, 2),
    ],
)
def test_kl_at_distance_two(d, estimator, value, gradient):
    lp = tensor(0.0).requires_grad_()
    kl = kl_penalty(lp, tensor(d), estimator)
    kl.sum().backward()
    assert kl.item() == pytest.approx(value, abs=1e-6)
    assert lp.grad.item() == pytest.approx(gradient, abs=1e-6)


def expected_gradient(estimator, *, sampled_from, weighted):
    """Gradient by logits of the expected penalty over all tokens, the sampling distribution held fixed."""
    logits = PI.log().requires_grad_()
    lp = torch.log_softmax(logits, 0)
    omega = (lp - sampled_from.log()).exp().detach() if weighted else torch.ones(3)
    (sampled_from * omega * kl_penalty(lp, REF.log(), estimator)).sum().backward()
    return logits.grad.tolist()


REVERSE = (0.237568, -0.010707, -0.226861)


@pytest.mark.parametrize("estimator", ["k1", "k2"])
def test_k1_and_k2_have_the_gradient_of_the_reverse_kl(estimator):
    found = expected_gradient(estimator, sampled_from=PI, weighted=False)
    assert found == pytest.approx(REVERSE, abs=1e-6)


def test_k3_has_the_gradient_of_the_forward_kl():
    found = expected_gradient("k3", sampled_from=PI, weighted=False)
    assert found == pytest.approx((0.25, 0.05, -0.3), abs=1e-6)


def test_off_policy_kl_needs_the_detached_weight():
    found = expected_gradient("k2", sampled_from=MU, weighted=True)
    assert found == pytest.approx(REVERSE, abs=1e-6)
    unweighted = expected_gradient("k2", sampled_from=MU, weighted=False)
    assert unweighted == pytest.approx((0.271039, 0.134142, -0.405181), abs=1e-6)


def test_policy_loss_weighs_the_kl_by_policy_over_sampler():
    settings = unweighted(kl_coef=1.0, kl_estimator="k2", rollout_is_threshold=9.0)
    logits = PI.log().requires_grad_()
    lp = torch.log_softmax(logits, 0)
    outputs = policy_loss(
        lp,
        torch.zeros(3),
        columns(positive=[0, 0, 0], weight=MU.tolist(), lp_old=MU.log(), lp_ref=REF.log().tolist()),
        settings,
        1.0,
    )
    outputs.loss.backward()
    assert logits.grad.tolist() == pytest.approx(REVERSE, abs=1e-6)


# Assembly


def run(*, lp, entropy=None, settings=None, denominator=1.0, **given) -> LossOutputs:
    entropy = torch.zeros_like(lp) if entropy is None else entropy
    return policy_loss(lp, entropy, columns(**given), settings or unweighted(), denominator)


def test_entropy_bonus_pushes_logits_towards_the_uniform_distribution():
    settings = unweighted(entropy_coef=1.0)
    p = tensor(0.5, 0.3, 0.2)
    logits = p.log().requires_grad_()
    probabilities = torch.softmax(logits, 0)
    entropy = -(probabilities * probabilities.log()).sum().reshape(1)
    outputs = run(
        lp=tensor(0), entropy=entropy, settings=settings, positive=[0], weight=[2], lp_old=[0]
    )
    outputs.loss.backward()
    assert outputs.loss.item() == pytest.approx(-2 * 1.029653, abs=1e-6)
    minus_twice = [-2 * g for g in (-0.168253, 0.052296, 0.115957)]
    assert logits.grad.tolist() == pytest.approx(minus_twice, abs=1e-6)


def test_first_step_has_ratio_one_no_clipping_and_gradient_minus_the_mean_advantage():
    lp = tensor(-0.3, -1.2).requires_grad_()
    outputs = run(lp=lp, positive=[0.5, 0], negative=[0.2, 0.7], lp_old=lp.detach())
    outputs.loss.backward()
    metrics = outputs.sums.metrics()
    assert metrics["train/ratio_max"] == metrics["train/ratio_min"] == 1
    assert metrics["clip_ratio/high_mean"] == metrics["clip_ratio/low_mean"] == 0
    assert metrics["train/approx_kl"] == 0
    assert lp.grad.tolist() == pytest.approx([-0.3, 0.7])


def test_clip_fractions_are_shares_of_mass():
    ratios = tensor(1.5, 1.0, 0.5, 4.0)
    settings = unweighted(clip_ratio_c=3.0)
    outputs = run(
        lp=ratios.log(),
        settings=settings,
        positive=[1, 3, 0, 0],
        negative=[0.25, 0, 0.5, 0.25],
        lp_old=[0] * 4,
    )
    metrics = outputs.sums.metrics()
    assert metrics["clip_ratio/high_mean"] == pytest.approx(0.25)
    assert metrics["clip_ratio/low_mean"] == pytest.approx(0.5)
    assert metrics["train/clip_dual"] == pytest.approx(0.25)
    assert metrics["clip_ratio/region_mean"] == pytest.approx(0.75)


def test_micro_batches_of_two_and_eight_tokens_give_the_token_mean():
    one = run(
        lp=tensor(*[0] * 2), positive=[0] * 2, negative=[1] * 2, lp_old=[0] * 2, denominator=10
    )
    two = run(lp=tensor(*[0] * 8), positive=[0] * 8, lp_old=[0] * 8, denominator=10)
    assert (one.loss + two.loss).item() == pytest.approx(0.2)


def test_any_split_gives_the_same_loss_gradient_and_diagnostics():
    generator = np.random.default_rng(3)
    n = 12
    given = {
        "positive": generator.random(n),
        "negative": generator.random(n),
        "weight": generator.random(n),
        "lp_old": generator.normal(-1, 0.3, n),
        "lp_beh": generator.normal(-1, 0.3, n),
        "lp_ref": generator.normal(-1, 0.3, n),
    }
    settings = LossSettings(kl_coef=0.1, entropy_coef=0.01, rollout_is="token")
    start = generator.normal(-1, 0.3, n)

    def over(bounds):
        lp = tensor(*start).requires_grad_()
        sums = LossSums()
        for a, b in itertools.pairwise(bounds):
            part = {name: values[a:b].tolist() for name, values in given.items()}
            outputs = run(lp=lp[a:b], entropy=-lp[a:b], settings=settings, denominator=7.0, **part)
            outputs.loss.backward()
            sums += outputs.sums
        return lp.grad.tolist(), sums.metrics() | {"loss": sums.loss}

    whole, split = over([0, n]), over([0, 1, 5, n])
    assert split[0] == pytest.approx(whole[0], abs=1e-14)
    assert split[1] == pytest.approx(whole[1], abs=1e-12)


def test_metrics_leave_out_what_is_absent():
    metrics = run(lp=tensor(-1.0), positive=[1], lp_old=[-1]).sums.metrics()
    assert "kl" not in metrics
    assert not any(name.startswith(("sampling/", "replay/")) for name in metrics)
