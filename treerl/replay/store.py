"""`Store`: one replay database, from which whole trees are written and read.

A tree is written once, whole, in one transaction, when its search has ended: a process that dies loses at
most the tree it was writing. Finding solutions for a new tree is in treerl.replay.reuse.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import RLock
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from treerl.canon import canonical_json
from treerl.errors import StoreError
from treerl.problem import Problem
from treerl.replay import database, position, rows, schema
from treerl.replay.batch import TreesEntry
from treerl.replay.decode import decode
from treerl.replay.entry import now_us
from treerl.replay.faults import errors, shown
from treerl.replay.keys import Provenance, problem_key
from treerl.search.tree import Tree


@dataclass(frozen=True)
class TreeInfo:
    """One stored tree, without its nodes. `leaves`, `right` count fresh leaves; tokens are unique ones."""

    id: int
    run_id: str
    run: str
    step: int
    number: int
    problem: Problem
    nodes: int
    leaves: int
    right: int
    generated: int
    cached: int
    created_us: int


@dataclass(frozen=True)
class StoredTree:
    """A tree as it was put, with its problem and the response texts of its ended leaves, by node row."""

    info: TreeInfo
    tree: Tree
    texts: dict[int, str]

    @property
    def problem(self) -> Problem:
        """The problem searched."""
        return self.info.problem


@dataclass(frozen=True)
class RunInfo:
    """One run: id, name, resolved recipe, git commit, creation time."""

    id: str
    name: str
    config: dict[str, Any]
    git_commit: str | None
    created_us: int


class Store:
    """A replay database. Use as a context manager, or call `close`.

    Reads may come from any thread; SQLite wants one writer at a time, which `treerl.replay.writer` is.
    """

    def __init__(self, engine: sa.Engine, url: str) -> None:
        self.engine = engine
        self.url = url
        # Ids of facts that are never deleted; filled after a commit.
        self._ids: dict[tuple[str, bytes], int] = {}
        # A database in memory is one connection, which threads must take in turns.
        shared = isinstance(engine.pool, StaticPool)
        self._turn: AbstractContextManager[Any] = RLock() if shared else nullcontext()

    @classmethod
    def open(cls, url: str, *, create: bool = True) -> "Store":
        """Opens `sqlite:///PATH`, a path, or another SQLAlchemy URL; makes it if `create` and absent.

        Raises SchemaMismatch for another schema version, StoreError for what cannot be opened.
        """
        return cls(database.connect(url, create=create), url)

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One write transaction; database errors come out as StoreError."""
        with self._turn, errors(self.url), database.writing(self.engine) as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One read transaction; database errors come out as StoreError."""
        with self._turn, errors(self.url), database.reading(self.engine) as connection:
            yield connection

    def vacuum(self) -> None:
        """Gives freed pages back, which SQLite keeps until it is told to; PostgreSQL does it by itself."""
        if self.engine.dialect.name != "sqlite":
            return
        with (
            self._turn,
            errors(self.url),
            database.outside_transaction(self.engine) as connection,
        ):
            connection.exec_driver_sql("VACUUM")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    # Runs -----------------------------------------------------------------------------------------------

    def start_run(
        self,
        name: str,
        config: Mapping[str, Any],
        *,
        run_id: str | None = None,
        git_commit: str | None = None,
    ) -> str:
        """Enters a run and returns its id.

        With the `run_id` of an earlier call (kept in the run's folder) that run goes on, under its first
        recipe. Without one the run is new; if another run has the name, it becomes `name-2`, `name-3`, ...
        """
        with self.write() as connection:
            if run_id is not None:
                known = sa.select(schema.run.c.id).where(schema.run.c.id == run_id)
                if connection.execute(known).scalar() is not None:
                    return run_id
            run_id = run_id or new_run_id()
            row = {
                "id": run_id,
                "name": _free_name(connection, name),
                "config": canonical_json(dict(config)),
                "git_commit": git_commit,
                "created_us": now_us(),
            }
            connection.execute(schema.run.insert().values(row))
        return run_id

    def runs(self) -> list[RunInfo]:
        """All runs, oldest first."""
        query = sa.select(schema.run).order_by(schema.run.c.created_us, schema.run.c.id)
        with self.read() as connection:
            return [
                RunInfo(r.id, r.name, json.loads(r.config), r.git_commit, r.created_us)
                for r in connection.execute(query)
            ]

    def position(self) -> int:
        """The newest id of a tree (0: none): bounds what a run started now may read from others."""
        with self.read() as connection:
            return position.last(connection)

    # Writing --------------------------------------------------------------------------------------------

    def put_tree(
        self,
        run_id: str,
        tree: Tree,
        *,
        step: int,
        number: int = 0,
        problem: Problem,
        provenance: Provenance,
        texts: Mapping[int, str] | None = None,
        claim: rows.Claim | None = None,
    ) -> int:
        """Writes a whole tree in one transaction and returns its id.

        number: which tree of this run, step and problem. texts: response text of ended leaves, by node row.
        claim: the lease under which it was searched (treerl.replay.lease).
        A tree that is already there with the same content is left as it is; with other content StoreError.
        """
        encoded = rows.encode(
            tree,
            step=step,
            number=number,
            problem=problem,
            provenance=provenance,
            texts=texts or {},
            claim=claim,
        )
        return self.put_rows(run_id, [encoded])[0]

    def put_rows(self, run_id: str, encoded: Sequence[rows.TreeRows]) -> list[int]:
        """`put_tree` of trees that `rows.encode` has turned into rows: all in one transaction, or none."""
        found: dict[tuple[str, bytes], int] = {}
        with self.write() as connection:
            ids = TreesEntry(connection, run_id, encoded, self._ids, found).write()
        self._ids.update(found)
        return ids

    # Reading --------------------------------------------------------------------------------------------

    def trees(
        self,
        *,
        run_id: str | None = None,
        step: int | None = None,
        problem: Problem | None = None,
        limit: int | None = None,
    ) -> list[TreeInfo]:
        """Whole trees of a run, step, problem (None: all), oldest first; with `limit` the newest ones."""
        tree = schema.tree
        query = _tree_infos()
        if run_id is not None:
            query = query.where(tree.c.run_id == run_id)
        if step is not None:
            query = query.where(tree.c.step == step)
        if problem is not None:
            query = query.where(schema.problem.c.key == problem_key(problem))
        if limit is not None:
            query = query.order_by(None).order_by(tree.c.id.desc()).limit(limit)
        with self.read() as connection:
            found = [_tree_info(row) for row in connection.execute(query)]
        return sorted(found, key=lambda info: info.id)

    def load_tree(self, tree_id: int) -> StoredTree:
        """A stored tree, all columns equal to those that were put. Raises StoreError if there is none."""
        tree, prompt = schema.tree, schema.prompt
        head = (
            sa.select(tree.c.seed, tree.c.max_completion_length, tree.c.meta, prompt.c.tokens)
            .join(prompt, prompt.c.id == tree.c.prompt_id)
            .where(tree.c.id == tree_id)
        )
        visits = (
            sa.select(schema.visit)
            .where(schema.visit.c.tree_id == tree_id)
            .order_by(schema.visit.c.row)
        )
        with self.read() as connection:
            info = connection.execute(_tree_infos().where(tree.c.id == tree_id)).first()
            if info is None:
                raise StoreError(f"there is no tree {tree_id} in {shown(self.url)}")
            draws = connection.execute(_draws_of(tree_id)).mappings().all()
            seen = connection.execute(visits).mappings().all()
            first = connection.execute(head).mappings().one()
        decoded = decode(first, draws, seen)
        texts = {
            v["row"]: draws[v["draw_row"] - 1]["text"]
            for v in seen
            if v["finish"] in ("stop", "length") and draws[v["draw_row"] - 1]["text"] is not None
        }
        return StoredTree(_tree_info(info), decoded, texts)


_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_run_id() -> str:
    """A ULID: 26 characters that sort by time of creation."""
    value = (now_us() // 1000) << 80 | int.from_bytes(os.urandom(10), "big")
    return "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5))


def _free_name(connection: sa.Connection, name: str) -> str:
    run = schema.run
    taken = set(
        connection.execute(
            sa.select(run.c.name).where(run.c.name.startswith(name, autoescape=True))
        )
        .scalars()
        .all()
    )
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}-{count}"
    return candidate


def _tree_infos() -> "sa.Select[Any]":
    tree, run, problem = schema.tree, schema.run, schema.problem
    columns = [tree.c[name] for name in ("id", "run_id", "step", "number", "created_us")]
    columns += [tree.c[f"n_{name}"] for name in ("nodes", "leaves", "right", "generated", "cached")]
    of = [problem.c[name] for name in ("question", "truth", "kind", "columns")]
    return (
        sa.select(*columns, run.c.name.label("run"), *of)
        .join(run, run.c.id == tree.c.run_id)
        .join(problem, problem.c.id == tree.c.problem_id)
        .where(tree.c.state == "done")
        .order_by(tree.c.id)
    )


def _tree_info(row: Any) -> TreeInfo:
    values = row._mapping
    problem = Problem(
        values["question"], values["truth"], values["kind"], json.loads(values["columns"])
    )
    return TreeInfo(
        id=values["id"],
        run_id=values["run_id"],
        run=values["run"],
        step=values["step"],
        number=values["number"],
        problem=problem,
        nodes=values["n_nodes"],
        leaves=values["n_leaves"],
        right=values["n_right"],
        generated=values["n_generated"],
        cached=values["n_cached"],
        created_us=values["created_us"],
    )


def _draws_of(tree_id: int) -> "sa.Select[Any]":
    draw, node, solution = schema.draw, schema.node, schema.solution
    return (
        sa.select(draw, node.c.tokens, solution.c.text)
        .join(node, node.c.id == draw.c.node_id)
        .outerjoin(solution, solution.c.id == draw.c.solution_id)
        .where(draw.c.tree_id == tree_id)
        .order_by(draw.c.row)
    )
