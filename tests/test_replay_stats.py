import numpy as np
import pytest

from tests.support_replay import PROBLEM, fill_two_runs
from treerl.replay.check import check
from treerl.replay.lease import queue_trees
from treerl.replay.pool import Pool, PoolSettings
from treerl.replay.stats import Drawn, problems, stats
from treerl.replay.store import Store


@pytest.fixture
def store(any_url):
    with Store.open(any_url) as store:
        fill_two_runs(store)
        yield store


def test_totals_and_what_a_run_drew_from_another(store):
    found = stats(store)
    assert (found.problems, found.prompts, found.trees) == (2, 2, 4)
    assert (found.solutions, found.right, found.draws) == (3 + 4, 2, 2 + 4 + 6)
    assert found.tokens == 3 + 2 + 4 + 5 + 3 + 2 + 10 + 3
    assert found.verdicts == {"scored": 5, "skipped": 1, "timeout": 1}
    assert found.bytes > 0
    a, b = found.runs
    assert (a.name, a.steps, a.trees, a.leaves, a.right, a.generated, a.cached) == (
        "a",
        1,
        1,
        2,
        1,
        5,
        0,
    )
    assert a.drawn_from == ()
    assert (b.steps, b.trees, b.leaves, b.right, b.cached) == (2, 3, 2 + 5, 1, 6)
    assert b.drawn_from == (Drawn("a", draws=2, solutions=1, tokens=6),)
    # 36 tokens for 7 fresh leaves: two leaves of another run saved about 10.
    assert (b.generated, b.saved, a.saved) == (36, 10, 0)


def test_trees_that_wait_to_be_searched_are_counted_apart(store):
    run = store.start_run("c", {})
    queue_trees(store, run, [PROBLEM], step=0)
    found = stats(store)
    assert (found.trees, found.queued) == (4, 1)
    assert found.runs[-1].trees == 0


def test_rows_drawn_from_the_pools_of_a_run_are_counted(store):
    run = next(info.id for info in store.runs() if info.name == "a")
    pool = Pool(store, run, "good", PoolSettings())
    pool.put({1: 1.0, 2: 1.0}, step=0)
    for step in (1, 2):
        pool.draw(2, step=step, generator=np.random.default_rng(step))
    assert [found.replayed for found in stats(store).runs] == [4, 0]


def test_problems_are_listed_with_their_fresh_leaves(store):
    first, second = problems(store)
    assert first.problem == PROBLEM
    assert (first.trees, first.leaves, first.right, first.solutions) == (3, 4, 1, 3)
    assert (second.trees, second.leaves, second.right, second.solutions) == (1, 5, 1, 4)
    assert len(problems(store, limit=1)) == 1


def test_stats_of_an_empty_cache(any_url):
    with Store.open(any_url) as store:
        found = stats(store)
        assert (found.trees, found.tokens, found.runs) == (0, 0, ())
        assert problems(store) == []
        assert list(check(store)) == []
