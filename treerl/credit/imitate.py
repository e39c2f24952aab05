"""Self-imitation: the credit of stored rows that are trained on again, and their weight beside fresh ones.

After SPEAR (arXiv 2509.22601): stored rewards are compared with a baseline of today, rows that are not above
it teach nothing, and the weight of the rest rises along a half cosine. Also the constant factor of R^3
(arXiv 2601.19620) on cached rows.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from treerl.credit.assign import row_masses
from treerl.credit.masses import TokenCredit
from treerl.credit.rows import FloatArray, Forest, training_rows
from treerl.search.tree import Tree


def rebased(rewards: FloatArray, group_means: Sequence[float]) -> FloatArray:
    """A' = [R - b]_+ with b the median of the last group means (at least one); float64[n]."""
    return np.maximum(np.asarray(rewards, np.float64) - float(np.median(group_means)), 0.0)


def ramp(step: int, steps: int) -> float:
    """.5 (1 - cos(pi min(step, steps) / steps)): 0 at step 0, 1 from `steps` on."""
    return 0.5 * (1.0 - math.cos(math.pi * min(step, steps) / steps))


def imitation_credits(
    trees: Sequence[Tree],
    advantages: Sequence[FloatArray],
    *,
    weight: float,
    loss_agg_mode: str,
) -> list[TokenCredit]:
    """Masses of trees of stored rows; advantages: float64[leaves] a tree, in the order of `tree.leaves()`.

    `weight` multiplies the masses and not the denominators: a replayed token weighs so much beside a fresh
    one. KL and entropy do not act on replayed tokens, so their own weight is 0.
    """
    forest = Forest.of(trees)
    rows = training_rows(forest)
    of_node = np.zeros(len(forest))
    for root, tree, values in zip(forest.roots, trees, advantages, strict=True):
        of_node[root + tree.leaves()] = values
    entries = weight * of_node[rows.leaf][rows.row]
    lengths = [float(tree.max_completion_length) for tree in trees]
    credits = row_masses(forest, rows, entries, "n", loss_agg_mode, lengths)
    return [replace(credit, weight=np.zeros_like(credit.weight)) for credit in credits]


def scaled_cached(tree: Tree, credit: TokenCredit, scale: float) -> TokenCredit:
    """The masses of tokens from the cache times `scale`."""
    draws = tree.draws
    cached = np.repeat(draws.source > 0, draws.length)
    factor = np.where(cached, scale, 1.0)
    return replace(credit, positive=credit.positive * factor, negative=credit.negative * factor)


def row_ratios(tree: Tree, lp: FloatArray) -> list[FloatArray]:
    """exp(lp - stored log-prob) of the trained tokens of each leaf's path; lp float[n_tokens]."""
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = np.exp(np.clip(lp - tree.tokens.logprob, -20.0, 20.0))
    found = []
    for leaf in tree.leaves().tolist():
        path = tree.path_index(leaf)
        found.append(ratio[path[tree.tokens.mask[path]]])
    return found
