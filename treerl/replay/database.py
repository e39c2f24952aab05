"""Opening replay databases: settings of each kind, creation and version check in one transaction.

SQLite runs in WAL mode with one writer at a time: write transactions start with BEGIN IMMEDIATE, so that a
reader never upgrades and dies. PostgreSQL reads in REPEATABLE READ, so that all queries of a transaction see
one state there too, and waits for locks no longer than SQLite. Upgrading is never done by opening; `upgrade`
is its own command. What goes wrong is put in plain words by treerl.replay.faults.
"""

import logging
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.pool import StaticPool

from treerl import __version__
from treerl.canon import HASH_SCHEME
from treerl.errors import SchemaMismatch, StoreError
from treerl.replay import schema
from treerl.replay.faults import BUSY_TIMEOUT_MS, errors, shown

log = logging.getLogger(__name__)

JOURNAL_SIZE_LIMIT = 64 * 1024 * 1024
CONNECT_TIMEOUT_S = 10
_WRITE = "treerl_write"
_PLAIN = "treerl_plain"
_CREATION_LOCK = 0x7EE71


def parse_url(url: str) -> sa.URL:
    """The URL of a replay database; a bare path means SQLite. Raises StoreError."""
    if not re.match(r"[a-z0-9+_]{2,}:|:", url):
        url = f"sqlite:///{url}"
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError:
        raise StoreError(
            f"not a database URL: {url!r}; give a file, sqlite:///PATH or postgresql://HOST/NAME"
        ) from None
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed


def sqlite_path(url: sa.URL) -> Path | None:
    """The file of a SQLite URL; None for a database in memory or on a server."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return None
    name = url.database.removeprefix("file:") if "uri" in url.query else url.database
    return Path(name)


def connect(url: str, *, create: bool = True) -> sa.Engine:
    """An engine on a database of this code's schema, made if `create` and there is none.

    Raises SchemaMismatch for another schema version, StoreError for whatever else cannot be opened.
    """
    engine = raw_engine(url, create=create)
    try:
        with errors(url), reading(engine) as connection:
            found = _check(connection, url)
        if not found and not create:
            raise StoreError(f"the database {shown(url)} is empty: no replay cache was made in it")
        if not found:
            with errors(url), writing(engine) as connection:
                _create(connection, url)
    except BaseException:
        engine.dispose()
        raise
    return engine


def raw_engine(url: str, *, create: bool) -> sa.Engine:
    """An engine with the pragmas set, whatever the schema. Raises StoreError if there is no file."""
    parsed = parse_url(url)
    path = sqlite_path(parsed)
    if path is not None:
        if create:
            _make_folder(path)
        elif not path.is_file():
            raise StoreError(f"no replay database at {path}")
    try:
        engine = sa.create_engine(parsed, **_options(parsed, path))
    except ModuleNotFoundError as error:
        if error.name != "psycopg":
            raise StoreError(f"cannot open {shown(url)}: {error}") from None
        raise StoreError(
            "PostgreSQL needs the driver psycopg: run `pip install 'treerl[postgres]'`"
        ) from None
    except (exc.ArgumentError, ImportError) as error:
        raise StoreError(f"cannot open {shown(url)}: {error}") from None
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _on_connect)
        event.listen(engine, "begin", _on_begin)
    return engine


def _options(url: sa.URL, path: Path | None) -> dict[str, Any]:
    """What `create_engine` is told for this kind of database."""
    match url.get_backend_name():
        case "sqlite":
            arguments: dict[str, Any] = {
                "timeout": BUSY_TIMEOUT_MS / 1000,
                "check_same_thread": False,
            }
            shared = {"poolclass": StaticPool} if path is None else {}
            return {"connect_args": arguments, **shared}
        case "postgresql":
            arguments = {"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "treerl"}
            arguments["options"] = (
                f"-c lock_timeout={BUSY_TIMEOUT_MS} {url.query.get('options', '')}"
            )
            # A connection that died while nobody used it is replaced.
            return {"connect_args": arguments, "pool_pre_ping": True}
    return {}


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder of {path}: {error.strerror}") from None


def _on_connect(connection: sqlite3.Connection, _record: Any) -> None:
    # SQLAlchemy says BEGIN itself (see _on_begin); the driver must not.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {JOURNAL_SIZE_LIMIT}")
    _use_wal(connection)


def _use_wal(connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    # Two processes that switch a new file at once can both be told "locked", busy_timeout or not.
    for attempt in range(50):
        if mode in ("wal", "memory"):
            return
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname.startswith("SQLITE_READONLY"):
                return
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or attempt == 49:
                raise
            time.sleep(0.05)
    if mode not in ("wal", "memory"):
        log.warning(
            "the replay database does not take write-ahead logging (journal mode %s), as on network disks: "
            "writes are slow and readers wait for them; put replay.url on a local disk",
            mode,
        )


def _on_begin(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    if not options.get(_PLAIN, False):
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get(_WRITE, False) else "BEGIN")


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One write transaction, committed at the end, rolled back on an exception."""
    with engine.connect().execution_options(**{_WRITE: True}) as connection, connection.begin():
        yield connection


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One read transaction: all queries see one state of the database."""
    with engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection


@contextmanager
def outside_transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection to SQLite for what it does not do within a transaction."""
    with engine.connect().execution_options(**{_PLAIN: True}) as connection:
        yield connection


