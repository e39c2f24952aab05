import pytest
import sqlalchemy as sa

from tests.support_plans import table_scans
from tests.support_replay import PROBLEM, fill_two_runs, provenance, star_tree
from treerl.errors import StoreError
from treerl.replay import schema
from treerl.replay.check import check
from treerl.replay.gc import collect
from treerl.replay.store import Store


@pytest.fixture
def store(any_url):
    with Store.open(any_url) as store:
        fill_two_runs(store)
        yield store


def count(store, table):
    with store.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def counts(store):
    return {t.name: count(store, t) for t in (schema.tree, schema.solution, schema.node)}


def test_nothing_goes_that_is_used(store):
    before = counts(store)
    found = collect(store)
    assert (found.runs, found.trees, found.solutions, found.nodes) == (0, 0, 0, 0)
    assert counts(store) == before


def test_run_goes_with_what_only_it_used(store):
    """Run b has the solution of a as a copy, and four of another problem and one more of its own."""
    told = collect(store, ["b"], dry_run=True)
    assert (told.runs, told.trees, told.solutions, told.nodes) == (1, 3, 5, 6)
    assert counts(store) == {"tree": 4, "solution": 7, "node": 8}
    done = collect(store, ["b"])
    assert (done.runs, done.trees, done.solutions, done.nodes) == (1, 3, 5, 6)
    assert counts(store) == {"tree": 1, "solution": 2, "node": 2}
    assert [run.name for run in store.runs()] == ["a"]
    assert list(check(store)) == []


def test_copies_outlive_the_run_they_came_from(store):
    collect(store, ["a"])
    assert len(store.trees()) == 3
    assert list(check(store)) == []
    # A writer that was open all the time goes on.
    store.put_tree(
        store.start_run("c", {}), star_tree()[0], step=0, problem=PROBLEM, provenance=provenance()
    )
    assert list(check(store)) == []


def test_unknown_run_is_told(store):
    with pytest.raises(StoreError, match="no run is called x: `treerl replay ls runs`"):
        collect(store, ["b", "x"])
    assert len(store.runs()) == 2


def test_space_is_given_back(tmp_path):
    with Store.open(f"sqlite:///{tmp_path}/r.db") as store:
        run = store.start_run("big", {})
        for step in range(30):
            leaves = [[step + 4, k, *range(60)] for k in range(20)]
            tree, _ = star_tree(seed=step, leaves=leaves, rewards=[0.0] * 20)
            store.put_tree(run, tree, step=step, problem=PROBLEM, provenance=provenance())
        found = collect(store, ["big"])
        assert found.bytes_after < found.bytes_before / 2


def test_rows_are_found_by_index(store):
    with table_scans(store) as scans:
        collect(store, ["b"])
    assert {table for table, _ in scans} <= {"solution", "node", "run", "problem", "kept"}
