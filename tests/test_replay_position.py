import pytest

from tests.support_replay import PROBLEM, provenance, star_tree
from treerl.errors import StoreError
from treerl.replay import database, position
from treerl.replay.store import Store


def put(store, run, step=0):
    tree, _ = star_tree()
    return store.put_tree(run, tree, step=step, problem=PROBLEM, provenance=provenance())


def test_position_is_that_of_the_newest_tree_and_ticks_lie_between_trees(any_url):
    with Store.open(any_url) as store:
        assert store.position() == 0
        with store.write() as connection:
            first = position.tick(connection)
        run = store.start_run("a", {})
        tree = put(store, run)
        assert store.position() == tree > first > 0
        with store.write() as connection:
            second = position.tick(connection)
        assert store.position() == second > tree
        assert put(store, run, 1) > second


def interrupted_tick(store):
    with store.write() as connection:
        position.tick(connection)
        raise KeyboardInterrupt


def test_undone_tick_moves_nothing_that_was_seen(any_url):
    with Store.open(any_url) as store:
        with pytest.raises(KeyboardInterrupt):
            interrupted_tick(store)
        seen = store.position()
        assert put(store, store.start_run("a", {})) > seen


@pytest.mark.postgres
def test_position_waits_for_trees_under_way(pg_urls, monkeypatch):
    """An id given out before the position was taken must not become visible after it."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 100)
    with Store.open(pg_urls()) as store:
        with store.write() as connection:
            taken = position.tick(connection)
            with pytest.raises(StoreError, match="held a lock"):
                store.position()
        assert store.position() == taken