# Versions ------------------------------------------------------------------------------------------------


def revision(connection: sa.Connection) -> str | None:
    """The schema revision of a database; None if it has no treerl tables and no others either."""
    tables = set(sa.inspect(connection).get_table_names())
    if "alembic_version" in tables and "meta" in tables:
        found = connection.execute(sa.select(schema.alembic_version.c.version_num)).scalar()
        return str(found) if found is not None else "none"
    if tables:
        raise StoreError(
            "this is a database, but not a treerl replay cache; give another replay.url"
        )
    return None


def _check(connection: sa.Connection, url: str) -> bool:
    """Whether there is a cache; raises unless this code can read it."""
    found = revision(connection)
    if found is None:
        return False
    check_revision(found, url)
    scheme = connection.execute(sa.select(schema.meta.c.hash_scheme)).scalar()
    if scheme != HASH_SCHEME:
        raise SchemaMismatch(
            f"the replay cache {shown(url)} uses hash scheme {scheme}, this treerl {HASH_SCHEME}: its keys "
            "cannot be compared; give another replay.url"
        )
    return True


def _create(connection: sa.Connection, url: str) -> None:
    """All tables and the stamp in one transaction, unless another process was faster."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATION_LOCK)))
    if not _check(connection, url):
        schema.metadata.create_all(connection)
        _stamp(connection)


def _stamp(connection: sa.Connection) -> None:
    schema.alembic_version.create(connection)
    connection.execute(schema.alembic_version.insert().values(version_num=schema.REVISIONS[-1]))
    row = {"id": 1, "hash_scheme": HASH_SCHEME, "created_by": f"treerl {__version__}"}
    connection.execute(schema.meta.insert().values(row))


def check_revision(found: str, url: str) -> None:
    """Raises SchemaMismatch, with the command that helps, unless `found` is the newest revision."""
    newest = schema.REVISIONS[-1]
    if found == newest:
        return
    if found in schema.REVISIONS:
        raise SchemaMismatch(
            f"the replay cache is at schema {found}, this treerl needs {newest}: run "
            f"`treerl replay upgrade {shown(url)}`"
        )
    raise SchemaMismatch(
        f"the replay cache {shown(url)} is at schema {found}, which this treerl (schema {newest}) does not "
        "know: it was made by a newer version; run `pip install --upgrade treerl`"
    )


def upgrade(url: str) -> tuple[str, str]:
    """Brings a database to the newest schema; returns the revisions before and after."""
    from treerl.replay.migrations.run import upgrade_to_head

    engine = raw_engine(url, create=False)
    try:
        with errors(url), writing(engine) as connection:
            found = revision(connection)
            if found is None:
                raise StoreError(
                    f"the database {shown(url)} is empty: no replay cache was made in it"
                )
            if found not in schema.REVISIONS:
                check_revision(found, url)
            upgrade_to_head(connection)
    finally:
        engine.dispose()
    return found, schema.REVISIONS[-1]
