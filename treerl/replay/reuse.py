"""Stored solutions for a new tree: judged paths of the same problem and prompt tokens, as they were drawn.

A solution carries its true behaviour log-probs, entropies and policy version, so that the update can
correct for the policy that drew it. What may be read is in treerl.replay.bound; where the solutions go in a
tree is the engine's choice.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from treerl.canon import digest
from treerl.problem import Problem
from treerl.replay import schema
from treerl.replay.bound import ReadBound, ReadRules
from treerl.replay.entry import chunks
from treerl.replay.keys import VerifierRef, problem_key, prompt_key
from treerl.replay.paths import Arrays, chain, draw_arrays, join, tree_shapes
from treerl.replay.rows import RIGHT_AT
from treerl.replay.store import Store
from treerl.search.sampler import Finish, Span
from treerl.verifiers.verdict import Verdict

Label = Literal["right", "wrong", "any"]

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Asked:
    """A problem and its prompt tokens (int32[n]) for which solutions are wanted."""

    problem: Problem
    prompt: NDArray[Any]


@dataclass(frozen=True)
class CachedSolution:
    """A judged path from the prompt to its end, T tokens.

    logprobs: of the distribution sampled from. versions: policy version of each token, in the counting of
    the run that drew it. draw: id of the stored draw that ends the path, the `source` of a graft. run_id,
    tree_id: where it was drawn.
    """

    draw: int
    path_key: bytes
    tokens: NDArray[np.int32]
    logprobs: FloatArray
    entropies: FloatArray
    versions: NDArray[np.int32]
    finish: Finish
    verdict: Verdict
    text: str | None
    run_id: str
    tree_id: int

    @property
    def policy_version(self) -> int:
        """The oldest version on the path."""
        return int(self.versions.min())

    def span(self) -> Span:
        """The whole path as one span, for `Tree.graft(ROOT, ..., source=self.draw)`."""
        return Span(self.tokens, self.logprobs, self.entropies, self.policy_version, self.finish)


def cached_solutions(
    store: Store,
    asked: Sequence[Asked],
    *,
    tokenizer: str,
    verifier: VerifierRef,
    bound: ReadBound,
    max_per_problem: int,
    label: Label = "right",
    right_at: float = RIGHT_AT,
    seed: int = 0,
) -> list[list[CachedSolution]]:
    """Up to `max_per_problem` solutions for each of `asked`, scored by exactly this verifier.

    label: right = reward >= right_at, wrong = below, any = either. Distinct by path. The order, and with
    it the choice, is a shuffle named by `seed`, the same on every machine; a path drawn several times is
    taken from the newest draw. Cached draws are never handed on: only original ones are read.
    """
    keys = [
        prompt_key(problem_key(a.problem), tokenizer, np.asarray(a.prompt, np.int32)) for a in asked
    ]
    if max_per_problem <= 0 or not asked:
        return [[] for _ in asked]
    with store.read() as connection:
        found = _candidates(connection, set(keys), verifier, bound, label, right_at)
        candidates = _allowed(connection, found, bound)
        young = _young(connection, candidates, bound)
        chosen = _choose(young, max_per_problem, seed)
        solutions = _assembled(connection, chosen)
    by_prompt: dict[bytes, list[CachedSolution]] = {}
    for row, solution in zip(chosen, solutions, strict=True):
        by_prompt.setdefault(row.prompt_key, []).append(solution)
    return [by_prompt.get(key, []) for key in keys]


def solutions_of_draws(
    store: Store, draws: Iterable[int], *, verifier: VerifierRef
) -> dict[int, tuple[NDArray[np.int32], CachedSolution]]:
    """By id of the draw that ends it: prompt tokens (int32[n]) and solution, where `verifier` has scored it."""
    query = _solutions().add_columns(schema.prompt.c.tokens.label("prompt_tokens"))
    query = query.where(schema.verifier.c.key == verifier.key)
    found: list[Any] = []
    with store.read() as connection:
        for some in chunks(draws):
            found += connection.execute(query.where(schema.draw.c.id.in_(some))).all()
        solutions = _assembled(connection, found)
    return {
        row.id: (np.frombuffer(row.prompt_tokens, "<i4"), solution)
        for row, solution in zip(found, solutions, strict=True)
    }


def source_runs(store: Store, draws: Iterable[int]) -> dict[int, str]:
    """Id of the run in which each of these draws was made; those since deleted are missing."""
    draw, tree = schema.draw, schema.tree
    query = sa.select(draw.c.id, tree.c.run_id).join(tree, tree.c.id == draw.c.tree_id)
    with store.read() as connection:
        return {
            int(row.id): str(row.run_id)
            for some in chunks(draws)
            for row in connection.execute(query.where(draw.c.id.in_(some)))
        }


def _solutions() -> "sa.Select[Any]":
    """Draws that end a path, with its scored verdicts."""
    draw, tree, prompt = schema.draw, schema.tree, schema.prompt
    solution, verdict, judge = schema.solution, schema.verdict, schema.verifier
    return (
        sa.select(
            *(
                draw.c[name]
                for name in ("id", "tree_id", "row", "finish", "policy_id", "sampler_id")
            ),
            prompt.c.key.label("prompt_key"),
            solution.c.path_key,
            solution.c.text,
            tree.c.run_id,
            *(verdict.c[name] for name in ("reward", "answer")),
        )
        .select_from(prompt)
        .join(solution, solution.c.prompt_id == prompt.c.id)
        .join(verdict, verdict.c.solution_id == solution.c.id)
        .join(judge, judge.c.id == verdict.c.verifier_id)
        .join(draw, draw.c.solution_id == solution.c.id)
        .join(tree, tree.c.id == draw.c.tree_id)
        .where(verdict.c.outcome == "scored")
    )


def _candidates(
    connection: sa.Connection,
    keys: Iterable[bytes],
    verifier: VerifierRef,
    bound: ReadBound,
    label: Label,
    right_at: float,
) -> list[Any]:
    """Original draws that end a judged path of these prompts, newest first."""
    draw, verdict = schema.draw, schema.verdict
    query = (
        _solutions()
        .where(_judged_by(verifier, bound.rules.older_verifiers))
        .where(draw.c.source == 0, bound.trees(), bound.verdicts())
        .order_by(draw.c.tree_id.desc(), draw.c.row.desc())
    )
    if label == "right":
        query = query.where(verdict.c.reward >= right_at)
    elif label == "wrong":
        query = query.where(verdict.c.reward < right_at)
    rows: list[Any] = []
    for some in chunks(keys):
        rows += connection.execute(query.where(schema.prompt.c.key.in_(some))).all()
    return rows


def _judged_by(verifier: VerifierRef, older: Sequence[str]) -> sa.ColumnElement[bool]:
    """SQL: verdicts of the verifier, or of its older versions where it has not scored the solution itself."""
    judge, verdict = schema.verifier, schema.verdict
    current = judge.c.key == verifier.key
    if not older:
        return current
    other, its = verdict.alias("other"), judge.alias("its")
    judged = sa.exists(
        sa.select(other.c.solution_id)
        .join(its, its.c.id == other.c.verifier_id)
        .where(its.c.key == verifier.key, other.c.outcome == "scored")
        .where(other.c.solution_id == verdict.c.solution_id)
    )
    same = (judge.c.name == verifier.name) & (judge.c.config == verifier.config_json)
    return current | (same & judge.c.version.in_(older) & ~judged)


def _allowed(connection: sa.Connection, rows: Sequence[Any], bound: ReadBound) -> list[Any]:
    """The rows whose run, policy and sampler the rules allow; the run's own name is not asked."""
    rules = bound.rules
    if rules == ReadRules():
        return list(rows)
    runs = _rows_by_id(connection, schema.run, {row.run_id for row in rows})
    policies = _rows_by_id(connection, schema.policy, {row.policy_id for row in rows})
    samplers = _rows_by_id(connection, schema.sampler, {row.sampler_id for row in rows})
    in_runs = {i for i, run in runs.items() if i == bound.run_id or rules.allows_run(run.name)}
    sampled = {i for i, one in samplers.items() if rules.allows_sampling(json.loads(one.params))}

    def is_allowed(row: Any) -> bool:
        policy = policies[row.policy_id]
        return (
            row.run_id in in_runs
            and row.sampler_id in sampled
            and rules.allows_policy(policy.name, policy.digest, row.run_id)
        )

    return [row for row in rows if is_allowed(row)]


