"""The statements that enter one tree, within a write transaction.

Facts are entered with ON CONFLICT DO NOTHING, sorted by key (one lock order for all writers), and their ids
read back. Statements are built once: building them costs more than running them.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from treerl.errors import StoreError
from treerl.replay import schema
from treerl.replay.keys import VerifierRef, sampler_key
from treerl.replay.rows import Row, TreeRows

CHUNK = 400
"""Keys in one IN list; SQLite before 3.32 takes 999 parameters."""

FactIds = dict[tuple[str, bytes], int]
"""Ids by (table, key)."""


def now_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def chunks(keys: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of at most CHUNK distinct keys, sorted."""
    ordered = sorted(set(keys))
    for first in range(0, len(ordered), CHUNK):
        yield ordered[first : first + CHUNK]


class TreeEntry:
    """Enters one tree. `known`: ids of facts from earlier transactions; `found`: takes those of this one."""

    def __init__(
        self,
        connection: sa.Connection,
        run_id: str,
        encoded: TreeRows,
        known: Mapping[tuple[str, bytes], int],
        found: FactIds,
    ) -> None:
        self.connection, self.run_id, self.rows = connection, run_id, encoded
        self.known, self.found = known, found

    def write(self) -> int:
        """Id of the tree; that of the tree already there if it has the same content."""
        data = self.rows
        problem_id = self._fact(schema.problem, data.problem)
        prompt_id = self._fact(schema.prompt, data.prompt | {"problem_id": problem_id})
        stored = self._stored(problem_id)
        if stored is not None:
            return stored
        tree_id = self._tree(problem_id, prompt_id)
        nodes = self._nodes(prompt_id)
        solutions = self._solutions(prompt_id)
        self._draws(tree_id, nodes, solutions)
        self._verdicts(tree_id, solutions)
        visits = [visit | {"tree_id": tree_id} for visit in data.visits]
        self.connection.execute(schema.visit.insert(), visits)
        return tree_id

    def _fact(self, table: sa.Table, row: Row) -> int:
        key: bytes = row["key"]
        known = self.known.get((table.name, key))
        if known is None:
            known = fact_id(self.connection, table, row)
            self.found[table.name, key] = known
        return known

    def _stored(self, problem_id: int) -> int | None:
        where = {
            "b_run": self.run_id,
            "b_step": self.rows.step,
            "b_problem": problem_id,
            "b_number": self.rows.number,
        }
        found = self.connection.execute(_STORED, where).first()
        if found is None:
            return None
        if found.content_key != self.rows.tree["content_key"]:
            raise StoreError(
                f"run {self.run_id} has stored another tree for step {self.rows.step} of this problem (tree "
                f"{found.id}): adopt it, or start the run under a new id"
            )
        return int(found.id)

    def _tree(self, problem_id: int, prompt_id: int) -> int:
        row = self.rows.tree | {
            "run_id": self.run_id,
            "problem_id": problem_id,
            "prompt_id": prompt_id,
            "step": self.rows.step,
            "number": self.rows.number,
            "state": "done",
            "attempts": 1,
            "created_us": now_us(),
        }
        result = self.connection.execute(schema.tree.insert(), row)
        assert result.inserted_primary_key is not None
        return int(result.inserted_primary_key[0])

    def _nodes(self, prompt_id: int) -> dict[tuple[bytes, int], int]:
        unique = {(row["path_key"], row["start"]): row for row in self.rows.nodes}
        self._ignore(schema.node, ("path_key", "start"), unique, prompt_id)
        return {
            (row.path_key, row.start): row.id
            for keys in chunks(key for key, _ in unique)
            for row in self.connection.execute(_NODES, {"b_keys": keys})
        }

    def _solutions(self, prompt_id: int) -> dict[bytes, int]:
        unique = {row["path_key"]: row for row in self.rows.solutions}
        self._ignore(schema.solution, ("path_key",), unique, prompt_id)
        return {
            row.path_key: row.id
            for keys in chunks(unique)
            for row in self.connection.execute(_SOLUTIONS, {"b_keys": keys})
        }

    def _ignore(
        self, table: sa.Table, key: tuple[str, ...], unique: Mapping[Any, Row], prompt_id: int
    ) -> None:
        if unique:
            statement = _insert_new(self.connection.dialect.name, table, key)
            new = [unique[name] | {"prompt_id": prompt_id} for name in sorted(unique)]
            self.connection.execute(statement, new)

    def _draws(
        self, tree_id: int, nodes: Mapping[tuple[bytes, int], int], solutions: Mapping[bytes, int]
    ) -> None:
        policies, sampler, sources = self._policies(), self._sampler(), self._sources()
        entered = []
        for draw, span in zip(self.rows.draws, self.rows.nodes, strict=True):
            row = dict(draw)
            key = row.pop("path_key")
            ended = row["finish"] in ("stop", "length")
            if row["source"]:
                row["policy_id"], row["sampler_id"] = sources.get(row["source"], (None, None))
            else:
                row["policy_id"], row["sampler_id"] = policies[row["policy_version"]], sampler
            row["tree_id"] = tree_id
            row["node_id"] = nodes[key, span["start"]]
            row["solution_id"] = solutions.get(key) if ended else None
            entered.append(row)
        if entered:
            self.connection.execute(schema.draw.insert(), entered)

    def _policies(self) -> dict[int, int]:
        """Ids by the policy version of the tree's own draws."""
        policy = self.rows.provenance.policy
        row = {"name": policy.name, "digest": policy.digest}
        versions = {draw["policy_version"] for draw in self.rows.draws if not draw["source"]}
        return {
            version: self._fact(
                schema.policy, row | {"key": policy.key(version), "version": version}
            )
            for version in sorted(versions)
        }

    def _sampler(self) -> int:
        params = self.rows.provenance.sampler_json
        return self._fact(schema.sampler, {"key": sampler_key(params), "params": params})

    def _sources(self) -> dict[int, tuple[int | None, int | None]]:
        """Policy and sampler of the stored draws that this tree's cached draws were taken from."""
        return {
            row.id: (row.policy_id, row.sampler_id)
            for ids in chunks(draw["source"] for draw in self.rows.draws if draw["source"])
            for row in self.connection.execute(_SOURCES, {"b_ids": ids})
        }

    def _verdicts(self, tree_id: int, solutions: Mapping[bytes, int]) -> None:
        if not self.rows.verdicts:
            return
        verifier = verifier_row(self.rows.provenance.verifier)
        base = {"verifier_id": self._fact(schema.verifier, verifier), "position": tree_id}
        entered = []
        for verdict in self.rows.verdicts:
            row = verdict | base
            row["solution_id"] = solutions[row.pop("path_key")]
            entered.append(row)
        put_verdicts(self.connection, entered)


