"""The clock of a replay database: ids of trees, in the order in which they became visible.

A position bounds what a run may read, so that a resumed run reads what the unbroken one read: everything
committed before it was taken has an id up to it, everything after a greater one. SQLite gives that, having one
writer at a time. On PostgreSQL ids are given out before their transactions commit: writers share a lock that
`position` takes alone, so it waits for those under way.
"""

import sqlalchemy as sa

_LOCK = 0x7EE72


def enter(connection: sa.Connection) -> None:
    """To be called in a write transaction before it takes an id of a tree."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(_LOCK)))


def alone(connection: sa.Connection) -> None:
    """Waits for the writers of trees and keeps others out until the transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


def tick(connection: sa.Connection) -> int:
    """Takes an id that no tree will have, for what is written without one."""
    if connection.dialect.name == "postgresql":
        enter(connection)
        return int(connection.execute(sa.text("SELECT nextval('tree_id_seq')")).scalar_one())
    after = last(connection) + 1
    changed = connection.execute(
        sa.text("UPDATE sqlite_sequence SET seq = :after WHERE name = 'tree'"), {"after": after}
    )
    if changed.rowcount == 0:
        statement = sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES ('tree', :after)")
        connection.execute(statement, {"after": after})
    return after


def last(connection: sa.Connection) -> int:
    """The newest id that was given out; 0: none."""
    if connection.dialect.name == "postgresql":
        alone(connection)
        query = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM tree_id_seq"
    else:
        query = "SELECT seq FROM sqlite_sequence WHERE name = 'tree'"
    return int(connection.execute(sa.text(query)).scalar() or 0)
