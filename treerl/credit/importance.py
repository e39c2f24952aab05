"""Importance weights that act on training rows: one a leaf, or masks. They become part of the masses.

The sampler and the trainer give one token two log-probs; v = exp(lp_old - lp_beh) corrects for it. Where v
is one factor a token, cut at a cap, the loss applies it (treerl.policy.losses). Here is what only rows know: a
sequence weight V_i = product of v over the row, which differs between the leaves below a shared token, and
masks, whose rejected tokens leave the denominators too. After Liu et al. and Yao et al. (TIS, 2025), IcePop
(2025); the form on trees is treerl's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from treerl.credit.rows import BoolArray, FloatArray, Rows

LOG_LIMIT = 20.0
"""|log V| is cut to this: e^20 is far over every threshold, and products of a long row overflow."""


@dataclass(frozen=True, slots=True)
class Importance:
    """Log-weights of one step's tokens and the rule that uses them.

    log_weights: one float64[n_tokens] a tree, lp_old - lp_beh; 0 where no weight applies (prompt, cached
    tokens). low, high: weights are cut at `high`, or (mask) their token or row is rejected outside [low, high].
    """

    level: Literal["token", "sequence"]
    mask: bool
    low: float
    high: float
    log_weights: Sequence[FloatArray]


@dataclass(frozen=True, slots=True)
class Weighed:
    """Rows without what was rejected, and a factor for the advantage of each entry left.

    kept: bool over the entries before. leaf_ess: (sum V)^2 / (B sum V^2) over rows, before cap and mask; NaN
    for token weights. rejected: share of row entries that left.
    """

    rows: Rows
    factor: FloatArray
    kept: BoolArray
    leaf_ess: float
    rejected: float


def weigh_rows(rows: Rows, importance: Importance) -> Weighed:
    """Applies the weights to `rows`; entries' tokens index the trees' columns laid behind one another."""
    columns = importance.log_weights
    log_v = (np.concatenate(columns) if len(columns) else np.zeros(0))[rows.token]
    leaf_ess = float("nan")
    if importance.level == "sequence":
        total = np.bincount(rows.row, log_v, minlength=len(rows))
        leaf_ess = effective_share(_limited_exp(total))
        log_v = total[rows.row]
    factor = _limited_exp(log_v)
    kept = np.ones(len(factor), np.bool_)
    if importance.mask:
        kept = (importance.low <= factor) & (factor <= importance.high)
    else:
        factor = np.minimum(factor, importance.high)
    rejected = float(1.0 - kept.mean()) if len(kept) else 0.0
    return Weighed(keep_entries(rows, kept), factor[kept], kept, leaf_ess, rejected)


def keep_entries(rows: Rows, kept: BoolArray) -> Rows:
    """The rows with the entries `kept` (bool[E]) only: T_i counts what is left, and may be 0."""
    row = rows.row[kept]
    return replace(
        rows,
        row=row,
        token=rows.token[kept],
        node=rows.node[kept],
        position=rows.position[kept],
        length=np.bincount(row, minlength=len(rows)),
    )


def effective_share(weights: FloatArray) -> float:
    """(sum v)^2 / (n sum v^2), in (0, 1]; NaN without weights."""
    if len(weights) == 0:
        return float("nan")
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))


def _limited_exp(values: FloatArray) -> FloatArray:
    limited: FloatArray = np.exp(np.clip(values, -LOG_LIMIT, LOG_LIMIT))
    return limited