def _rows_by_id(connection: sa.Connection, table: sa.Table, ids: set[Any]) -> dict[Any, Any]:
    query = sa.select(table)
    if table is schema.run:
        query = sa.select(table.c.id, table.c.name)
    return {
        row.id: row
        for some in chunks(ids)
        for row in connection.execute(query.where(table.c.id.in_(some)))
    }


def _young(connection: sa.Connection, candidates: Sequence[Any], bound: ReadBound) -> list[Any]:
    """The candidates without the run's own that were drawn by weights too old."""
    if bound.max_staleness is None:
        return list(candidates)
    own = {row.tree_id for row in candidates if row.run_id == bound.run_id}
    shapes = tree_shapes(connection, own)
    oldest = bound.policy_version - bound.max_staleness
    return [
        row
        for row in candidates
        if row.tree_id not in own
        or min(draw.policy_version for draw in chain(shapes[row.tree_id], row.row)) >= oldest
    ]


def _choose(candidates: Sequence[Any], limit: int, seed: int) -> list[Any]:
    """The first draws of the shuffled distinct paths, at most `limit` a prompt."""
    distinct: dict[bytes, Any] = {}
    for row in candidates:
        distinct.setdefault(row.path_key, row)
    taken: dict[bytes, int] = {}
    chosen = []
    for row in sorted(distinct.values(), key=lambda row: digest("cached", seed, row.path_key)):
        if taken.get(row.prompt_key, 0) < limit:
            taken[row.prompt_key] = taken.get(row.prompt_key, 0) + 1
            chosen.append(row)
    return chosen


