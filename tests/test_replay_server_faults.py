"""A PostgreSQL server that ends sessions, locks, refuses or is not there: what is lost, what is said."""

import pytest
import sqlalchemy as sa

from tests.support_replay import PROBLEM, assert_same_tree, provenance, star_tree
from treerl.errors import StoreError
from treerl.replay import database
from treerl.replay.faults import errors, shown
from treerl.replay.store import Store

pytestmark = pytest.mark.postgres


def put(store, run, step):
    tree, texts = star_tree(seed=step)
    store.put_tree(run, tree, step=step, problem=PROBLEM, provenance=provenance(), texts=texts)
    return tree


@pytest.fixture
def url(pg_urls):
    return pg_urls()


def end_sessions(url, own):
    """As an administrator or a restart does."""
    with Store.open(url) as other, other.write() as connection:
        connection.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": own})


def pid(connection):
    return connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()


def write_and_lose_the_session(store, url, run):
    with store.write() as connection:
        connection.exec_driver_sql(f"UPDATE run SET name = 'x' WHERE id = '{run}'")
        end_sessions(url, pid(connection))
        connection.exec_driver_sql("SELECT 1")


def test_session_that_ends_in_a_transaction_leaves_nothing_and_the_next_one_works(url):
    with Store.open(url) as store:
        run = store.start_run("a", {})
        first = put(store, run, 0)
        with pytest.raises(StoreError, match="see whether it runs with `pg_isready"):
            write_and_lose_the_session(store, url, run)
        assert [info.name for info in store.runs()] == ["a"]
        put(store, run, 1)
        assert_same_tree(store.load_tree(store.trees()[0].id).tree, first)


def test_session_that_ended_while_nobody_used_it_is_replaced(url):
    with Store.open(url) as store:
        run = store.start_run("a", {})
        with store.read() as connection:
            mine = pid(connection)
        end_sessions(url, mine)
        put(store, run, 0)
        assert len(store.trees()) == 1


def test_locked_table(url, monkeypatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 100)
    with Store.open(url) as store, Store.open(url) as other:
        run = store.start_run("a", {})
        put(store, run, 0)
        with other.write() as connection:
            connection.exec_driver_sql("LOCK TABLE tree IN SHARE MODE")
            with pytest.raises(StoreError, match="another session has held a lock"):
                put(store, run, 1)
            assert len(store.trees()) == 1  # readers go on
        put(store, run, 1)


def test_read_only_session(url):
    with Store.open(url) as store:
        run = store.start_run("a", {})
        put(store, run, 0)
    parsed = sa.make_url(url)
    options = f"{parsed.query['options']} -c default_transaction_read_only=on"
    read_only = parsed.update_query_dict({"options": options})
    with Store.open(read_only.render_as_string(hide_password=False)) as store:
        assert len(store.trees()) == 1
        with pytest.raises(StoreError, match="read-only; give the URL of the primary"):
            put(store, run, 1)


def test_database_that_is_absent(url):
    absent = sa.make_url(url).set(database="nowhere").render_as_string(hide_password=False)
    with pytest.raises(StoreError, match="nowhere"):
        Store.open(absent)


def test_server_that_does_not_answer(tmp_path):
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match="see whether the server runs with `pg_isready"):
        Store.open(f"postgresql://postgres@/postgres?host={tmp_path}")


def test_full_disk_and_missing_rights_are_told():
    """The server's codes for what cannot be brought about here."""
    psycopg = pytest.importorskip("psycopg")
    for code, message in (
        ("53100", "the server's disk is full"),
        ("42501", "GRANT ALL ON SCHEMA public TO me"),
        ("53300", "no connection left"),
    ):
        error = psycopg.errors.lookup(code)("told by the server")
        wrapped = sa.exc.OperationalError("INSERT", {}, error)
        with pytest.raises(StoreError, match=message), errors("postgresql://me:secret@host/cache"):
            raise wrapped


def test_passwords_are_not_told():
    assert shown("postgresql://me:secret@host/cache") == "postgresql://me:***@host/cache"
    assert shown("runs/replay.db") == "runs/replay.db"
