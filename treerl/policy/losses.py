"""Losses over per-token tensors: clipped surrogate on two masses, truncated weights, KL, entropy.

Every term is a plain sum over the tokens of a micro-batch, divided by a denominator that was counted over
the whole optimizer step before its first forward: any split into micro-batches gives the same gradient.
A token that several training rows share carries P and M, the sums of its rows' positive and of their negated
negative advantages. Clip and dual clip act on each mass by its own rule, so the loss equals that of separate
rows at every ratio. Weights of whole rows and masks are part of the masses (treerl.credit.importance). Losses
with one ratio a row (GSPO) are not here; nor are the forward pass (treerl.policy.forward) and the loop over
batches (treerl.policy.update).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from treerl.config import LossSettings
from treerl.policy.loss_sums import PEAKS, SUMS, LossSums

LOG_RATIO_LIMIT = 20.0
"""|lp - lp_old| beyond this gives no gradient; e^20 is far outside every clip band."""


@dataclass(frozen=True, slots=True)
class TokenColumns:
    """What the loss knows of n trained tokens before the forward pass; each float[n] on the model's device.

    positive, negative, weight: the masses P, M, W. fresh: bool[n], False for tokens from the replay cache.
    lp_beh: log-probs by the policy that drew, NaN = absent. lp_old: denominators of the ratio, log-probs at the
    start of the update or `lp_beh` (of fresh tokens by `update.old_logprobs`, of cached ones by
    `loss.replay_is`). lp_ref: the reference's, None = no reference.
    lp_start: the trainer's under the weights that sampled, to compare with the sampler, NaN = not computed;
    None: lp_old is that.
    """

    positive: Tensor
    negative: Tensor
    weight: Tensor
    lp_old: Tensor
    lp_beh: Tensor
    fresh: Tensor
    lp_ref: Tensor | None = None
    lp_start: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LossOutputs:
    """`loss` (0-d, with gradient): this micro-batch's share of the step's loss; `sums`: its diagnostics."""

    loss: Tensor
    sums: LossSums


def token_ratio(lp: Tensor, lp_old: Tensor) -> Tensor:
    """exp(lp - lp_old), the difference clamped to +-20; float[n]."""
    return (lp - lp_old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def clipped_surrogate(
    ratio: Tensor, positive: Tensor, negative: Tensor, *, low: float, high: float, cap: float | None
) -> Tensor:
    """-P min(r, 1 + high) + M min(max(r, 1 - low), cap), float[n]; `cap` None: no dual clip.

    With P = [A]_+ and M = [-A]_+ this is PPO's max(-A r, -A clip(r)) with dual clip.
    """
    return negative * ratio.clamp(1.0 - low, cap) - positive * ratio.clamp(max=1.0 + high)


def truncated_weights(lp_old: Tensor, lp_beh: Tensor, threshold: float) -> Tensor:
    """Token weights min(exp(lp_old - lp_beh), threshold) from drawer to trainer, detached; float[n]."""
    return (lp_old - lp_beh).detach().exp().clamp(max=threshold)


def token_weights(columns: TokenColumns, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """What the correction of each token is: the weight of its surrogate, and the one that is due; float[n].

    The second is min(exp(lp_old - lp_beh), threshold) wherever a correction is set, by `rollout_is` for fresh
    and by `replay_is` for cached tokens. They differ where `rollout_is` acts on whole rows or masks: there it
    is part of the masses.
    """
    one = torch.ones_like(columns.lp_old)
    fresh = stale = one
    if settings.rollout_is != "none":
        fresh = truncated_weights(columns.lp_old, columns.lp_beh, settings.rollout_is_band[1])
    if settings.replay_is == "truncate":
        stale = truncated_weights(columns.lp_old, columns.lp_beh, settings.replay_is_threshold)
    due = torch.where(columns.fresh, fresh, stale)
    if settings.weighs_in_loss:
        return due, due
    return torch.where(columns.fresh, one, stale), due


def kl_penalty(lp: Tensor, lp_ref: Tensor, estimator: Literal["k1", "k2", "k3"]) -> Tensor:
    """KL(policy || reference) of the sampled tokens, d = lp_ref - lp; float[n].

    k2 = d^2 / 2: its gradient (lp - lp_ref) is, on-policy, that of the reverse KL. k3 = e^d - 1 - d: an
    unbiased value, but the gradient 1 - e^d is that of the *forward* KL. k1 = -d: an unbiased value whose own
    gradient is 1 for every token, 0 in expectation, no regularisation; so k1 here has the value of k1 and the
    gradient of k2 (score function form k1 * dlp of the reverse KL).
    """
    d = lp_ref - lp
    if estimator == "k3":
        return torch.expm1(d) - d
    k2 = 0.5 * d.square()
    return k2 if estimator == "k2" else k2 + (-d - k2).detach()


def policy_loss(
    lp: Tensor,
    entropy: Tensor | None,
    columns: TokenColumns,
    settings: LossSettings,
    denominator: float,
) -> LossOutputs:
    """The loss of one micro-batch: (surrogate + kl_coef * KL - entropy_coef * H) / denominator.

    lp, entropy: float[n] with gradient; entropy may be None if `entropy_coef` is 0. KL and entropy weigh a
    token by W, the sum over its rows, as the rows themselves would. The KL carries the detached weight
    omega = policy / drawer of its token, capped at `rollout_is_threshold`: 1 on-policy, and off-policy what
    keeps k2's gradient that of the reverse KL. Entropy belongs to the distribution, not to the token drawn,
    and takes no weight.
    """
    ratio = token_ratio(lp, columns.lp_old)
    surrogate = clipped_surrogate(
        ratio,
        columns.positive,
        columns.negative,
        low=settings.clip_ratio_low,
        high=settings.clip_ratio_high,
        cap=settings.clip_ratio_c,
    )
    weights, due = token_weights(columns, settings)
    total = (surrogate * weights).sum()
    kl = None
    if columns.lp_ref is not None:
        kl = kl_penalty(lp, columns.lp_ref, settings.kl_estimator)
    if kl is not None and settings.kl_coef:
        omega = (ratio.detach() * due).clamp(max=settings.rollout_is_band[1])
        total = total + settings.kl_coef * (columns.weight * omega * kl).sum()
    if entropy is not None and settings.entropy_coef:
        total = total - settings.entropy_coef * (columns.weight * entropy).sum()
    loss = total / denominator
    with torch.no_grad():
        sums = _diagnostics(loss, ratio, entropy, kl, columns, settings)
    return LossOutputs(loss, sums)


def _diagnostics(
    loss: Tensor,
    ratio: Tensor,
    entropy: Tensor | None,
    kl: Tensor | None,
    columns: TokenColumns,
    settings: LossSettings,
) -> LossSums:
    """All sums and maxima of a micro-batch in one transfer to the host."""
    high = ratio > 1.0 + settings.clip_ratio_high
    low = ratio < 1.0 - settings.clip_ratio_low
    none = torch.zeros_like(high)
    dual = none if settings.clip_ratio_c is None else ratio > settings.clip_ratio_c
    fresh, stale = columns.fresh, ~columns.fresh
    start = columns.lp_old if columns.lp_start is None else columns.lp_start
    compared = fresh & columns.lp_beh.isfinite() & start.isfinite()
    d = torch.where(compared, start - columns.lp_beh, 0.0)
    v = torch.where(compared, d.exp(), 0.0)
    # Under "ratio" lp_old is the drawer's already, and the ratio is the weight.
    w = ratio if settings.replay_is == "ratio" else token_ratio(columns.lp_old, columns.lp_beh)
    w = torch.where(stale, w, 0.0)
    absent = torch.full_like(ratio, torch.nan)
    terms = {
        "loss": loss.reshape(1),
        "tokens": torch.ones_like(ratio),
        "positive": columns.positive,
        "negative": columns.negative,
        "clip_high": columns.positive * high,
        "clip_low": columns.negative * low,
        "clip_dual": columns.negative * dual,
        "out_of_band": high | low,
        "ratio": ratio,
        "approx_kl": (ratio - 1.0 - ratio.log()) * fresh,
        "entropy": absent if entropy is None else entropy,
        "kl": absent if kl is None else kl,
        "compared": compared,
        "logp_difference": d,
        "logp_abs": d.abs(),
        "mismatch_k3": torch.where(compared, v - 1.0 - d, 0.0),
        "is_weight": v,
        "is_weight_square": v.square(),
        "is_capped": v > settings.rollout_is_band[1],
        "cached": stale,
        "cached_weight": w,
        "cached_weight_square": w.square(),
        "cached_capped": w > settings.replay_is_threshold,
    }
    peaks = {
        "ratio_max": ratio,
        "ratio_min_negated": -ratio,
        "logp_abs_max": d.abs(),
        "is_weight_max": v,
        "is_weight_min_negated": torch.where(compared, -v, -torch.inf),
        "cached_weight_max": w,
    }
    numbers = [terms[name].sum(dtype=torch.float64) for name in SUMS]
    numbers += [
        peaks[name].max().double() if len(ratio) else ratio.new_tensor(-torch.inf).double()
        for name in PEAKS
    ]
    return LossSums.of(torch.stack(numbers).tolist())
