import pytest
import sqlalchemy as sa

from tests.support_replay import (
    PROBLEM,
    assert_same_tree,
    branched_tree,
    provenance,
    star_tree,
    stored_steps,
)
from treerl.errors import StoreError
from treerl.replay.store import Store
from treerl.replay.writer import Writer


def test_flush_means_stored_and_put_takes_a_snapshot(kept_url):
    tree, texts = branched_tree()
    url = kept_url
    with Store.open(url) as store:
        run = store.start_run("a", {})
        with Writer(store, run, capacity=2) as writer:
            for step in range(5):
                writer.put(tree, step=step, problem=PROBLEM, provenance=provenance(), texts=texts)
            tree.tokens.logprob[5] = -9.0
            writer.flush()
            with Store.open(url) as reader:
                assert stored_steps(reader) == list(range(5))
                stored = reader.load_tree(5).tree
        assert stored.tokens.logprob[5] != -9.0
        tree.tokens.logprob[5] = stored.tokens.logprob[5]
        assert_same_tree(stored, tree)


def test_error_of_the_thread_comes_out_and_earlier_trees_stay(kept_url):
    tree, _ = star_tree()
    with Store.open(kept_url) as store:
        run = store.start_run("a", {})
        writer = Writer(store, run)
        writer.put(tree, step=0, problem=PROBLEM, provenance=provenance())
        writer.flush()
        with store.write() as connection:
            connection.execute(sa.text("DELETE FROM tree"))
            connection.execute(sa.text("DELETE FROM run"))
        writer.put(tree, step=1, problem=PROBLEM, provenance=provenance())
        with pytest.raises(StoreError, match="breaks a rule of the schema"):
            writer.flush()
        with pytest.raises(StoreError, match=r"(?i)foreign key"):
            writer.put(tree, step=2, problem=PROBLEM, provenance=provenance())
        with pytest.raises(StoreError):
            writer.close()
        assert store.trees() == []


def test_put_after_close_is_refused(kept_url):
    with Store.open("sqlite://") as store:
        writer = Writer(store, store.start_run("a", {}))
        writer.close()
        with pytest.raises(StoreError, match="closed"):
            writer.put(star_tree()[0], step=0, problem=PROBLEM, provenance=provenance())


def test_database_in_memory_is_written_and_read_by_two_threads():
    tree, _ = star_tree()
    with Store.open("sqlite://") as store:
        run = store.start_run("a", {})
        with Writer(store, run) as writer:
            for step in range(30):
                writer.put(tree, step=step, problem=PROBLEM, provenance=provenance())
                assert len(store.trees()) <= step + 1
            writer.flush()
            assert len(store.trees()) == 30


def test_trees_that_wait_are_one_transaction(kept_url):
    tree, _ = branched_tree()
    with Store.open(kept_url) as store:
        run = store.start_run("a", {})
        commits = []
        sa.event.listen(store.engine, "commit", commits.append)
        with Writer(store, run) as writer:
            with store.write():
                for step in range(9):
                    writer.put(tree, step=step, problem=PROBLEM, provenance=provenance())
            writer.flush()
        # That of the lock, that of the tree the thread had taken (or none), that of the others.
        assert len(commits) <= 3
        assert stored_steps(store) == list(range(9))
        for info in store.trees():
            assert_same_tree(store.load_tree(info.id).tree, tree)


def test_trees_before_a_bad_one_in_its_batch_stay(kept_url):
    tree, _ = star_tree()
    other, _ = star_tree(seed=9)
    with Store.open(kept_url) as store:
        run = store.start_run("a", {})
        store.put_tree(run, other, step=3, problem=PROBLEM, provenance=provenance())
        writer = Writer(store, run)
        with store.write():
            for step in range(5):
                writer.put(tree, step=step, problem=PROBLEM, provenance=provenance())
        with pytest.raises(StoreError, match="has stored another tree for step 3"):
            writer.flush()
        with pytest.raises(StoreError):
            writer.close()
        assert stored_steps(store) == [0, 1, 2, 3]
