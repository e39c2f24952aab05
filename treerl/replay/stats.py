"""Counts over a replay cache: totals, what each run drew from others, problems."""

import json
from dataclasses import dataclass

import sqlalchemy as sa

from treerl.problem import Problem
from treerl.replay import schema
from treerl.replay.rows import RIGHT_AT
from treerl.replay.store import Store


@dataclass(frozen=True)
class Drawn:
    """What a run took from another: cached draws in its trees, distinct solutions, their tokens."""

    run: str
    draws: int
    solutions: int
    tokens: int


@dataclass(frozen=True)
class RunStats:
    """Whole trees of one run. `leaves`, `right`, `generated`: fresh ones; `cached`: tokens from the cache.

    saved: tokens that as many fresh leaves as it took from others would have cost at the run's own mean, an
    estimate. replayed: rows of its own that it drew from its pools.
    """

    id: str
    name: str
    steps: int
    trees: int
    leaves: int
    right: int
    generated: int
    cached: int
    drawn_from: tuple[Drawn, ...]
    saved: int
    replayed: int


@dataclass(frozen=True)
class Stats:
    """Totals. `right`: solutions that some verifier pays at least RIGHT_AT; `trees`: whole ones; `queued`:
    still to be searched; `tokens`: stored once each."""

    problems: int
    prompts: int
    solutions: int
    right: int
    trees: int
    queued: int
    draws: int
    nodes: int
    tokens: int
    verdicts: dict[str, int]
    bytes: int
    runs: tuple[RunStats, ...]


@dataclass(frozen=True)
class ProblemStats:
    """One problem: whole trees, fresh leaves, right ones, distinct solutions."""

    problem: Problem
    trees: int
    leaves: int
    right: int
    solutions: int


def stats(store: Store) -> Stats:
    """Totals of the cache and of its runs, oldest run first."""
    verdict = schema.verdict
    right = sa.select(sa.func.count(verdict.c.solution_id.distinct()))
    outcomes = sa.select(verdict.c.outcome, sa.func.count()).group_by(verdict.c.outcome)
    trees = sa.select(sa.func.count()).select_from(schema.tree)
    tokens = sa.select(sa.func.coalesce(sa.func.sum(schema.node.c.n_tokens), 0))
    with store.read() as connection:
        counted = {
            table.name: int(
                connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            )
            for table in (
                schema.problem,
                schema.prompt,
                schema.solution,
                schema.draw,
                schema.node,
            )
        }
        return Stats(
            problems=counted["problem"],
            prompts=counted["prompt"],
            solutions=counted["solution"],
            right=connection.execute(right.where(verdict.c.reward >= RIGHT_AT)).scalar_one(),
            trees=connection.execute(trees.where(schema.tree.c.state == "done")).scalar_one(),
            queued=connection.execute(trees.where(schema.tree.c.state != "done")).scalar_one(),
            draws=counted["draw"],
            nodes=counted["node"],
            tokens=int(connection.execute(tokens).scalar_one()),
            verdicts={
                str(outcome): int(count)
                for outcome, count in connection.execute(outcomes.order_by(verdict.c.outcome))
            },
            bytes=database_bytes(connection),
            runs=_runs(connection),
        )


def database_bytes(connection: sa.Connection) -> int:
    """Size of the database on disk."""
    if connection.dialect.name == "postgresql":
        query = "SELECT pg_database_size(current_database())"
        return int(connection.exec_driver_sql(query).scalar_one())
    pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    return int(pages) * int(connection.exec_driver_sql("PRAGMA page_size").scalar_one())


