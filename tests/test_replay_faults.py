"""Killed writers, full disks, locks, read-only files, files that are no cache: what is lost, what is said."""

import logging
import random
import sqlite3
import subprocess
import sys
import time

import pytest

from tests.support_replay import (
    PROBLEM,
    assert_same_tree,
    provenance,
    star_tree,
    start_process,
    stored_steps,
)
from treerl.errors import SchemaMismatch, StoreError
from treerl.replay import database, schema
from treerl.replay.store import Store


def put(store, run, step):
    tree, texts = star_tree(
        seed=step, leaves=[[step + 4, k, 2] for k in range(40)], rewards=[0.0] * 40
    )
    store.put_tree(run, tree, step=step, problem=PROBLEM, provenance=provenance(), texts=texts)
    return tree


def put_many(store, run, steps):
    for step in steps:
        put(store, run, step)


def integrity(path):
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        return connection.execute("PRAGMA integrity_check").fetchall()
    finally:
        connection.close()


def whole_trees(store):
    """Ids of the stored trees, each loaded and found complete."""
    for info in store.trees():
        assert len(store.load_tree(info.id).tree) == info.nodes == 21
    return [info.id for info in store.trees()]


def test_killed_writer_loses_at_most_the_tree_under_way(tmp_path):
    url = f"sqlite:///{tmp_path}/r.db"
    rng = random.Random(0)
    acknowledged = 0
    for attempt in range(4):
        process = start_process(url, f"run{attempt}", 10_000)
        process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.2))
        process.kill()
        told = 1 + len([line for line in process.stdout.read().split("\n") if line])
        process.stdout.close()
        process.wait()
        acknowledged += told
        assert integrity(tmp_path / "r.db") == [("ok",)]
        with Store.open(url, create=False) as store:
            stored = len(whole_trees(store))
        assert acknowledged <= stored <= acknowledged + 1
        acknowledged = stored


def test_processes_that_make_and_fill_one_cache_at_once(tmp_path):
    url = f"sqlite:///{tmp_path}/r.db"
    processes = [start_process(url, "same", 15) for _ in range(3)]
    told = sorted(int(line) for process in processes for line in process.stdout.read().split())
    for process in processes:
        process.stdout.close()
        assert process.wait() == 0
    assert len(told) == len(set(told)) == 45
    with Store.open(url) as store:
        assert whole_trees(store) == told
        assert {run.name for run in store.runs()} == {"same", "same-2", "same-3"}
        with store.read() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM node").scalar() == 15 * 20
    assert integrity(tmp_path / "r.db") == [("ok",)]


def test_full_disk_is_told_and_earlier_trees_stay(tmp_path):
    with Store.open(f"sqlite:///{tmp_path}/r.db") as store:
        run = store.start_run("a", {})
        first = put(store, run, 0)
        with store.read() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(StoreError, match="disk is full; free some space"):
            put_many(store, run, range(1, 50))
        stored = stored_steps(store)
        assert stored == list(range(len(stored)))
        assert_same_tree(store.load_tree(1).tree, first)
        with store.read() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 100000")
        put(store, run, len(stored))
        assert len(stored_steps(store)) == len(stored) + 1
    assert integrity(tmp_path / "r.db") == [("ok",)]


def test_locked_database(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)
    with Store.open(f"sqlite:///{tmp_path}/r.db") as store:
        run = store.start_run("a", {})
        put(store, run, 0)
        other = sqlite3.connect(tmp_path / "r.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            put(store, run, 1)
        assert len(store.trees()) == 1  # readers go on
        other.execute("ROLLBACK")
        other.close()
        put(store, run, 1)
        assert len(store.trees()) == 2


def test_read_only_database_is_read_and_not_written(tmp_path):
    with Store.open(f"sqlite:///{tmp_path}/r.db") as store:
        run = store.start_run("a", {})
        put(store, run, 0)
    with Store.open(f"sqlite:///file:{tmp_path}/r.db?mode=ro&uri=true") as store:
        assert len(store.trees()) == 1
        with pytest.raises(StoreError, match="read-only; check the rights"):
            put(store, run, 1)


def test_file_that_is_no_database(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be looked at" * 20)
    with pytest.raises(StoreError, match="not a SQLite database"):
        Store.open(f"sqlite:///{path}")
    assert path.read_text().startswith("not a database")


def test_database_of_another_program(tmp_path):
    connection = sqlite3.connect(tmp_path / "r.db")
    connection.execute("CREATE TABLE problem (x)")
    connection.close()
    with pytest.raises(StoreError, match="not a treerl replay cache"):
        Store.open(f"{tmp_path}/r.db")


def test_absent_and_empty_database_without_create(tmp_path):
    with pytest.raises(StoreError, match="no replay database at"):
        Store.open(f"{tmp_path}/r.db", create=False)
    assert not (tmp_path / "r.db").exists()
    (tmp_path / "r.db").touch()
    with pytest.raises(StoreError, match="is empty"):
        Store.open(f"{tmp_path}/r.db", create=False)
    Store.open(f"{tmp_path}/r.db").close()


def test_folder_is_made_and_a_file_in_its_place_is_told(tmp_path):
    Store.open(f"{tmp_path}/a/b/r.db").close()
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot make the folder"):
        Store.open(f"{tmp_path}/file/r.db")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(f"{tmp_path}/a")


@pytest.mark.parametrize("url", ["nonsense://x/y", "sqlite:/x", "://"])
def test_url_that_is_none(url):
    with pytest.raises(StoreError):
        Store.open(url)


def set_revision(path, revision):
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()


def test_newer_schema_is_refused(tmp_path):
    Store.open(f"{tmp_path}/r.db").close()
    set_revision(tmp_path / "r.db", "9999")
    with pytest.raises(SchemaMismatch, match="newer version; run `pip install --upgrade treerl`"):
        Store.open(f"{tmp_path}/r.db")
    with pytest.raises(SchemaMismatch, match="newer version"):
        database.upgrade(f"{tmp_path}/r.db")


def test_older_schema_is_refused_with_the_command(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/r.db"
    Store.open(url).close()
    monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, "0099"))
    with pytest.raises(
        SchemaMismatch, match=f"at schema .* needs 0099: run `treerl replay upgrade {url}`"
    ):
        Store.open(url)


def test_foreign_hash_scheme_is_refused(tmp_path):
    Store.open(f"{tmp_path}/r.db").close()
    connection = sqlite3.connect(tmp_path / "r.db")
    with connection:
        connection.execute("UPDATE meta SET hash_scheme = 'md5'")
    connection.close()
    with pytest.raises(SchemaMismatch, match="hash scheme md5"):
        Store.open(f"{tmp_path}/r.db")


def test_wal_is_on_and_its_absence_is_warned_of(tmp_path, caplog):
    with Store.open(f"{tmp_path}/r.db") as store, store.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    with caplog.at_level(logging.WARNING):
        assert caplog.text == ""
        # A locking mode that has no shared memory file, as on a network disk, keeps WAL from being used.
        Store.open(f"sqlite:///file:{tmp_path}/n.db?vfs=unix-dotfile&uri=true").close()
    assert "does not take write-ahead logging" in caplog.text


def test_replay_package_loads_no_sqlalchemy():
    code = "import sys, treerl.replay; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
