"""The statements that enter rows, within a write transaction; whole trees are in treerl.replay.batch.

Facts are entered with ON CONFLICT DO NOTHING, sorted by key (one lock order for all writers), and their ids
read back. Statements are built once: building them costs more than running them.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from treerl.replay import schema
from treerl.replay.keys import VerifierRef, verdict_key
from treerl.replay.rows import Columns, Row
from treerl.replay.schema import Words

CHUNK = 400
"""Keys in one IN list; SQLite before 3.32 takes 999 parameters."""


def now_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def chunks(keys: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of at most CHUNK distinct keys, sorted."""
    ordered = sorted(set(keys))
    for first in range(0, len(ordered), CHUNK):
        yield ordered[first : first + CHUNK]


def tuples(columns: Columns, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The rows of these columns."""
    return zip(*(columns[name] for name in names), strict=True)


def fact_ids(
    connection: sa.Connection, table: sa.Table, rows: Mapping[bytes, Row]
) -> dict[bytes, int]:
    """Ids by key, of rows that are entered if new."""
    names = tuple(column.name for column in table.c if column.name != "id")
    new = [tuple(rows[key][name] for name in names) for key in sorted(rows)]
    insert_unless_there(connection, table, names, new)
    query = _facts_by_key(table)
    return {
        key: int(fact_id)
        for keys in chunks(rows)
        for key, fact_id in connection.execute(query, {"b_keys": keys})
    }


def verifier_row(verifier: VerifierRef) -> Row:
    """The `verifier` row of a verifier, without id."""
    return {
        "key": verifier.key,
        "name": verifier.name,
        "version": verifier.version,
        "config": verifier.config_json,
    }


VERDICT_CONTENT = ("outcome", "reward", "answer", "detail", "seconds", "position")
"""What a verdict says: the arguments of its key, in their order."""
VERDICT_NAMES = ("solution_id", "verifier_id", *VERDICT_CONTENT)


def put_verdicts(connection: sa.Connection, entered: Sequence[tuple[Any, ...]]) -> None:
    """Enters verdicts, columns in the order of VERDICT_NAMES, under keys of their own.

    One that is there stays, unless it was not scored and the new one is. Of equal ones the first counts.
    """
    ordered = sorted(entered, key=itemgetter(0, 1))
    rows = [(*row, verdict_key(*row[2:])) for row in ordered]
    names = (*VERDICT_NAMES, "row_key")
    _execute_many(connection, _upsert_verdict(connection.dialect.name), names, rows)


# Statements ----------------------------------------------------------------------------------------------


def insert_rows(connection: sa.Connection, table: sa.Table, parts: Iterable[Columns]) -> None:
    """Enters all rows of `parts`, which have the same columns."""
    names: tuple[str, ...] = ()
    rows: list[tuple[Any, ...]] = []
    for columns in parts:
        names = names or tuple(column.name for column in table.c if column.name in columns)
        rows += tuples(columns, names)
    _execute_many(connection, _insert_all(table), names, rows)


def insert_unless_there(
    connection: sa.Connection,
    table: sa.Table,
    names: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
) -> None:
    """Enters rows, but not those whose content key is there."""
    key = tuple(name for name in ("key", "path_key", "start") if name in table.c)
    statement = insert_new(connection.dialect.name, table, key)
    _execute_many(connection, statement, names, rows)


def _execute_many(
    connection: sa.Connection,
    statement: Any,
    names: tuple[str, ...],
    rows: Sequence[tuple[Any, ...]],
) -> None:
    """One prepared statement over many rows of values in the order of `names`.

    SQLAlchemy would turn each row into a dict and back, which costs more than the database does.
    """
    if not rows:
        return
    dialect = connection.dialect
    written = {
        at for at, name in enumerate(names) if isinstance(statement.table.c[name].type, Words)
    }
    if written and dialect.name == "postgresql":
        escape = Words().process_bind_param
        rows = [
            tuple(escape(v, dialect) if at in written else v for at, v in enumerate(row))
            for row in rows
        ]
    connection.exec_driver_sql(_text(dialect.name, dialect.driver, statement, names), list(rows))


@cache
def _text(name: str, driver: str, statement: Any, names: tuple[str, ...]) -> str:
    """The statement with positional parameters in the order of `names`, that of the table's columns."""
    style = "qmark" if name == "sqlite" else "format"
    make: Callable[..., sa.Dialect] = sa.make_url(f"{name}+{driver}://").get_dialect()
    dialect = make(paramstyle=style)
    compiled = statement.compile(dialect=dialect, column_keys=list(names))
    assert tuple(compiled.positiontup) == names
    return str(compiled)


_SCORED: sa.ColumnElement[str] = sa.literal_column("'scored'")


@cache
def _facts_by_key(table: sa.Table) -> "sa.Select[Any]":
    keys = table.c.key.in_(sa.bindparam("b_keys", expanding=True))
    return sa.select(table.c.key, table.c.id).where(keys)


@cache
def _insert_all(table: sa.Table) -> Any:
    return table.insert()


@cache
def insert_new(dialect: str, table: sa.Table, key: tuple[str, ...]) -> Any:
    """INSERT that leaves a row with an equal `key` as it is."""
    return _insert(dialect, table).on_conflict_do_nothing(index_elements=list(key))


@cache
def _upsert_verdict(dialect: str) -> Any:
    statement = _insert(dialect, schema.verdict)
    new = statement.excluded
    names = (*VERDICT_CONTENT, "row_key")
    return statement.on_conflict_do_update(
        index_elements=["solution_id", "verifier_id"],
        set_={name: new[name] for name in names},
        where=(schema.verdict.c.outcome != _SCORED) & (new.outcome == _SCORED),
    )


def _insert(dialect: str, table: sa.Table) -> Any:
    """The dialect's own INSERT: ON CONFLICT is no part of the neutral one."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
