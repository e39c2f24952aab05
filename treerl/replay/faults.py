"""What a database driver raises, in plain words with what helps."""

import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy import exc

from treerl.errors import StoreError

BUSY_TIMEOUT_MS = 30_000

_LOCKED = (
    f"another process has held it locked for {BUSY_TIMEOUT_MS // 1000} s; find it with `fuser -v {{file}}`, "
    "end it or wait"
)
_RIGHTS = "check the rights of the file and of its folder with `ls -ld {file}*`"
_SQLITE = {
    "SQLITE_FULL": "the disk is full; free some space (`df -h {file}`) and go on: everything stored so far "
    "is intact",
    "SQLITE_BUSY": _LOCKED,
    "SQLITE_LOCKED": _LOCKED,
    "SQLITE_READONLY": f"it is read-only; {_RIGHTS}, or `chmod u+w {{file}}`",
    "SQLITE_PERM": f"access is denied; {_RIGHTS}",
    "SQLITE_CANTOPEN": f"it cannot be opened; {_RIGHTS}",
    "SQLITE_NOTADB": "the file is not a SQLite database; give another replay.url",
    "SQLITE_CORRUPT": "the file is damaged; save what is left with `sqlite3 {file} .recover`",
    "SQLITE_IOERR": "the disk reports an error; see `dmesg`",
    "SQLITE_CONSTRAINT": "a row breaks a rule of the schema",
}
"""By the beginning of SQLite's error name."""

_POSTGRES = {
    "08": "the connection was lost; see whether the server runs with `pg_isready -d {url}`; what was "
    "acknowledged is stored",
    "23": "a row breaks a rule of the schema",
    "25006": "the server or the session is read-only; give the URL of the primary server",
    "28": "the server refuses the login; try it with `psql {url}`",
    "3D000": "there is no such database; make it with `createdb {name}`",
    "40": "the transaction was undone by the server; run it again",
    "42501": "rights are missing; as the owner run `GRANT ALL ON SCHEMA public TO {user}`",
    "53100": "the server's disk is full; free some space there and go on: everything stored so far is intact",
    "53300": "the server has no connection left; see who holds them with "
    "`psql {url} -c 'SELECT * FROM pg_stat_activity'`",
    "55P03": "another session has held a lock for "
    f"{BUSY_TIMEOUT_MS // 1000} s; find it with `psql {{url}} -c 'SELECT * FROM pg_stat_activity'`",
    "57": "the server ended the session; see whether it runs with `pg_isready -d {url}`; what was acknowledged "
    "is stored",
}
"""By the beginning of PostgreSQL's SQLSTATE."""


def shown(url: str) -> str:
    """The URL without its password."""
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except exc.ArgumentError:
        return url


@contextmanager
def errors(url: str) -> Iterator[None]:
    """Turns what the database driver raises into a StoreError that says what helps."""
    try:
        yield
    except exc.DBAPIError as error:
        raise StoreError(_explain(url, error.orig)) from error
    except sqlite3.Error as error:
        raise StoreError(_explain(url, error)) from error
    except UnicodeEncodeError as error:
        raise StoreError(
            f"replay database {shown(url)}: a text to be stored has half a surrogate pair: {error}"
        ) from error
    except exc.SQLAlchemyError as error:
        raise StoreError(f"replay database {shown(url)}: {error}") from error


def _explain(url: str, error: BaseException | None) -> str:
    what = " ".join(str(error).split())
    advice = _advice(url, error)
    return f"replay database {shown(url)}: {what}" + (f": {advice}" if advice else "")


def _advice(url: str, error: BaseException | None) -> str | None:
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError:
        parsed = sa.make_url("sqlite://").set(database=url)
    if parsed.get_backend_name() == "postgresql":
        table, code = _POSTGRES, getattr(error, "sqlstate", None) or "08"
    else:
        table, code = _SQLITE, getattr(error, "sqlite_errorname", "")
    text = next((text for start, text in table.items() if code.startswith(start)), None)
    if text is None:
        return None
    plain = parsed.set(drivername=parsed.get_backend_name()).render_as_string(hide_password=True)
    return text.format(
        file=shlex.quote(parsed.database or url),
        url=shlex.quote(plain),
        name=shlex.quote(parsed.database or ""),
        user=parsed.username or "USER",
    )