def _runs(connection: sa.Connection) -> tuple[RunStats, ...]:
    run, tree = schema.run, schema.tree
    sums = [
        sa.func.coalesce(sa.func.sum(tree.c[f"n_{name}"]), 0).label(name)
        for name in ("leaves", "right", "generated", "cached")
    ]
    query = (
        sa.select(
            run.c.id,
            run.c.name,
            sa.func.count(tree.c.step.distinct()).label("steps"),
            sa.func.count(tree.c.id).label("trees"),
            *sums,
        )
        .outerjoin(tree, (tree.c.run_id == run.c.id) & (tree.c.state == "done"))
        .group_by(run.c.id, run.c.name)
        .order_by(run.c.created_us, run.c.id)
    )
    drawn, replayed = _drawn(connection), _replayed(connection)
    found = []
    for row in connection.execute(query):
        sources = tuple(drawn.get(row.id, ()))
        others = sum(source.draws for source in sources if source.run != row.name)
        found.append(
            RunStats(
                *(row.id, row.name, row.steps, row.trees),
                *(int(row.leaves), int(row.right), int(row.generated), int(row.cached)),
                sources,
                saved=round(others * int(row.generated) / max(int(row.leaves), 1)),
                replayed=replayed.get(row.id, 0),
            )
        )
    return tuple(found)


def _replayed(connection: sa.Connection) -> dict[str, int]:
    """By run, how often it drew an item of its pools."""
    pool, item, use = schema.pool, schema.item, schema.item_use
    query = (
        sa.select(pool.c.run_id, sa.func.sum(use.c.times))
        .join(item, item.c.pool_id == pool.c.id)
        .join(use, use.c.item_id == item.c.id)
        .group_by(pool.c.run_id)
    )
    return {str(run_id): int(times) for run_id, times in connection.execute(query)}


def _drawn(connection: sa.Connection) -> dict[str, list[Drawn]]:
    """By run, what it took from which run (of runs since deleted nothing is known)."""
    copy, origin = schema.draw.alias("copy"), schema.draw.alias("origin")
    here, there = schema.tree.alias("here"), schema.tree.alias("there")
    query = (
        sa.select(
            here.c.run_id,
            schema.run.c.name,
            sa.func.count().label("draws"),
            sa.func.count(origin.c.solution_id.distinct()).label("solutions"),
            sa.func.sum(sa.func.length(copy.c.logprobs) / 4).label("tokens"),
        )
        .select_from(copy)
        .join(origin, origin.c.id == copy.c.source)
        .join(here, here.c.id == copy.c.tree_id)
        .join(there, there.c.id == origin.c.tree_id)
        .join(schema.run, schema.run.c.id == there.c.run_id)
        .where(copy.c.source > 0)
        .group_by(here.c.run_id, schema.run.c.name)
        .order_by(here.c.run_id, schema.run.c.name)
    )
    drawn: dict[str, list[Drawn]] = {}
    for row in connection.execute(query):
        item = Drawn(row.name, int(row.draws), int(row.solutions), int(row.tokens))
        drawn.setdefault(row.run_id, []).append(item)
    return drawn


def problems(store: Store, *, limit: int | None = None) -> list[ProblemStats]:
    """Problems with a whole tree, the most searched first."""
    problem, prompt, solution, tree = schema.problem, schema.prompt, schema.solution, schema.tree
    found = (
        sa.select(prompt.c.problem_id, sa.func.count().label("solutions"))
        .join(solution, solution.c.prompt_id == prompt.c.id)
        .group_by(prompt.c.problem_id)
        .subquery()
    )
    trees = sa.func.count(tree.c.id)
    query = (
        sa.select(
            *(problem.c[name] for name in ("question", "truth", "kind", "columns")),
            trees.label("trees"),
            sa.func.sum(tree.c.n_leaves).label("leaves"),
            sa.func.sum(tree.c.n_right).label("right"),
            sa.func.coalesce(sa.func.max(found.c.solutions), 0).label("solutions"),
        )
        .join(tree, (tree.c.problem_id == problem.c.id) & (tree.c.state == "done"))
        .outerjoin(found, found.c.problem_id == problem.c.id)
        .group_by(problem.c.id)
        .order_by(trees.desc(), problem.c.key)
        .limit(limit)
    )
    with store.read() as connection:
        return [
            ProblemStats(
                Problem(row.question, row.truth, row.kind, json.loads(row.columns)),
                *(int(row.trees), int(row.leaves), int(row.right), int(row.solutions)),
            )
            for row in connection.execute(query)
        ]