def _assembled(connection: sa.Connection, rows: Sequence[Any]) -> list[CachedSolution]:
    """The whole paths that these draws end."""
    shapes = tree_shapes(connection, {row.tree_id for row in rows})
    chains = [chain(shapes[row.tree_id], row.row) for row in rows]
    arrays = draw_arrays(connection, {draw.id for path in chains for draw in path})
    return [_assemble(row, join(path, arrays)) for row, path in zip(rows, chains, strict=True)]


def _assemble(row: Any, arrays: Arrays) -> CachedSolution:
    return CachedSolution(
        draw=row.id,
        path_key=row.path_key,
        tokens=arrays["tokens"],
        logprobs=arrays["logprobs"],
        entropies=arrays["entropies"],
        versions=arrays["versions"],
        finish=Finish[row.finish.upper()],
        verdict=Verdict("scored", row.reward, row.answer),
        text=row.text,
        run_id=row.run_id,
        tree_id=row.tree_id,
    )


def stored_prompts(store: Store, *, tokenizer: str) -> list[Asked]:
    """All prompts of this tokenizer with a stored solution, by prompt key: for training on the cache alone."""
    problem, prompt, solution = schema.problem, schema.prompt, schema.solution
    query = (
        sa.select(
            *(problem.c[n] for n in ("question", "truth", "kind", "columns")), prompt.c.tokens
        )
        .join(prompt, prompt.c.problem_id == problem.c.id)
        .where(prompt.c.tokenizer == tokenizer)
        .where(sa.exists().where(solution.c.prompt_id == prompt.c.id))
        .order_by(prompt.c.key)
    )
    with store.read() as connection:
        return [
            Asked(
                Problem(row.question, row.truth, row.kind, json.loads(row.columns)),
                np.frombuffer(row.tokens, "<i4"),
            )
            for row in connection.execute(query)
        ]
