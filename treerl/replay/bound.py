"""What a run may read from the cache: a position of the store, so that a resumed run reads what the unbroken

one read, and rules about runs, policies, age and verifiers within that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import sqlalchemy as sa

from treerl.replay import schema
from treerl.replay.keys import descent


@dataclass(frozen=True)
class ReadRules:
    """Which of the trees in reach a run wants to read.

    runs, exclude_runs, policies: names with `*` and `?`, of other runs and of the models that drew.
    base_weights: digest of the weights that the policy must descend from, None: any. from_step,
    created_after_us: of other runs' trees. sampling: settings that the draws' sampler must have, None: any;
    log-probs at another temperature, or of a truncated distribution, are no denominators. older_verifiers:
    versions of the run's verifier whose verdicts count where its own has none.
    """

    runs: tuple[str, ...] = ("*",)
    exclude_runs: tuple[str, ...] = ()
    policies: tuple[str, ...] = ("*",)
    base_weights: str | None = None
    from_step: int = 0
    created_after_us: int = 0
    sampling: tuple[tuple[str, Any], ...] | None = None
    older_verifiers: tuple[str, ...] = ()

    def allows_run(self, name: str) -> bool:
        """Whether another run of this name may be read."""
        return matches(name, self.runs) and not matches(name, self.exclude_runs)

    def allows_policy(self, name: str, digest: str, run_id: str) -> bool:
        """Whether draws of this policy, which drew in run `run_id`, may be read."""
        descends = self.base_weights is None or digest == descent(self.base_weights, run_id)
        return descends and matches(name, self.policies)

    def allows_sampling(self, params: Mapping[str, Any]) -> bool:
        """Whether draws of a sampler with these settings may be read."""
        return self.sampling is None or all(params.get(n) == v for n, v in self.sampling)


@dataclass(frozen=True)
class ReadBound:
    """What a run may read.

    Of other runs: trees up to `position` (`Store.position()` when the run started) that `rules` allow. Of the
    run itself: trees of steps before `before_step` (0: none), drawn by weights at most `max_staleness`
    versions behind `policy_version`. Versions of different runs do not compare: their age goes by date.
    """

    run_id: str
    position: int
    before_step: int = 0
    policy_version: int = 0
    max_staleness: int | None = None
    rules: ReadRules = field(default_factory=ReadRules)

    def trees(self) -> sa.ColumnElement[bool]:
        """SQL: the trees in reach; names of runs and policies are left to `ReadRules`."""
        tree = schema.tree
        # Not the bare column: by its index SQLite would go through all trees of the run for each problem.
        run = sa.func.coalesce(tree.c.run_id, "")
        others = (run != self.run_id) & (tree.c.id <= self.position)
        if self.rules.from_step:
            others &= tree.c.step >= self.rules.from_step
        if self.rules.created_after_us:
            others &= tree.c.created_us >= self.rules.created_after_us
        return others | (run == self.run_id) & (tree.c.step < self.before_step)

    def verdicts(self) -> sa.ColumnElement[bool]:
        """SQL: verdicts that were there when the run began, or that its own trees brought."""
        own = schema.tree.c.run_id == self.run_id
        return own | (schema.verdict.c.position <= self.position)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name fits one of these patterns (`*`, `?`, `[...]`, case counts)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
