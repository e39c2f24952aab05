"""Judging stored solutions anew by another verifier, and what that changes.

Verdicts are added, none is replaced: each verifier (name, version, configuration) has its own. Solutions
that this verifier has scored or skipped already are left out, so an interrupted pass goes on where it
stopped; those where it ran out of time or failed are tried again.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from treerl.canon import canonical_json
from treerl.problem import Problem
from treerl.replay import schema
from treerl.replay.entry import fact_ids, put_verdicts, verifier_row
from treerl.replay.keys import VerifierRef
from treerl.replay.paths import chain, draw_arrays, join, tree_shapes
from treerl.replay.position import tick
from treerl.replay.rows import RIGHT_AT
from treerl.replay.store import Store
from treerl.verifiers.verdict import Completion, Verdict, Verify

PAGE = 256
"""Solutions judged and stored in one transaction: what a killed pass does again at most."""

STATES = ("right", "wrong", "none")
"""Of a solution under a verifier: pays RIGHT_AT or more, pays less, no reward."""


@dataclass(frozen=True)
class Stored:
    """A solution to be judged: its id, problem, response text and how it ended; tokens where asked for."""

    id: int
    problem: Problem
    completion: Completion


@dataclass(frozen=True)
class Change:
    """One solution that two verifiers see differently; rewards are None where there is none."""

    question: str
    truth: str
    text: str
    before: float | None
    after: float | None
    answer_before: str | None
    answer_after: str | None


@dataclass(frozen=True)
class Comparison:
    """Solutions by state before and after, and some of those that changed, by (before, after)."""

    counts: dict[tuple[str, str], int]
    examples: dict[tuple[str, str], list[Change]]


def count_unjudged(store: Store, verifier: VerifierRef) -> tuple[int, int]:
    """Solutions that `verifier` has still to judge; and those without text, which nobody can judge."""
    solution = schema.solution
    counts = [
        sa.func.count(sa.case((condition, 1)))
        for condition in (solution.c.text.is_not(None), solution.c.text.is_(None))
    ]
    with store.read() as connection:
        row = connection.execute(sa.select(*counts).where(_unjudged(verifier))).one()
    return int(row[0]), int(row[1])


def rejudge(
    store: Store, verify: Verify, verifier: VerifierRef, *, with_tokens: bool = False
) -> Iterator[int]:
    """Judges what is left, page by page; yields how many solutions each stored page had.

    with_tokens: completions carry their token ids, for verifiers that look at them.
    """
    last = 0
    while page := _page(store, verifier, last, with_tokens=with_tokens):
        verdicts = verify([s.problem for s in page], [s.completion for s in page])
        _put(store, verifier, page, verdicts)
        last = page[-1].id
        yield len(page)


def compare(store: Store, verifier: VerifierRef, *, examples: int = 5) -> Comparison:
    """This verifier's verdicts against the newest one of any other verifier, on solutions that have both."""
    counts: dict[tuple[str, str], int] = {}
    shown: dict[tuple[str, str], list[Change]] = {}
    with store.read() as connection:
        for row in connection.execute(_both(verifier)):
            pair = _state(row.before), _state(row.after)
            counts[pair] = counts.get(pair, 0) + 1
            if pair[0] != pair[1] and len(shown.setdefault(pair, [])) < examples:
                shown[pair].append(Change(**row._mapping))
    return Comparison(dict(sorted(counts.items())), dict(sorted(shown.items())))


def _state(reward: float | None) -> str:
    if reward is None:
        return "none"
    return "right" if reward >= RIGHT_AT else "wrong"


def _unjudged(verifier: VerifierRef) -> "sa.ColumnElement[bool]":
    verdict, judge, solution = schema.verdict, schema.verifier, schema.solution
    judged = (
        sa.select(sa.literal(1))
        .select_from(verdict)
        .where(verdict.c.solution_id == solution.c.id)
        .where(verdict.c.outcome.in_(("scored", "skipped")))
        .where(
            verdict.c.verifier_id
            == sa.select(judge.c.id).where(judge.c.key == verifier.key).scalar_subquery()
        )
    )
    return ~judged.exists()


