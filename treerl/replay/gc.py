"""Removing what nothing uses: runs named to go, then solutions without draws and spans without draws.

Problems, prompts, policies, samplers and verifiers stay: they are small, and running writers remember their
ids. Rows go in portions, each a transaction of its own, so that writers wait for one at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from treerl.errors import StoreError
from treerl.replay import position, schema
from treerl.replay.stats import database_bytes
from treerl.replay.store import Store

PORTION = 5000


@dataclass(frozen=True)
class Collected:
    """Rows removed (or to be removed), and the size of the database before and after."""

    runs: int
    trees: int
    solutions: int
    nodes: int
    bytes_before: int
    bytes_after: int


def collect(store: Store, runs: Sequence[str] = (), *, dry_run: bool = False) -> Collected:
    """Deletes the runs with these names, all their trees, and what nothing uses any more.

    dry_run: counts and deletes nothing. Raises StoreError for a name that no run has.
    """
    ids = _run_ids(store, runs)
    tree, draw = schema.tree, schema.draw
    leaving = sa.select(tree.c.id).where(tree.c.run_id.in_(ids))
    kept_draws = sa.select(draw.c.id).where(draw.c.tree_id.not_in(leaving))
    unused = {
        table: ~kept_draws.where(column == table.c.id).exists()
        for table, column in (
            (schema.solution, draw.c.solution_id),
            (schema.node, draw.c.node_id),
        )
    }
    going = {schema.run: schema.run.c.id.in_(ids), tree: tree.c.run_id.in_(ids), **unused}
    with store.read() as connection:
        before = database_bytes(connection)
        counts = {
            f"{table.name}s": int(connection.execute(_count(table, where)).scalar_one())
            for table, where in going.items()
        }
    if dry_run:
        return Collected(**counts, bytes_before=before, bytes_after=before)
    # Trees first, by portions: a run would take all of its own along in one transaction.
    order = (tree, schema.run, schema.solution, schema.node)
    removed = {f"{table.name}s": _delete(store, table, going[table]) for table in order}
    store.vacuum()
    with store.read() as connection:
        after = database_bytes(connection)
    return Collected(**removed, bytes_before=before, bytes_after=after)


def _count(table: sa.Table, where: "sa.ColumnElement[bool]") -> "sa.Select[Any]":
    return sa.select(sa.func.count()).select_from(table).where(where)


def _run_ids(store: Store, names: Sequence[str]) -> list[str]:
    found = {run.name: run.id for run in store.runs()}
    missing = sorted(set(names) - set(found))
    if missing:
        raise StoreError(f"no run is called {missing[0]}: `treerl replay ls runs` has the names")
    return sorted({found[name] for name in names})


def _delete(store: Store, table: sa.Table, where: "sa.ColumnElement[bool]") -> int:
    """Deletes rows by portions of their ids; how many went."""
    some = sa.select(table.c.id).where(where).order_by(table.c.id).limit(PORTION)
    removed = 0
    while True:
        with store.write() as connection:
            position.alone(connection)
            ids: Sequence[Any] = connection.execute(some).scalars().all()
            if ids:
                connection.execute(sa.delete(table).where(table.c.id.in_(ids)))
        removed += len(ids)
        if len(ids) < PORTION:
            return removed
