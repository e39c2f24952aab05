import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from treerl.replay import database, schema
from treerl.replay.migrations.run import configuration, upgrade_to_head
from treerl.replay.store import Store


def test_known_revisions_are_those_of_the_scripts():
    scripts = ScriptDirectory.from_config(configuration())
    assert tuple(s.revision for s in scripts.walk_revisions())[::-1] == schema.REVISIONS


def statements(connection):
    """What makes each table and index: its lines, one a column or constraint, sorted."""
    found = connection.execute(
        sa.text("SELECT type, name, sql FROM sqlite_master WHERE sql NOTNULL")
    )
    return {
        (kind, name): sorted(line.strip().replace('"', "").rstrip(",") for line in sql.splitlines())
        for kind, name, sql in found
        if name != "alembic_version"
    }


def test_migrations_make_the_tables_of_create_all(tmp_path):
    engine = database.raw_engine(f"sqlite:///{tmp_path}/migrated.db", create=True)
    with database.writing(engine) as connection:
        upgrade_to_head(connection)
    with database.reading(engine) as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, schema.metadata) == []
        assert database.revision(connection) == schema.REVISIONS[-1]
        migrated = statements(connection)
    engine.dispose()
    with Store.open("sqlite://") as store, store.read() as connection:
        assert statements(connection) == migrated


def test_upgrade_of_a_current_database_changes_nothing(tmp_path):
    url = f"sqlite:///{tmp_path}/r.db"
    with Store.open(url) as store:
        store.start_run("a", {})
    newest = schema.REVISIONS[-1]
    assert database.upgrade(url) == (newest, newest)
    with Store.open(url) as store:
        assert [run.name for run in store.runs()] == ["a"]
