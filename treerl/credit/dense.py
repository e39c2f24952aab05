"""Dense token signals that are added to an outcome estimator, and DeepSearch's released node score.

Signals are made from current log-probs, never from stored ones. A dense part breaks both invariants (it
reads no outcome); the outcome part it is added to keeps them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from treerl.credit.rows import FloatArray, Forest, Rows, step_end, suffix_sum
from treerl.errors import UpdateError


@dataclass(frozen=True, slots=True)
class Signals:
    """Log-probs over the token columns of one tree, float[n_tokens]; NaN on tokens that are not trained.

    lp_old: the policy's at the start of the update. lp_ref: the reference's.
    """

    lp_old: FloatArray
    lp_ref: FloatArray


def log_ratio(forest: Forest, rows: Rows, signals: Sequence[Signals] | None) -> FloatArray:
    """delta = lp_old - lp_ref over all tokens of the forest, float64[P]; 0 on tokens in no row.

    Raises ValueError where signals are absent or of the wrong length, UpdateError where one is not finite
    on a trained token.
    """
    if signals is None:
        raise ValueError("this estimator needs `signals`: lp_old and lp_ref of every tree")
    sizes = np.diff(forest.token_start).tolist()
    given = [(len(s.lp_old), len(s.lp_ref)) for s in signals]
    if given != [(size, size) for size in sizes]:
        raise ValueError(f"signals have {given} tokens, the trees {sizes}")
    delta = np.zeros(int(forest.token_start[-1]))
    if len(rows.token):
        raw = np.concatenate([np.asarray(s.lp_old, np.float64) - s.lp_ref for s in signals])
        delta[rows.token] = raw[rows.token]
    if not np.isfinite(delta).all():
        bad = int(np.flatnonzero(~np.isfinite(delta))[0])
        tree = int(np.searchsorted(forest.token_start, bad, side="right")) - 1
        token = bad - int(forest.token_start[tree])
        raise UpdateError(
            f"log-prob of policy or reference is not finite at token {token} of tree {tree} of the step"
        )
    return delta


def future_kl(
    forest: Forest,
    rows: Rows,
    delta: FloatArray,
    *,
    beta: float,
    step: int = 1,
    at_node_end: bool = True,
) -> FloatArray:
    """-beta * c(e(t)), c(t) = sum of delta from t to the end of the row, float64[E]. PRL, arXiv 2601.10201.

    e(t) is the last token of t's step; step = 1 is FRPO. The released code lets steps straddle forks
    (at_node_end = False): a shared token's step then ends elsewhere in each row.
    """
    suffix = suffix_sum(rows, delta[rows.token])
    return -beta * suffix[step_end(rows, forest, step, at_node_end=at_node_end)]


def implicit_return(
    rows: Rows,
    delta: FloatArray,
    *,
    beta: float,
    baseline: Literal["code", "paper"] = "code",
) -> FloatArray:
    """Return of PRIME's implicit token rewards, float64[E]; the policy itself is the scorer. arXiv 2502.01456.

    g = q K/(K-1) - sum_j m_j/(K-1) with q = beta * delta, K rows of the tree and m_j the mean of q in row j;
    `paper`: q - sum_{j != i} m_j/(K-1). The return is the sum of g to the end of the row; a single row has 0.
    """
    q = beta * delta[rows.token]
    mean = np.bincount(rows.row, q, minlength=len(rows)) / np.maximum(rows.length, 1)
    count = np.bincount(rows.tree)[rows.tree] if len(rows) else np.zeros(0)
    others = np.maximum(count - 1, 1)
    total = np.bincount(rows.tree, mean)[rows.tree] if len(rows) else np.zeros(0)
    if baseline == "code":
        g = q * (count / others)[rows.row] - (total / others)[rows.row]
    else:
        g = q - ((total - mean) / others)[rows.row]
    return suffix_sum(rows, np.where((count > 1)[rows.row], g, 0.0))


def soft_values(forest: Forest, delta: FloatArray, *, beta: float) -> FloatArray:
    """beta * sum of delta along the path to each node's end, float64[N]: ImplicitPRM, arXiv 2412.01981."""
    prefix = np.concatenate(([0.0], np.cumsum(delta)))
    return beta * forest.path_sum(prefix[forest.stop] - prefix[forest.start])
