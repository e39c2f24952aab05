"""What a training run reads from the cache for its problems, by the recipe's [replay]."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from treerl.config import Recipe
from treerl.engine.step import graft_cached
from treerl.problem import Problem
from treerl.replay.bound import ReadBound, ReadRules
from treerl.replay.keys import Provenance
from treerl.replay.rates import pass_rates
from treerl.replay.reuse import Asked, CachedSolution, Label, cached_solutions, source_runs
from treerl.replay.store import Store
from treerl.search.tree import Tree

SAMPLING = ("temperature", "top_p", "top_k")
"""Settings of a sampler that decide what its log-probs are of."""

DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Reader:
    """Reads for one run; `bound` is what it may read at step 0."""

    store: Store
    recipe: Recipe
    provenance: Provenance
    bound: ReadBound

    @classmethod
    def of(
        cls,
        store: Store,
        recipe: Recipe,
        provenance: Provenance,
        *,
        run_id: str,
        position: int,
        base_weights: str,
    ) -> "Reader":
        """The reader of a run that began at `position` of the store."""
        read, oldest = recipe.replay.read, 0
        if read.max_age_days is not None:
            begun = next(run.created_us for run in store.runs() if run.id == run_id)
            oldest = begun - int(read.max_age_days * DAY_US)
        sampling = tuple((n, provenance.sampler.get(n)) for n in SAMPLING)
        rules = ReadRules(
            runs=read.runs,
            exclude_runs=read.exclude_runs,
            policies=read.policies,
            base_weights=base_weights if read.same_policy else None,
            from_step=read.from_step,
            sampling=sampling if read.same_sampling else None,
            created_after_us=max(oldest, 0),
            older_verifiers=read.verifier_versions,
        )
        bound = ReadBound(run_id, position, max_staleness=recipe.replay.max_staleness, rules=rules)
        return cls(store, recipe, provenance, bound)

    @property
    def reads_own(self) -> bool:
        """Whether it reads trees of the run's earlier steps, which must then be in the store."""
        replay = self.recipe.replay
        return replay.reuse and replay.read.own and replay.max_cached + replay.collapse.rows > 0

    def at(self, step: int) -> ReadBound:
        """What may be read when `step` begins."""
        before = step if self.recipe.replay.read.own else 0
        return replace(self.bound, before_step=before, policy_version=step)

    def for_step(
        self,
        problems: Sequence[Problem],
        prompts: Sequence[Sequence[int] | None],
        step: int,
    ) -> dict[str, list[CachedSolution]]:
        """Solutions to graft before the search, by problem key; prompts: token ids, None = too long."""
        replay = self.recipe.replay
        if not replay.reuse or replay.max_cached == 0:
            return {}
        asked = [
            Asked(problem, np.asarray(prompt, np.int32))
            for problem, prompt in zip(problems, prompts, strict=True)
            if prompt is not None
        ]
        if (limit := replay.read.max_rate) is not None:
            rates = pass_rates(
                self.store,
                [a.problem for a in asked],
                verifier=self.provenance.verifier,
                bound=self.at(step),
            )
            hard = {key for key, rate in rates.items() if rate.share <= limit}
            asked = [a for a in asked if a.problem.key in hard]
        found = self._find(asked, step, replay.read.label, replay.max_cached)
        return {a.problem.key: solutions for a, solutions in zip(asked, found, strict=True)}

    def repair(self, tree: Tree, problem: Problem, step: int) -> int:
        """Grafts stored rows of the other label into a finished tree whose verdicts are all one; how many."""
        collapse, label = self.recipe.replay.collapse, opposite(tree)
        if label is None or collapse.rows == 0 or not self.recipe.replay.reuse:
            return 0
        if collapse.label not in (label, "any"):
            return 0
        asked = Asked(problem, tree.tokens.token[: tree.n_prompt])
        return graft_cached(tree, self._find([asked], step, label, collapse.rows)[0])

    def _find(
        self, asked: Sequence[Asked], step: int, label: Label, limit: int
    ) -> list[list[CachedSolution]]:
        return cached_solutions(
            self.store,
            asked,
            tokenizer=self.provenance.tokenizer,
            verifier=self.provenance.verifier,
            bound=self.at(step),
            max_per_problem=limit,
            label=label,
            seed=self.recipe.seed,
        )

    def metrics(self, trees: Sequence[Tree], step: int) -> dict[str, float]:
        """Where the cached rows of a step came from, and how many steps behind the run's own ones were."""
        ages: dict[int, int] = {}
        rows: list[int] = []
        for tree in trees:
            draws = tree.draws
            cached = np.flatnonzero(draws.source > 0)
            rows += draws.source[cached].tolist()
            behind = (step - draws.policy_version[cached]).tolist()
            ages |= dict(zip(draws.source[cached].tolist(), behind, strict=True))
        runs = source_runs(self.store, rows) if rows else {}
        own = [ages[source] for source in rows if runs.get(source) == self.bound.run_id]
        found: dict[str, float] = {
            "replay/own_rows": len(own),
            "replay/other_rows": len(rows) - len(own),
        }
        if own:
            found |= {"replay/age_mean": float(np.mean(own)), "replay/age_max": max(own)}
        return found


def opposite(tree: Tree, right_at: float = 1.0) -> Label | None:
    """The label that a tree lacks: right where all leaves are wrong, wrong where all are right."""
    rewards = tree.nodes.reward[~np.isnan(tree.nodes.reward)]
    if len(rewards) == 0 or not tree.is_uniform():
        return None
    return "wrong" if rewards[0] >= right_at else "right"
