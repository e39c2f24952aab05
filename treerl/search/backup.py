"""DeepSearch's backup (arXiv 2509.25454): depth discount and search score q, as pure functions.

q is a steering score, a sum and no estimate of success: once a leaf below is right, wrong ones stop counting.
It does not depend on the order of backups (closed form), so one pass over the leaves gives it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

from treerl.search.tree import NO_PARENT, Tree

Gamma = Callable[[int, int], float]
"""(depth of the node, depth of the leaf), in chunks, to the weight of the leaf's outcome at the node."""


def gamma_paper(depth: int, leaf_depth: int, *, floor: float) -> float:
    """Eq. 3: max(d/L, floor)."""
    return max(depth / leaf_depth, floor)


def gamma_released(depth: int, leaf_depth: int, *, floor: float) -> float:
    """The released code: max((d+1)/(L+1), floor)."""
    return max((depth + 1) / (leaf_depth + 1), floor)


def make_gamma(kind: Literal["paper", "released"], floor: float) -> Gamma:
    """The depth discount that the recipe names."""
    return partial(gamma_paper if kind == "paper" else gamma_released, floor=floor)


Gammas = Callable[[int], Sequence[float]]
"""Depth of a leaf in chunks to the weights of its outcome at depths 0, 1, ... up to its own."""


def gamma_table(kind: Literal["paper", "released"], floor: float) -> Gammas:
    """`make_gamma`, each depth of a leaf computed once."""
    gamma = make_gamma(kind, floor)

    @cache
    def gammas(leaf_depth: int) -> tuple[float, ...]:
        return tuple(gamma(depth, leaf_depth) for depth in range(leaf_depth + 1))

    return gammas


@dataclass(slots=True)
class Tally:
    """What was backed up through a point: sums of gamma over right and over wrong leaves, and visits N."""

    right: float = 0.0
    wrong: float = 0.0
    visits: int = 0

    def add(self, gamma: float, is_right: bool) -> None:
        """One backup."""
        self.visits += 1
        if is_right:
            self.right += gamma
        else:
            self.wrong += gamma

    @property
    def q(self) -> float:
        """Closed form: the sum over right leaves if there is any, else minus the sum over wrong ones."""
        return self.right if self.right > 0 else -self.wrong

    @property
    def mean(self) -> float:
        """Q = q/N, 0 without visits."""
        if not self.visits:
            return 0.0
        return (self.right if self.right > 0 else -self.wrong) / self.visits


def chunks(tokens: int, chunk_tokens: int) -> int:
    """Depth in chunks of a point that many tokens into the response (a started chunk counts)."""
    return -(-tokens // chunk_tokens)


def store_tallies(
    tree: Tree, leaves: Iterable[tuple[int, bool]], gammas: Gammas, chunk_tokens: int
) -> None:
    """Sets visits = N and value_sum = q at the end of every node, from (leaf, right?) pairs."""
    right, wrong, visits = [0.0] * len(tree), [0.0] * len(tree), [0] * len(tree)
    nodes = tree.nodes
    parent = nodes.parent.tolist()
    ends = nodes.offset + nodes.stop - nodes.start - tree.n_prompt
    depths = [chunks(end, chunk_tokens) for end in ends.tolist()]
    for leaf, is_right in leaves:
        weights, sums, row = gammas(depths[leaf]), right if is_right else wrong, leaf
        while row != NO_PARENT:
            sums[row] += weights[depths[row]]
            visits[row] += 1
            row = parent[row]
    tallies = map(Tally, right, wrong, visits)
    nodes.visits[:] = visits
    nodes.value_sum[:] = [tally.q for tally in tallies]
