"""`LossSums`: diagnostics of the loss that add over micro-batches, and the metrics they give.

Sums and maxima only; fractions and means are taken once, at the end, so that the numbers do not depend on
how a step was split.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

SUMS = (
    "loss",
    "tokens",
    "positive",
    "negative",
    "clip_high",
    "clip_low",
    "clip_dual",
    "out_of_band",
    "ratio",
    "approx_kl",
    "entropy",
    "kl",
    "compared",
    "logp_difference",
    "logp_abs",
    "mismatch_k3",
    "is_weight",
    "is_weight_square",
    "is_capped",
    "cached",
    "cached_weight",
    "cached_weight_square",
    "cached_capped",
)
"""Fields that add."""
PEAKS = (
    "ratio_max",
    "ratio_min_negated",
    "logp_abs_max",
    "is_weight_max",
    "is_weight_min_negated",
    "cached_weight_max",
)
"""Fields of which the largest stays."""


@dataclass(frozen=True, slots=True)
class LossSums:
    """Over trained tokens: sums (SUMS) and maxima (PEAKS).

    positive, negative: masses P and M. clip_high: P where the ratio is above the band; clip_low, clip_dual: M
    where it is below the band, above the cap. out_of_band: tokens outside the band, whatever their sign.
    entropy, kl (the estimator's, to the reference): NaN if not computed. approx_kl: k3 of KL(old || policy)
    over fresh tokens. compared: fresh tokens that have the sampler's log-prob; over these, d = lp_old - lp_beh
    (logp_*), k3 of KL(sampler || trainer), weights v = e^d before the cap (is_*). cached: tokens from the
    replay cache; over these, weights w = policy / drawer before the cap (cached_*).
    """

    loss: float = 0.0
    tokens: float = 0.0
    positive: float = 0.0
    negative: float = 0.0
    clip_high: float = 0.0
    clip_low: float = 0.0
    clip_dual: float = 0.0
    out_of_band: float = 0.0
    ratio: float = 0.0
    approx_kl: float = 0.0
    entropy: float = 0.0
    kl: float = 0.0
    compared: float = 0.0
    logp_difference: float = 0.0
    logp_abs: float = 0.0
    mismatch_k3: float = 0.0
    is_weight: float = 0.0
    is_weight_square: float = 0.0
    is_capped: float = 0.0
    cached: float = 0.0
    cached_weight: float = 0.0
    cached_weight_square: float = 0.0
    cached_capped: float = 0.0
    ratio_max: float = -float("inf")
    ratio_min_negated: float = -float("inf")
    logp_abs_max: float = -float("inf")
    is_weight_max: float = -float("inf")
    is_weight_min_negated: float = -float("inf")
    cached_weight_max: float = -float("inf")

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Self:
        """From the numbers in the order SUMS, PEAKS."""
        return cls(**dict(zip((*SUMS, *PEAKS), numbers, strict=True)))

    def __add__(self, other: "LossSums") -> "LossSums":
        """Both micro-batches together."""
        joined = {}
        for field in fields(self):
            mine, its = getattr(self, field.name), getattr(other, field.name)
            joined[field.name] = max(mine, its) if field.name in PEAKS else mine + its
        return LossSums(**joined)

    def metrics(self) -> dict[str, float]:
        """Means and fractions under the names of the metrics file; absent ones are left out.

        Clip fractions are shares of mass, P for the upper side, M for the lower one and the dual clip.
        """
        values: dict[str, float] = {}
        if self.tokens:
            values |= {
                "clip_ratio/high_mean": _share(self.clip_high, self.positive),
                "clip_ratio/low_mean": _share(self.clip_low, self.negative),
                "clip_ratio/region_mean": self.out_of_band / self.tokens,
                "train/clip_dual": _share(self.clip_dual, self.negative),
                "train/ratio_mean": self.ratio / self.tokens,
                "train/ratio_max": self.ratio_max,
                "train/ratio_min": -self.ratio_min_negated,
            }
            for name, total in (("entropy", self.entropy), ("kl", self.kl)):
                if not math.isnan(total):
                    values[name] = total / self.tokens
            if self.tokens > self.cached:
                values["train/approx_kl"] = self.approx_kl / (self.tokens - self.cached)
        if self.compared:
            values |= {
                "sampling/sampling_logp_difference/mean": self.logp_abs / self.compared,
                "sampling/sampling_logp_difference/max": self.logp_abs_max,
                "sampling/importance_sampling_ratio/min": -self.is_weight_min_negated,
                "sampling/importance_sampling_ratio/mean": self.is_weight / self.compared,
                "sampling/importance_sampling_ratio/max": self.is_weight_max,
                "mismatch/k1": -self.logp_difference / self.compared,
                "mismatch/kl": self.mismatch_k3 / self.compared,
                "mismatch/ess": _effective(self.is_weight, self.is_weight_square, self.compared),
                "mismatch/capped_frac": self.is_capped / self.compared,
            }
        if self.cached:
            values |= {
                "replay/trained_tokens": self.cached,
                "replay/is_mean": self.cached_weight / self.cached,
                "replay/is_max": self.cached_weight_max,
                "replay/capped_frac": self.cached_capped / self.cached,
                "replay/ess": _effective(
                    self.cached_weight, self.cached_weight_square, self.cached
                ),
            }
        return values


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _effective(total: float, squares: float, count: float) -> float:
    """(sum w)^2 / (n sum w^2), in (0, 1]."""
    return total * total / (count * squares) if squares else 0.0
