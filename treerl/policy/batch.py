"""`PackedBatch`: several trees as rows of one token budget, and the per-token weights the loss needs.

Layout only: no torch here. The columns are those of a depth-first preorder; `prev` and `end` carry the
whole tree structure, so that nothing is rebuilt by comparing tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
FloatArray = NDArray[Any]


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One forward and backward pass: B rows of T token slots, spans in depth-first preorder.

    token, position int32[B, T]: position = depth in tokens, restarting from the fork in each child.
    prev int32[B, T]: flat index (b * T + t) of the predecessor, -1 for a tree's first token and for padding.
    end int32[B, T]: exclusive end, within the row, of what lies below the token's span; a key k of the same
    row is seen by query q iff k <= q < end[k]. Padding sees itself alone.
    tree, source int32[B, T]: which tree of the step, and the token's index in that tree's token columns
    (-1: padding).
    own bool[B, T]: the loss of this token is taken here (False: prompt, padding, repeated path of a tree
    that was cut in parts).
    positive, negative, weight float64[B, T]: the masses P, M, W of a token (sums over its rows of the
    positive and of the negated negative advantages, and of the row weights), before the global normaliser.
    lp_old, lp_beh, lp_ref float32[B, T]: NaN where absent.
    """

    token: IntArray
    position: IntArray
    prev: IntArray
    end: IntArray
    tree: IntArray
    source: IntArray
    own: NDArray[np.bool_]
    positive: FloatArray
    negative: FloatArray
    weight: FloatArray
    lp_old: FloatArray
    lp_beh: FloatArray
    lp_ref: FloatArray

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        rows, slots = self.token.shape
        return rows, slots
