"""Pass rates of problems from stored trees: of full responses drawn from the prompt, and nothing else.

A regenerated branch was chosen by a search, a cached row for being right: neither says how often the policy
solves the problem. Every ended response counts, one that ran into the length limit or was never scored as
a failure.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from treerl.problem import Problem
from treerl.replay import schema
from treerl.replay.bound import ReadBound
from treerl.replay.entry import chunks
from treerl.replay.keys import VerifierRef, problem_key
from treerl.replay.rows import RIGHT_AT
from treerl.replay.store import Store


@dataclass(frozen=True)
class Rate:
    """`right` of `count` responses."""

    right: int
    count: int

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.right / self.count


def pass_rates(
    store: Store, problems: Iterable[Problem], *, verifier: VerifierRef, bound: ReadBound
) -> dict[str, Rate]:
    """By problem key, over all trees in reach of `bound` (names of runs and policies are not looked at).

    Problems without a response are missing.
    """
    query = (
        _root_draws(verifier)
        .where(bound.trees())
        .add_columns(schema.problem.c.key)
        .group_by(schema.problem.c.key)
    )
    keys = {problem_key(problem) for problem in problems}
    with store.read() as connection:
        return {
            row.key.hex(): Rate(int(row.n_right), int(row.n_drawn))
            for some in chunks(keys)
            for row in connection.execute(query.where(schema.problem.c.key.in_(some)))
        }


def rate_history(
    store: Store, run_id: str, *, verifier: VerifierRef, position: int
) -> dict[str, list[Rate]]:
    """By problem key, the pass rate at each step at which a run tried it, in order; trees up to `position`."""
    tree, problem = schema.tree, schema.problem
    query = (
        _root_draws(verifier)
        .where(tree.c.run_id == run_id, tree.c.id <= position)
        .add_columns(problem.c.key, tree.c.step)
        .group_by(problem.c.key, tree.c.step)
        .order_by(problem.c.key, tree.c.step)
    )
    found: dict[str, list[Rate]] = {}
    with store.read() as connection:
        for row in connection.execute(query):
            found.setdefault(row.key.hex(), []).append(Rate(int(row.n_right), int(row.n_drawn)))
    return found


def policy_rates(
    store: Store, policies: Iterable[bytes], *, verifier: VerifierRef
) -> dict[bytes, Rate]:
    """By policy key (`PolicyRef.key`), over all its fresh responses from the prompt; others are missing."""
    policy = schema.policy
    query = (
        _root_draws(verifier)
        .join(policy, policy.c.id == schema.draw.c.policy_id)
        .add_columns(policy.c.key)
        .group_by(policy.c.key)
    )
    with store.read() as connection:
        return {
            row.key: Rate(int(row.n_right), int(row.n_drawn))
            for some in chunks(policies)
            for row in connection.execute(query.where(policy.c.key.in_(some)))
        }


def _root_draws(verifier: VerifierRef) -> Any:
    """`n_right` and `n_drawn` of ended fresh draws from the prompt; columns to group by are the caller's."""
    draw, tree, problem = schema.draw, schema.tree, schema.problem
    verdict, judge = schema.verdict, schema.verifier
    # By its id and no subquery over verdicts, which SQLite would work out for all there are.
    judged = verdict.c.verifier_id == (
        sa.select(judge.c.id).where(judge.c.key == verifier.key).scalar_subquery()
    )
    right = sa.func.sum(sa.case((verdict.c.reward >= RIGHT_AT, 1), else_=0))
    return (
        sa.select(right.label("n_right"), sa.func.count().label("n_drawn"))
        .select_from(problem)
        .join(tree, tree.c.problem_id == problem.c.id)
        .join(draw, draw.c.tree_id == tree.c.id)
        .outerjoin(verdict, (verdict.c.solution_id == draw.c.solution_id) & judged)
        .where(draw.c.parent == 0, draw.c.source == 0, draw.c.finish.in_(("stop", "length")))
    )
