"""`TokenCredit`: what credit hands to the policy update, one per tree.

A shared token stands in several training rows. Per-token surrogates are linear in the advantage on each
side of zero, so the two sums P (rows with A > 0) and M (rows with A < 0) carry all that the loss needs, at
every ratio (two masses per unique token).
"""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

FloatArray = NDArray[Any]


@dataclass(frozen=True, slots=True)
class TokenCredit:
    """Masses over the token columns of one tree, float64[n_tokens]; zero on prompt and untrained tokens.

    positive = sum over rows i of w_i [A_it]_+, negative = sum of w_i [-A_it]_+, weight = sum of w_i, with
    w_i the row weight of the aggregation mode without its global normaliser (1, or 1/T_i). The loss of an
    optimizer step divides the sum over its trees by the sum of their `denominator` (rows * tokens for
    token-mean, rows for the sequence means, rows * max_completion_length for
    seq-mean-token-sum-norm, sum of node weights for node estimators).
    """

    positive: FloatArray
    negative: FloatArray
    weight: FloatArray
    denominator: float
    n_rows: int
