"""Caches of every schema revision, from frozen dumps: refused with the command, upgraded, read."""

import io
import re

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from tests.support_replay import PROBLEM, branched_tree, fill_two_runs, provenance
from tests.support_schema import dump_path, load_dump
from treerl.errors import SchemaMismatch
from treerl.replay import database, schema
from treerl.replay.check import check
from treerl.replay.migrations.run import configuration, upgrade_to_head
from treerl.replay.store import Store
from treerl.replay.transfer import export_solutions

OLDER = schema.REVISIONS[:-1]
NEWEST = schema.REVISIONS[-1]


def test_known_revisions_are_those_of_the_scripts():
    scripts = ScriptDirectory.from_config(configuration())
    assert tuple(s.revision for s in scripts.walk_revisions())[::-1] == schema.REVISIONS


@pytest.mark.parametrize("revision", schema.REVISIONS)
def test_every_revision_has_its_dumps(revision):
    """Missing ones are made by `python -m tests.support_schema`."""
    for backend in ("sqlite", "postgresql"):
        assert f"'{revision}'" in dump_path(revision, backend).read_text(encoding="utf-8")


def statements(connection):
    """What makes each table and index of a SQLite database: its columns and constraints, sorted."""
    found = connection.execute(
        sa.text("SELECT type, name, sql FROM sqlite_master WHERE sql NOTNULL")
    )
    return {
        (kind, name): sorted(parts(" ".join(sql.replace('"', "").split())))
        for kind, name, sql in found
        if name != "alembic_version"
    }


def parts(sql):
    """The statement cut at the commas of its outermost list."""
    depth, found = 0, [""]
    for character in sql:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 1:
            found.append("")
        else:
            found[-1] += character
    head, _, first = found[0].partition("(")
    found[-1] = re.sub(r"\)$", "", found[-1].strip())
    return [head.strip(), first.strip(), *(part.strip() for part in found[1:])]


def assert_newest(url):
    """Tables, columns, constraints and indices are those of a new cache."""
    engine = database.raw_engine(url, create=False)
    with database.reading(engine) as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, schema.metadata) == []
        assert database.revision(connection) == NEWEST
        if connection.dialect.name == "sqlite":
            migrated = statements(connection)
            with Store.open("sqlite://") as store, store.read() as fresh:
                assert statements(fresh) == migrated
    engine.dispose()


def test_migrations_make_the_tables_of_create_all(kept_url):
    engine = database.raw_engine(kept_url, create=True)
    with database.writing(engine) as connection:
        upgrade_to_head(connection)
    engine.dispose()
    assert_newest(kept_url)


def exported(store):
    stream = io.StringIO()
    export_solutions(store, stream)
    return stream.getvalue()


@pytest.mark.parametrize("revision", OLDER)
def test_old_cache_is_refused_with_the_command_and_reads_as_ever_once_upgraded(revision, kept_url):
    load_dump(revision, kept_url)
    with pytest.raises(SchemaMismatch) as refusal:
        Store.open(kept_url)
    assert f"at schema {revision}, this treerl needs {NEWEST}" in str(refusal.value)
    assert str(refusal.value).endswith(f"run `treerl replay upgrade {kept_url}`")
    assert database.upgrade(kept_url) == (revision, NEWEST)
    assert_newest(kept_url)
    with Store.open(kept_url) as store, Store.open("sqlite://") as fresh:
        assert [run.name for run in store.runs()] == ["a", "b"]
        assert list(check(store)) == []
        fill_two_runs(fresh)
        assert exported(store) == exported(fresh)
        # And it is written on: nothing of the old rows stands in the way of new ones.
        run, (tree, _) = store.start_run("a", {}), branched_tree()
        store.put_tree(run, tree, step=0, problem=PROBLEM, provenance=provenance())
        assert [run.name for run in store.runs()] == ["a", "b", "a-2"]
        assert list(check(store)) == []


def test_dump_of_the_newest_revision_is_a_cache_of_today(kept_url):
    load_dump(NEWEST, kept_url)
    assert_newest(kept_url)
    with Store.open(kept_url) as store:
        assert list(check(store)) == []


def test_upgrade_of_a_current_database_changes_nothing(kept_url):
    with Store.open(kept_url) as store:
        store.start_run("a", {})
    assert database.upgrade(kept_url) == (NEWEST, NEWEST)
    with Store.open(kept_url) as store:
        assert [run.name for run in store.runs()] == ["a"]
