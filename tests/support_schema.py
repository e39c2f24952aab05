"""Frozen dumps of each schema revision, as caches of released versions are: small ones, filled, as SQL text.

`python -m tests.support_schema` writes those of the newest revision, for SQLite and (where there is a server
and pg_dump) PostgreSQL. A dump is made once, by the code of its revision, and never changed afterwards.
"""

import sqlite3
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import sqlalchemy as sa

from tests import support_postgres
from tests.support_replay import fill_two_runs
from treerl.replay import schema
from treerl.replay.store import Store

FOLDER = Path(__file__).parent / "assets" / "schema"


def dump_path(revision: str, backend: str) -> Path:
    return FOLDER / f"{revision}.{backend}.sql"


def load_dump(revision: str, url: str) -> None:
    """Fills an empty database (a SQLite file or a PostgreSQL schema) with a dump."""
    parsed = sa.make_url(url)
    text = dump_path(revision, parsed.get_backend_name()).read_text(encoding="utf-8")
    if parsed.get_backend_name() == "sqlite":
        connection = sqlite3.connect(parsed.database)
        connection.executescript(text)
        connection.close()
        return
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.connection.driver_connection.execute(text)


def dump_sqlite(url: str, target: Path) -> None:
    connection = sqlite3.connect(sa.make_url(url).database)
    target.write_text("\n".join(connection.iterdump()) + "\n", encoding="utf-8")
    connection.close()


def dump_postgres(url: str, target: Path) -> None:
    """pg_dump's text without its settings, comments and schema names, to be loaded into any schema."""
    parsed = sa.make_url(url)
    schema_name = parsed.query["options"].removeprefix("-csearch_path=")
    program = Path(find_spec("pgserver").origin).parent / "pginstall" / "bin" / "pg_dump"
    plain = f"postgresql://{parsed.username}@/{parsed.database}?host={parsed.query['host']}"
    options = ["--inserts", "--no-owner", "--no-privileges", "--schema", schema_name]
    done = subprocess.run([program, plain, *options], check=True, capture_output=True, text=True)
    left_out = ("SET ", "SELECT pg_catalog.set_config", "CREATE SCHEMA", "--", "\\")
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith(left_out)]
    target.write_text("\n".join(lines).replace(f"{schema_name}.", "") + "\n", encoding="utf-8")


def main() -> None:
    revision = schema.REVISIONS[-1]
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/replay.db"
        with Store.open(url) as store:
            fill_two_runs(store)
        dump_sqlite(url, dump_path(revision, "sqlite"))
    if support_postgres.available():
        with support_postgres.server() as server, support_postgres.database(server) as url:
            with Store.open(url) as store:
                fill_two_runs(store)
            dump_postgres(url, dump_path(revision, "postgresql"))


if __name__ == "__main__":
    main()
