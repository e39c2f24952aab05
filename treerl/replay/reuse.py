"""Stored solutions for a new tree: judged paths of the same problem and prompt tokens, as they were drawn.

A solution carries its true behaviour log-probs, entropies and policy version, so that the update can
correct for the policy that drew it. What may be read is bounded by a position of the store, so that a
resumed run reads what the unbroken one read. Where the solutions go in a tree is the engine's choice.
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


@dataclass(frozen=True)
class ReadBound:
    """What a run may read.

    Of other runs: trees up to `position` (`Store.position()` when the run started). Of the run itself:
    trees of steps before `before_step` (0: none), drawn by weights at most `max_staleness` versions behind
    `policy_version`. Versions of different runs do not compare, so other runs' age is not limited.
    """

    run_id: str
    position: int
    before_step: int = 0
    policy_version: int = 0
    max_staleness: int | None = None


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
        candidates = _candidates(connection, set(keys), verifier, bound, label, right_at)
        young = _young(connection, candidates, bound)
        chosen = _choose(young, max_per_problem, seed)
        shapes = tree_shapes(connection, {row.tree_id for row in chosen})
        chains = {row.id: chain(shapes[row.tree_id], row.row) for row in chosen}
        arrays = draw_arrays(connection, {draw.id for path in chains.values() for draw in path})
    by_prompt: dict[bytes, list[CachedSolution]] = {}
    for row in chosen:
        by_prompt.setdefault(row.prompt_key, []).append(
            _assemble(row, join(chains[row.id], arrays))
        )
    return [by_prompt.get(key, []) for key in keys]


def _candidates(
    connection: sa.Connection,
    keys: Iterable[bytes],
    verifier: VerifierRef,
    bound: ReadBound,
    label: Label,
    right_at: float,
) -> list[Any]:
    """Original draws that end a judged path of these prompts, newest first."""
    draw, tree, prompt = schema.draw, schema.tree, schema.prompt
    solution, verdict, judge = schema.solution, schema.verdict, schema.verifier
    others = (tree.c.run_id != bound.run_id) & (tree.c.id <= bound.position)
    others &= verdict.c.position <= bound.position
    own = (tree.c.run_id == bound.run_id) & (tree.c.step < bound.before_step)
    query = (
        sa.select(
            *(draw.c[name] for name in ("id", "tree_id", "row", "finish")),
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
        .where(judge.c.key == verifier.key, verdict.c.outcome == "scored")
        .where(draw.c.source == 0, others | own)
        .order_by(draw.c.tree_id.desc(), draw.c.row.desc())
    )
    if label == "right":
        query = query.where(verdict.c.reward >= right_at)
    elif label == "wrong":
        query = query.where(verdict.c.reward < right_at)
    rows: list[Any] = []
    for some in chunks(keys):
        rows += connection.execute(query.where(prompt.c.key.in_(some))).all()
    return rows


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