def _page(store: Store, verifier: VerifierRef, last: int, *, with_tokens: bool) -> list[Stored]:
    solution, prompt, problem, draw = schema.solution, schema.prompt, schema.problem, schema.draw
    ends = draw.alias("ends")
    first = sa.select(sa.func.min(ends.c.id)).where(ends.c.solution_id == solution.c.id)
    query = (
        sa.select(
            *(solution.c[name] for name in ("id", "text")),
            *(problem.c[name] for name in ("question", "truth", "kind", "columns")),
            *(draw.c[name].label(f"draw_{name}") for name in ("id", "tree_id", "row", "finish")),
        )
        .join(prompt, prompt.c.id == solution.c.prompt_id)
        .join(problem, problem.c.id == prompt.c.problem_id)
        .outerjoin(draw, draw.c.id == first.scalar_subquery())
        .where(solution.c.id > last, solution.c.text.is_not(None), _unjudged(verifier))
        .order_by(solution.c.id)
        .limit(PAGE)
    )
    with store.read() as connection:
        found = connection.execute(query).all()
        tokens = _tokens(connection, found) if with_tokens else {}
    return [_stored(row, tokens.get(row.id, ())) for row in found]


def _tokens(connection: sa.Connection, found: Sequence[Any]) -> dict[int, tuple[int, ...]]:
    """By solution, the tokens of its whole path."""
    drawn = [row for row in found if row.draw_id is not None]
    shapes = tree_shapes(connection, {row.draw_tree_id for row in drawn})
    paths = {row.id: chain(shapes[row.draw_tree_id], row.draw_row) for row in drawn}
    arrays = draw_arrays(connection, {draw.id for path in paths.values() for draw in path})
    return {
        solution: tuple(join(path, arrays)["tokens"].tolist()) for solution, path in paths.items()
    }


def _stored(row: Any, tokens: tuple[int, ...]) -> Stored:
    problem = Problem(row.question, row.truth, row.kind, json.loads(row.columns))
    completion = Completion(row.text, row.draw_finish or "stop", row.question, tokens)
    return Stored(row.id, problem, completion)


def _put(
    store: Store, verifier: VerifierRef, page: Sequence[Stored], verdicts: Sequence[Verdict]
) -> None:
    with store.write() as connection:
        row = verifier_row(verifier)
        ids = fact_ids(connection, schema.verifier, {verifier.key: row})
        position = tick(connection)
        put_verdicts(
            connection,
            [
                (
                    *(solution.id, ids[verifier.key], verdict.outcome, verdict.reward),
                    verdict.answer,
                    canonical_json(dict(verdict.detail)) if verdict.detail else None,
                    *(verdict.seconds, position),
                )
                for solution, verdict in zip(page, verdicts, strict=True)
            ],
        )


def _both(verifier: VerifierRef) -> "sa.Select[Any]":
    """Both rewards and answers of each solution with a verdict of `verifier` and one of another."""
    judge, solution = schema.verifier, schema.solution
    prompt, problem = schema.prompt, schema.problem
    mine = sa.select(judge.c.id).where(judge.c.key == verifier.key).scalar_subquery()
    after, other = schema.verdict.alias("after"), schema.verdict.alias("other")
    newest = sa.func.row_number().over(
        partition_by=other.c.solution_id,
        order_by=(other.c.position.desc(), other.c.verifier_id.desc()),
    )
    ranked = sa.select(other, newest.label("rank")).where(other.c.verifier_id != mine).subquery()
    return (
        sa.select(
            *(problem.c[name] for name in ("question", "truth")),
            solution.c.text,
            ranked.c.reward.label("before"),
            after.c.reward.label("after"),
            ranked.c.answer.label("answer_before"),
            after.c.answer.label("answer_after"),
        )
        .select_from(after)
        .join(ranked, (ranked.c.solution_id == after.c.solution_id) & (ranked.c.rank == 1))
        .join(solution, solution.c.id == after.c.solution_id)
        .join(prompt, prompt.c.id == solution.c.prompt_id)
        .join(problem, problem.c.id == prompt.c.problem_id)
        .where(after.c.verifier_id == mine)
        .order_by(solution.c.path_key)
    )
