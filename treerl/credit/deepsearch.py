"""DeepSearch's released node scores (arXiv 2509.25454, Eq. 15). The corrected form is the row `tree_value`.

The faithful form breaks both invariants: in an all-wrong group |tanh q| < 1 = |mean|, so inner nodes are
pushed up, in an all-right group down. It is here to be compared with.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from treerl.credit.rows import FloatArray, Forest, IntArray, Rows


@dataclass(frozen=True, slots=True)
class Discount:
    """Depth discount of the backup: max(d/L, minimum), or the release's max((d+1)/(L+1), minimum).

    Depth counts started chunks of `chunk_tokens` response tokens, or nodes where that is None.
    """

    form: Literal["paper", "released"] = "paper"
    minimum: float = 0.1
    chunk_tokens: int | None = None


PAPER = Discount()
"""The paper's discount, a chunk a node."""


def search_scores(
    forest: Forest, rows: Rows, outcome: FloatArray, discount: Discount
) -> FloatArray:
    """q of each node from the recorded leaves (the rows), float64[N]; 0 where none is below.

    Closed form of the backup, which does not depend on its order: the sum of the discounts over the right
    leaves if there is any, else minus the sum over the wrong ones. outcome: float64[N] on the scale +-1.
    """
    depth = _depth(forest, discount.chunk_tokens)
    which, node = forest.ancestors(rows.leaf, itself=True)
    d, length = depth[node], depth[rows.leaf][which]
    if discount.form == "paper":
        gamma = np.maximum(d / np.maximum(length, 1), discount.minimum)
    else:
        gamma = np.maximum((d + 1) / (length + 1), discount.minimum)
    right = (outcome[rows.leaf] > 0)[which]
    won = np.bincount(node[right], gamma[right], minlength=len(forest))
    lost = np.bincount(node[~right], gamma[~right], minlength=len(forest))
    return np.where(won > 0, won, -lost)


def faithful(forest: Forest, rows: Rows, outcome: FloatArray, discount: Discount) -> FloatArray:
    """score(u) - mean leaf score of the tree's rows, float64[E]; score = tanh(q) inside, outcome at a leaf."""
    score = np.tanh(search_scores(forest, rows, outcome, discount))
    leaf = outcome[rows.leaf]
    score[rows.leaf] = leaf
    trees = len(forest.roots)
    count = np.maximum(np.bincount(rows.tree, minlength=trees), 1)
    mean = np.bincount(rows.tree, leaf, minlength=trees) / count
    return score[rows.node] - mean[rows.tree][rows.row]


def _depth(forest: Forest, chunk_tokens: int | None) -> IntArray:
    if chunk_tokens is None:
        return forest.path_sum(np.ones(len(forest))) - 1
    end = forest.offset + forest.stop - forest.start
    tokens: IntArray = end - end[forest.root]
    return -(-tokens // chunk_tokens)
