"""What a person browses: problems newest first, trees with their entropy, where a tree's tokens come from.

Reads alone, of whole trees; `limit` bounds every list, since entropies are kept a draw.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from treerl.problem import Problem
from treerl.replay import schema
from treerl.replay.entry import chunks
from treerl.replay.store import Store


@dataclass(frozen=True, slots=True)
class ProblemRow:
    """One problem: its whole trees, their fresh leaves and right ones, the newest tree and when it was made."""

    problem: Problem
    trees: int
    leaves: int
    right: int
    newest: int
    created_us: int


@dataclass(frozen=True, slots=True)
class DrawOrigin:
    """Where the tokens of a draw come from.

    policy, version: who drew them, of a cached draw originally; "" where that is not known any more.
    sampler: its parameters. source_tree, source_run: where a cached draw was taken from (0, "": deleted).
    """

    policy: str
    digest: str
    version: int
    sampler: Mapping[str, Any]
    seed: int
    cached: bool = False
    source_tree: int = 0
    source_run: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one verifier version says of a solution today."""

    verifier: str
    version: str
    outcome: str
    reward: float | None
    answer: str | None
    detail: Mapping[str, Any]


def browse_problems(
    store: Store, *, run_id: str | None = None, limit: int | None = None
) -> list[ProblemRow]:
    """Problems with a whole tree (of the run), those with the newest trees first."""
    problem, tree = schema.problem, schema.tree
    newest = sa.func.max(tree.c.id)
    query = (
        sa.select(
            *(problem.c[name] for name in ("question", "truth", "kind", "columns")),
            sa.func.count(tree.c.id).label("trees"),
            sa.func.sum(tree.c.n_leaves).label("leaves"),
            sa.func.sum(tree.c.n_right).label("right"),
            newest.label("newest"),
            sa.func.max(tree.c.created_us).label("created_us"),
        )
        .join(tree, (tree.c.problem_id == problem.c.id) & (tree.c.state == "done"))
        .group_by(problem.c.id)
        .order_by(newest.desc())
        .limit(limit)
    )
    if run_id is not None:
        query = query.where(tree.c.run_id == run_id)
    with store.read() as connection:
        return [
            ProblemRow(
                Problem(row.question, row.truth, row.kind, json.loads(row.columns)),
                *(int(row.trees), int(row.leaves), int(row.right)),
                *(int(row.newest), int(row.created_us)),
            )
            for row in connection.execute(query)
        ]


def tree_entropies(store: Store, tree_ids: Iterable[int]) -> dict[int, float]:
    """Mean entropy (nats) of the tokens drawn for each tree; trees without a known one are absent."""
    draw = schema.draw
    total: dict[int, float] = {}
    count: dict[int, int] = {}
    with store.read() as connection:
        for ids in chunks(tree_ids):
            query = sa.select(draw.c.tree_id, draw.c.entropies).where(
                draw.c.tree_id.in_(ids), draw.c.source == 0
            )
            for tree_id, blob in connection.execute(query):
                values = np.frombuffer(blob, "<f4")
                known = values[np.isfinite(values)].astype(np.float64)
                total[tree_id] = total.get(tree_id, 0.0) + float(known.sum())
                count[tree_id] = count.get(tree_id, 0) + len(known)
    return {tree_id: total[tree_id] / n for tree_id, n in count.items() if n}


def draw_origins(store: Store, tree_id: int) -> dict[int, DrawOrigin]:
    """Where each draw of a tree comes from, by draw row (the prompt, row 0, has none)."""
    draw, policy, sampler, tree = schema.draw, schema.policy, schema.sampler, schema.tree
    origin, there = draw.alias("origin"), tree.alias("there")
    query = (
        sa.select(
            *(draw.c[name] for name in ("row", "seed", "source", "policy_version")),
            policy.c.name.label("policy"),
            policy.c.digest,
            sampler.c.params,
            there.c.id.label("source_tree"),
            schema.run.c.name.label("source_run"),
        )
        .outerjoin(policy, policy.c.id == draw.c.policy_id)
        .outerjoin(sampler, sampler.c.id == draw.c.sampler_id)
        .outerjoin(origin, (origin.c.id == draw.c.source) & (draw.c.source > 0))
        .outerjoin(there, there.c.id == origin.c.tree_id)
        .outerjoin(schema.run, schema.run.c.id == there.c.run_id)
        .where(draw.c.tree_id == tree_id)
    )
    with store.read() as connection:
        return {
            row.row: DrawOrigin(
                policy=row.policy or "",
                digest=row.digest or "",
                version=row.policy_version,
                sampler=json.loads(row.params) if row.params else {},
                seed=row.seed,
                cached=row.source > 0,
                source_tree=row.source_tree or 0,
                source_run=row.source_run or "",
            )
            for row in connection.execute(query)
        }


def judgements(store: Store, tree_id: int) -> dict[int, list[Judgement]]:
    """All stored verdicts on the ended draws of a tree, by draw row; newest verifier versions last."""
    draw, verdict, verifier = schema.draw, schema.verdict, schema.verifier
    query = (
        sa.select(
            draw.c.row,
            verifier.c.name,
            verifier.c.version,
            *(verdict.c[name] for name in ("outcome", "reward", "answer", "detail")),
        )
        .join(verdict, verdict.c.solution_id == draw.c.solution_id)
        .join(verifier, verifier.c.id == verdict.c.verifier_id)
        .where(draw.c.tree_id == tree_id)
        .order_by(draw.c.row, verifier.c.id)
    )
    found: dict[int, list[Judgement]] = {}
    with store.read() as connection:
        for row in connection.execute(query):
            judgement = Judgement(
                row.name,
                row.version,
                row.outcome,
                row.reward,
                row.answer,
                json.loads(row.detail) if row.detail else {},
            )
            found.setdefault(row.row, []).append(judgement)
    return found
