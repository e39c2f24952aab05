"""Trees to be searched, shared out among workers of any host by leases.

A queued tree is a row without content, its ticket. A worker claims it for some seconds, by the clock of the
database, and renews the lease while it works; when the lease of a dead worker ends, another takes the tree
over. The finished tree replaces its ticket in the transaction that writes it, under a new id: ids are given
in the order in which trees become visible (treerl.replay.position). A worker whose lease was taken over
gets LeaseLost and nothing of its tree is written.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from treerl.errors import LeaseLost
from treerl.problem import Problem
from treerl.replay import position, schema
from treerl.replay.entry import fact_ids, insert_new, now_us
from treerl.replay.rows import Claim, problem_row
from treerl.replay.store import Store

MAX_ATTEMPTS = 5
"""Claims of one tree after which it is left alone: it may be what kills its workers."""


@dataclass(frozen=True)
class Queue:
    """Trees of a run that are not done: waiting, under a lease, under one that ended, given up."""

    queued: int
    running: int
    expired: int
    given_up: int


def queue_trees(
    store: Store, run_id: str, problems: Sequence[Problem], *, step: int, number: int = 0
) -> int:
    """Enters one tree a problem to be claimed; returns how many were not there yet, queued or done."""
    facts = {row["key"]: row for row in map(problem_row, problems)}
    with store.write() as connection:
        position.enter(connection)
        ids = fact_ids(connection, schema.problem, facts)
        names = ("run_id", "step", "problem_id", "number")
        statement = insert_new(connection.dialect.name, schema.tree, names)
        entered = [
            _ticket(run_id, step, problem_id, number) for problem_id in sorted(set(ids.values()))
        ]
        before = connection.execute(_count(run_id)).scalar_one()
        connection.execute(statement, entered)
        return int(connection.execute(_count(run_id)).scalar_one() - before)


def claim_tree(store: Store, run_id: str, owner: str, *, lease_s: float) -> Claim | None:
    """The next tree to be searched, now leased to `owner`; None if there is none.

    Trees whose worker has not renewed its lease come first, then those that wait, oldest step first.
    """
    with store.write() as connection:
        now = database_now(connection)
        tree = schema.tree
        for condition in (_expired(now), tree.c.state == "queued"):
            taken = connection.execute(_take(run_id, owner, condition, now, lease_s)).first()
            if taken is not None:
                return _claim(connection, taken, owner)
    return None


def renew(store: Store, claim: Claim, *, lease_s: float) -> None:
    """Extends a lease to `lease_s` from now. Raises LeaseLost if another worker has the tree."""
    tree = schema.tree
    with store.write() as connection:
        statement = (
            sa.update(tree)
            .where(*_held(claim))
            .values(lease_until_us=database_now(connection) + round(lease_s * 1e6))
        )
        if connection.execute(statement).rowcount == 0:
            raise LeaseLost(f"the lease of ticket {claim.ticket} ended and another worker has it")


def release(store: Store, claim: Claim) -> None:
    """Gives a tree back that was not finished, as if never claimed; nothing happens if the lease was lost."""
    statement = (
        sa.update(schema.tree)
        .where(*_held(claim))
        .values(
            state="queued", owner=None, lease_until_us=None, attempts=schema.tree.c.attempts - 1
        )
    )
    with store.write() as connection:
        connection.execute(statement)


def queue_of(store: Store, run_id: str) -> Queue:
    """Counts of what a run has queued and not done."""
    tree = schema.tree
    with store.read() as connection:
        now = database_now(connection)
        # One boolean each, and NULL in a sum is 0.
        kinds = {
            "queued": (tree.c.state == "queued") & (tree.c.attempts < MAX_ATTEMPTS),
            "running": (tree.c.state == "running") & (tree.c.lease_until_us >= now),
            "expired": _expired(now),
            "given_up": _idle(now) & (tree.c.attempts >= MAX_ATTEMPTS),
        }
        counts = [sa.func.count(sa.case((kind, 1))).label(name) for name, kind in kinds.items()]
        query = sa.select(*counts).where(tree.c.run_id == run_id, tree.c.state != "done")
        return Queue(**connection.execute(query).mappings().one())


def database_now(connection: sa.Connection) -> int:
    """Microseconds since the epoch by the clock of the database: those of its users need not agree."""
    if connection.dialect.name == "postgresql":
        query = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
    else:
        query = "SELECT CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
    return int(connection.exec_driver_sql(query).scalar_one())


def _ticket(run_id: str, step: int, problem_id: int, number: int) -> dict[str, Any]:
    zeros = ("seed", "max_completion_length", "attempts")
    counts = ("n_nodes", "n_leaves", "n_right", "n_generated", "n_cached")
    return {
        "run_id": run_id,
        "step": step,
        "problem_id": problem_id,
        "number": number,
        "state": "queued",
        "meta": "{}",
        "created_us": now_us(),
        **dict.fromkeys(zeros + counts, 0),
    }


def _count(run_id: str) -> "sa.Select[Any]":
    return sa.select(sa.func.count()).where(schema.tree.c.run_id == run_id)


def _idle(now: int) -> "sa.ColumnElement[bool]":
    tree = schema.tree
    return (tree.c.state == "queued") | (
        (tree.c.state == "running") & (tree.c.lease_until_us < now)
    )


def _expired(now: int) -> "sa.ColumnElement[bool]":
    tree = schema.tree
    ended = (tree.c.state == "running") & (tree.c.lease_until_us < now)
    return ended & (tree.c.attempts < MAX_ATTEMPTS)


def _take(
    run_id: str, owner: str, condition: "sa.ColumnElement[bool]", now: int, lease_s: float
) -> Any:
    tree = schema.tree
    free = (
        sa.select(tree.c.id)
        .where(tree.c.run_id == run_id, condition, tree.c.attempts < MAX_ATTEMPTS)
        .order_by(tree.c.step, tree.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    return (
        sa.update(tree)
        .where(tree.c.id == free)
        .values(
            state="running",
            owner=owner,
            attempts=tree.c.attempts + 1,
            lease_until_us=now + round(lease_s * 1e6),
        )
        .returning(*(tree.c[n] for n in ("id", "step", "number", "attempts", "problem_id")))
    )


def _held(claim: Claim) -> tuple["sa.ColumnElement[bool]", ...]:
    tree = schema.tree
    return (
        tree.c.id == claim.ticket,
        tree.c.state == "running",
        tree.c.owner == claim.owner,
        tree.c.attempts == claim.attempts,
    )


def _claim(connection: sa.Connection, taken: Any, owner: str) -> Claim:
    of = schema.problem
    columns = [of.c[name] for name in ("question", "truth", "kind", "columns")]
    row = connection.execute(sa.select(*columns).where(of.c.id == taken.problem_id)).one()
    problem = Problem(row.question, row.truth, row.kind, json.loads(row.columns))
    return Claim(taken.id, owner, problem, taken.step, taken.number, taken.attempts)