def fact_id(connection: sa.Connection, table: sa.Table, row: Row) -> int:
    """Id of the row with this `key`, entered if new."""
    key = {"b_key": row["key"]}
    found = connection.execute(_fact_by_key(table), key).scalar()
    if found is None:
        connection.execute(_insert_new(connection.dialect.name, table, ("key",)), row)
        found = connection.execute(_fact_by_key(table), key).scalar_one()
    return int(found)


def verifier_row(verifier: VerifierRef) -> Row:
    """The `verifier` row of a verifier, without id."""
    return {
        "key": verifier.key,
        "name": verifier.name,
        "version": verifier.version,
        "config": verifier.config_json,
    }


def put_verdicts(connection: sa.Connection, entered: Sequence[Row]) -> None:
    """Enters verdicts; one that is there stays, unless it was not scored and the new one is."""
    ordered = sorted(entered, key=lambda row: (row["solution_id"], row["verifier_id"]))
    connection.execute(_upsert_verdict(connection.dialect.name), ordered)


# Statements ----------------------------------------------------------------------------------------------

_STORED = sa.select(schema.tree.c.id, schema.tree.c.content_key).where(
    schema.tree.c.run_id == sa.bindparam("b_run"),
    schema.tree.c.step == sa.bindparam("b_step"),
    schema.tree.c.problem_id == sa.bindparam("b_problem"),
    schema.tree.c.number == sa.bindparam("b_number"),
)
_NODES = sa.select(schema.node.c.path_key, schema.node.c.start, schema.node.c.id).where(
    schema.node.c.path_key.in_(sa.bindparam("b_keys", expanding=True))
)
_SOLUTIONS = sa.select(schema.solution.c.path_key, schema.solution.c.id).where(
    schema.solution.c.path_key.in_(sa.bindparam("b_keys", expanding=True))
)
_SOURCES = sa.select(schema.draw.c.id, schema.draw.c.policy_id, schema.draw.c.sampler_id).where(
    schema.draw.c.id.in_(sa.bindparam("b_ids", expanding=True))
)


@cache
def _fact_by_key(table: sa.Table) -> "sa.Select[Any]":
    return sa.select(table.c.id).where(table.c.key == sa.bindparam("b_key"))


@cache
def _insert_new(dialect: str, table: sa.Table, key: tuple[str, ...]) -> Any:
    return _insert(dialect, table).on_conflict_do_nothing(index_elements=list(key))


@cache
def _upsert_verdict(dialect: str) -> Any:
    statement = _insert(dialect, schema.verdict)
    new = statement.excluded
    names = ("outcome", "reward", "answer", "detail", "seconds", "position")
    return statement.on_conflict_do_update(
        index_elements=["solution_id", "verifier_id"],
        set_={name: new[name] for name in names},
        where=(schema.verdict.c.outcome != "scored") & (new.outcome == "scored"),
    )


def _insert(dialect: str, table: sa.Table) -> Any:
    """The dialect's own INSERT: ON CONFLICT is no part of the neutral one."""
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
