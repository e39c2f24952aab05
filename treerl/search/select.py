"""Which point of a tree to grow next: scores of DeepSearch (arXiv 2509.25454) and seeded tie-breaks."""

import math
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import TypeVar

from treerl.canon import derive_seed
from treerl.config import DeepSearchSearch
from treerl.search.tree import Tree

K = TypeVar("K", bound=Hashable)


def depth_bonus(settings: DeepSearchSearch, depth: int, max_depth: int) -> float:
    """D of the frontier score: sqrt(d/d_max), d, or log(d+1)."""
    match settings.depth_bonus:
        case "sqrt":
            return math.sqrt(depth / max_depth)
        case "linear":
            return float(depth)
        case "log":
            return math.log(depth + 1)


def parent_score(settings: DeepSearchSearch, mean: float) -> float:
    """l1 tanh(Q_parent), the part of F that siblings share."""
    return settings.parent_weight * math.tanh(mean)


def own_score(
    settings: DeepSearchSearch, *, own_mean: float, uncertainty: float, depth: int, max_depth: int
) -> float:
    """l4 tanh(Q) + l2 uncertainty + l3 D(depth), the rest of F. Unknown (NaN) uncertainty adds 0."""
    score = settings.own_weight * math.tanh(own_mean)
    if settings.uncertainty_weight and not math.isnan(uncertainty):
        score += settings.uncertainty_weight * uncertainty
    return score + settings.depth_weight * depth_bonus(settings, depth, max_depth)


def uct_score(mean: float, visits: int, parent_visits: int, weight: float) -> float:
    """Q + lambda sqrt(ln N_parent / N); the second term is 0 where a count is 0."""
    if visits == 0 or parent_visits == 0:
        return mean
    return mean + weight * math.sqrt(math.log(parent_visits) / visits)


def ranked(tree: Tree, scores: Iterable[tuple[K, float, int, int]]) -> list[K]:
    """Keys from the best score to the worst; rows are (key, score, draw, offset).

    Scores closer than 1e-9 tie, so that the order of additions behind them does not matter. Ties are broken
    by a seed of the point itself: not by row, not by arrival, and never always for the first.
    """
    rows = [(round(score, 9), draw, offset, key) for key, score, draw, offset in scores]
    times = Counter(score for score, _, _, _ in rows)

    def rank(row: tuple[float, int, int, K]) -> tuple[float, int]:
        score, draw, offset, _ = row
        if times[score] == 1:
            return -score, 0
        return -score, derive_seed(tree.seed, "tie", int(tree.draws.seed[draw]), offset)

    return [key for _, _, _, key in sorted(rows, key=rank)]
