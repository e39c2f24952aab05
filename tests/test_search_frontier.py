"""The frontier against a search through all of its points, and the cheap reads that it stands on."""

import random

import numpy as np
import pytest

from treerl.canon import derive_seed, derive_seeds
from treerl.config import DeepSearchSearch
from treerl.search.backup import Tally
from treerl.search.columns import Tokens
from treerl.search.frontier import Frontier
from treerl.search.select import own_score, parent_score

PLAIN = DeepSearchSearch()
ALL_WEIGHTS = DeepSearchSearch(own_weight=0.3, uncertainty_weight=0.2, depth_bonus="log")
SEED, MAX_DEPTH = 3, 8


def best_of_all(settings, root, points):
    """Keys of the best open point of each lane, best first, by looking at every point."""
    lanes = {}
    for point in points:
        if not point.is_open:
            continue
        parent = point.above[-1].tally if point.above else root
        own = own_score(
            settings,
            own_mean=point.tally.mean,
            uncertainty=point.uncertainty,
            depth=point.depth,
            max_depth=MAX_DEPTH,
        )
        score = round(parent_score(settings, parent.mean) + own, 9)
        rank = -score, point.tie, point.key
        lanes[point.lane] = min(rank, lanes.get(point.lane, rank))
    return [key for _, _, key in sorted(lanes.values())]


@pytest.mark.parametrize("settings", [PLAIN, ALL_WEIGHTS], ids=["plain", "all weights"])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_of_each_lane_is_what_a_look_at_all_points_finds(settings, seed):
    rng = random.Random(seed)
    root, points = Tally(), []
    frontier = Frontier(settings, seed=SEED, max_depth=MAX_DEPTH, root=root)
    for turn in range(300):
        above = rng.choice([None, *points]) if points else None
        if above is not None and above.depth == MAX_DEPTH:
            above = None
        new = frontier.add(
            turn,
            lane=above.lane if above else rng.randrange(5),
            above=above,
            tally=Tally(),
            uncertainty=rng.choice([0.5, 0.5, 1.5, float("nan")]),
            depth=above.depth + 1 if above else 1,
            tie=(rng.randrange(10**6), turn),
        )
        points.append(new)
        for tally in (root, *(point.tally for point in new.path)):
            tally.add(rng.choice([0.25, 0.5, 1.0]), rng.random() < 0.3)
        frontier.backed_up(new.path)
        if turn % 3 == 0:
            best = frontier.best()
            assert [point.key for point in best] == best_of_all(settings, root, points)
            for point in best[: rng.randrange(3)]:
                frontier.use(point)
    assert sum(point.is_open for point in points) < 290


def test_a_frontier_without_an_open_point_has_no_best():
    frontier = Frontier(PLAIN, seed=SEED, max_depth=MAX_DEPTH, root=Tally())
    assert frontier.best() == []
    point = frontier.add(
        "only", lane=0, above=None, tally=Tally(), uncertainty=0.0, depth=1, tie=(1, 1)
    )
    assert frontier.best() == [point]
    frontier.use(point)
    assert frontier.best() == []


def test_seeds_of_one_point_are_those_derived_one_by_one():
    assert derive_seeds(7, 12, numbers=(0, 1, -1)) == tuple(
        derive_seed(7, 12, k) for k in (0, 1, -1)
    )
    assert derive_seeds("a", b"b", None, numbers=()) == ()


def test_columns_show_all_rows_after_they_have_grown():
    tokens = Tokens()
    tokens.extend(3, token=[1, 2, 3], logprob=-1.0)
    seen = tokens.token
    assert seen.tolist() == [1, 2, 3]
    row = tokens.append(token=9)
    assert tokens.token.tolist() == [1, 2, 3, 9]
    assert tokens.at("token", row) == 9
    assert np.isnan(tokens.at("logprob", row))
    assert tokens.at("mask", row) is True
    tokens.extend(1000, token=5)
    tokens.token[1003] = 7
    assert (tokens.at("token", 1003), len(tokens.token)) == (7, 1004)
    assert np.isnan(tokens.logprob[4:]).all()
