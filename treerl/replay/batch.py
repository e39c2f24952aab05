"""Entering whole trees, several in one write transaction."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from treerl.errors import LeaseLost, StoreError
from treerl.replay import schema
from treerl.replay.entry import (
    chunks,
    fact_ids,
    insert_rows,
    insert_unless_there,
    now_us,
    put_verdicts,
    tuples,
    verifier_row,
)
from treerl.replay.position import enter
from treerl.replay.rows import Row, TreeRows

FactIds = dict[tuple[str, bytes], int]
"""Ids by (table, key)."""

TreeName = tuple[int, int, int]
"""Step, problem id and number: what names a tree within its run."""

_STORED = sa.select(
    *(
        schema.tree.c[name]
        for name in ("id", "step", "problem_id", "number", "state", "attempts", "content_key")
    )
).where(
    schema.tree.c.run_id == sa.bindparam("b_run"),
    schema.tree.c.step.in_(sa.bindparam("b_steps", expanding=True)),
    schema.tree.c.problem_id.in_(sa.bindparam("b_problems", expanding=True)),
)
_TICKET = sa.delete(schema.tree).where(
    schema.tree.c.id == sa.bindparam("b_ticket"),
    schema.tree.c.state == "running",
    schema.tree.c.owner == sa.bindparam("b_owner"),
    schema.tree.c.attempts == sa.bindparam("b_attempts"),
)
_NEW_TREES = schema.tree.insert().returning(schema.tree.c.id, sort_by_parameter_order=True)
_NODES = sa.select(schema.node.c.path_key, schema.node.c.start, schema.node.c.id).where(
    schema.node.c.path_key.in_(sa.bindparam("b_keys", expanding=True))
)
_SOLUTIONS = sa.select(schema.solution.c.path_key, schema.solution.c.id).where(
    schema.solution.c.path_key.in_(sa.bindparam("b_keys", expanding=True))
)
_SOURCES = sa.select(schema.draw.c.id, schema.draw.c.policy_id, schema.draw.c.sampler_id).where(
    schema.draw.c.id.in_(sa.bindparam("b_ids", expanding=True))
)


class TreesEntry:
    """Enters trees of one run, in their order.

    known: ids of facts from earlier transactions; found: takes those of this one.
    """

    def __init__(
        self,
        connection: sa.Connection,
        run_id: str,
        trees: Sequence[TreeRows],
        known: Mapping[tuple[str, bytes], int],
        found: FactIds,
    ) -> None:
        self.connection, self.run_id, self.trees = connection, run_id, trees
        self.known, self.found = known, found

    def write(self) -> list[int]:
        """Ids of the trees; of a tree that is already there with the same content, the old one."""
        problems = self._facts(schema.problem, [data.problem for data in self.trees])
        prompts = self._facts(
            schema.prompt,
            [data.prompt | {"problem_id": problems[data.problem["key"]]} for data in self.trees],
        )
        names = [(data.step, problems[data.problem["key"]], data.number) for data in self.trees]
        new: dict[TreeName, TreeRows] = {}
        stored = self._stored(names)
        for name, data in zip(names, self.trees, strict=True):
            if name in stored and stored[name].state == "done":
                self._check_own(data, stored[name].attempts)
                self._check_same(data, stored[name].id, stored[name].content_key)
            elif name in new:
                self._check_same(data, None, new[name].tree["content_key"])
            else:
                self._redeem(data, queued=name in stored)
                new[name] = data
        ids = {name: row.id for name, row in stored.items()}
        if new:
            ids |= self._enter(new, prompts)
        return [ids[name] for name in names]

    def _facts(self, table: sa.Table, rows: Sequence[Row]) -> dict[bytes, int]:
        """Ids by key, of rows that are entered if new."""
        unknown = {row["key"]: row for row in rows if (table.name, row["key"]) not in self.known}
        if unknown:
            ids = fact_ids(self.connection, table, unknown)
            self.found.update({(table.name, key): value for key, value in ids.items()})
        else:
            ids = {}
        return {
            row["key"]: ids.get(row["key"]) or self.known[table.name, row["key"]] for row in rows
        }

    def _stored(self, names: Sequence[TreeName]) -> dict[TreeName, Any]:
        """Those of these trees that the run has stored or queued."""
        return {
            (row.step, row.problem_id, row.number): row
            for steps in chunks(step for step, _, _ in names)
            for problems in chunks(problem for _, problem, _ in names)
            for row in self.connection.execute(
                _STORED, {"b_run": self.run_id, "b_steps": steps, "b_problems": problems}
            )
        }

    def _check_own(self, data: TreeRows, attempts: int) -> None:
        """A stored tree is a claim's own if it has its number: a commit that its worker did not hear of."""
        if data.claim is not None and data.claim.attempts != attempts:
            raise LeaseLost(f"another worker has finished the tree of ticket {data.claim.ticket}")

    def _check_same(self, data: TreeRows, tree_id: int | None, content_key: bytes) -> None:
        if content_key != data.tree["content_key"]:
            which = "in the same batch" if tree_id is None else f"tree {tree_id}"
            raise StoreError(
                f"run {self.run_id} has stored another tree for step {data.step} of this problem "
                f"({which}): adopt it, or start the run under a new id"
            )

    def _redeem(self, data: TreeRows, *, queued: bool) -> None:
        """Takes away the ticket of a tree that was searched under a lease."""
        claim = data.claim
        if claim is None:
            if queued:
                raise StoreError(
                    f"the tree of step {data.step} of this problem is queued in run {self.run_id}: claim it"
                )
            return
        ticket = {"b_ticket": claim.ticket, "b_owner": claim.owner, "b_attempts": claim.attempts}
        if self.connection.execute(_TICKET, ticket).rowcount == 0:
            raise LeaseLost(f"the lease of ticket {claim.ticket} ended and another worker has it")

    def _enter(
        self, new: Mapping[TreeName, TreeRows], prompts: Mapping[bytes, int]
    ) -> dict[TreeName, int]:
        enter(self.connection)
        trees = list(new.values())
        prompt_ids = [prompts[data.prompt["key"]] for data in trees]
        ids = self._trees(new, prompt_ids)
        nodes = self._nodes(trees, prompt_ids)
        solutions = self._solutions(trees, prompt_ids)
        self._draws(trees, ids, nodes, solutions)
        self._verdicts(trees, ids, solutions)
        visits = (
            data.visits | {"tree_id": [tree_id] * len(data.visits["row"])}
            for data, tree_id in zip(trees, ids, strict=True)
        )
        insert_rows(self.connection, schema.visit, visits)
        return dict(zip(new, ids, strict=True))

    def _trees(self, new: Mapping[TreeName, TreeRows], prompt_ids: Sequence[int]) -> list[int]:
        created = now_us()
        rows = [
            data.tree
            | {
                "run_id": self.run_id,
                "problem_id": problem_id,
                "prompt_id": prompt_id,
                "step": step,
                "number": number,
                "state": "done",
                "attempts": 1 if data.claim is None else data.claim.attempts,
                "created_us": created,
            }
            for ((step, problem_id, number), data), prompt_id in zip(
                new.items(), prompt_ids, strict=True
            )
        ]
        return [int(found) for found in self.connection.execute(_NEW_TREES, rows).scalars()]

    def _nodes(
        self, trees: Sequence[TreeRows], prompt_ids: Sequence[int]
    ) -> dict[tuple[bytes, int], int]:
        unique: dict[tuple[bytes, int], tuple[Any, ...]] = {}
        for data, prompt_id in zip(trees, prompt_ids, strict=True):
            for key, start, *rest in tuples(
                data.nodes, ("path_key", "start", "n_tokens", "tokens")
            ):
                unique[key, start] = (key, start, prompt_id, *rest)
        names = ("path_key", "start", "prompt_id", "n_tokens", "tokens")
        insert_unless_there(
            self.connection, schema.node, names, [unique[name] for name in sorted(unique)]
        )
        return {
            (key, start): node_id
            for keys in chunks(key for key, _ in unique)
            for key, start, node_id in self.connection.execute(_NODES, {"b_keys": keys})
        }

    def _solutions(self, trees: Sequence[TreeRows], prompt_ids: Sequence[int]) -> dict[bytes, int]:
        unique: dict[bytes, tuple[Any, ...]] = {}
        for data, prompt_id in zip(trees, prompt_ids, strict=True):
            for key, *rest in tuples(data.solutions, ("path_key", "n_tokens", "text", "text_key")):
                unique.setdefault(key, (key, prompt_id, *rest))
        names = ("path_key", "prompt_id", "n_tokens", "text", "text_key")
        insert_unless_there(
            self.connection, schema.solution, names, [unique[name] for name in sorted(unique)]
        )
        return {
            key: solution_id
            for keys in chunks(unique)
            for key, solution_id in self.connection.execute(_SOLUTIONS, {"b_keys": keys})
        }

    def _draws(
        self,
        trees: Sequence[TreeRows],
        ids: Sequence[int],
        nodes: Mapping[tuple[bytes, int], int],
        solutions: Mapping[bytes, int],
    ) -> None:
        policies, samplers, sources = (
            self._policies(trees),
            self._samplers(trees),
            self._sources(trees),
        )
        parts = []
        for data, tree_id in zip(trees, ids, strict=True):
            columns = dict(data.draws)
            keys = columns.pop("path_key")
            policy, sampler = data.provenance.policy, samplers[data.provenance.sampler_key]
            own = {
                version: (policies[policy.key(version)], sampler)
                for version in set(_own_versions(data))
            }
            drawn_by = [
                sources.get(source, (None, None)) if source else own[version]
                for source, version in zip(
                    columns["source"], columns["policy_version"], strict=True
                )
            ]
            columns["policy_id"] = [policy_id for policy_id, _ in drawn_by]
            columns["sampler_id"] = [sampler_id for _, sampler_id in drawn_by]
            columns["tree_id"] = [tree_id] * len(keys)
            columns["node_id"] = [
                nodes[name] for name in zip(keys, data.nodes["start"], strict=True)
            ]
            columns["solution_id"] = [
                solutions.get(key) if finish in ("stop", "length") else None
                for key, finish in zip(keys, columns["finish"], strict=True)
            ]
            parts.append(columns)
        insert_rows(self.connection, schema.draw, parts)

    def _policies(self, trees: Sequence[TreeRows]) -> dict[bytes, int]:
        """Ids by key, of the policies of the trees' own draws."""
        rows = {}
        for data in trees:
            policy = data.provenance.policy
            for version in set(_own_versions(data)):
                key = policy.key(version)
                rows[key] = {
                    "key": key,
                    "name": policy.name,
                    "digest": policy.digest,
                    "version": version,
                }
        return self._facts(schema.policy, list(rows.values()))

    def _samplers(self, trees: Sequence[TreeRows]) -> dict[bytes, int]:
        rows = {
            source.sampler_key: {"key": source.sampler_key, "params": source.sampler_json}
            for source in (data.provenance for data in trees)
        }
        return self._facts(schema.sampler, list(rows.values()))

    def _sources(self, trees: Sequence[TreeRows]) -> dict[int, tuple[int | None, int | None]]:
        """Policy and sampler of the stored draws that the trees' cached draws were taken from."""
        return {
            row.id: (row.policy_id, row.sampler_id)
            for ids in chunks(s for data in trees for s in data.draws["source"] if s)
            for row in self.connection.execute(_SOURCES, {"b_ids": ids})
        }

    def _verdicts(
        self, trees: Sequence[TreeRows], ids: Sequence[int], solutions: Mapping[bytes, int]
    ) -> None:
        judges = self._facts(
            schema.verifier,
            [verifier_row(d.provenance.verifier) for d in trees if d.verdicts["path_key"]],
        )
        names = ("outcome", "reward", "answer", "detail", "seconds")
        entered = [
            (solutions[key], judges[data.provenance.verifier.key], *rest, tree_id)
            for data, tree_id in zip(trees, ids, strict=True)
            for key, *rest in tuples(data.verdicts, ("path_key", *names))
        ]
        put_verdicts(self.connection, entered)


def _own_versions(data: TreeRows) -> Iterator[int]:
    """Policy versions of the draws that are no copies."""
    columns = data.draws
    for version, source in zip(columns["policy_version"], columns["source"], strict=True):
        if not source:
            yield version
