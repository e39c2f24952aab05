"""What a training run reads from the cache for its problems, by the recipe's [replay]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from treerl.config import Recipe
from treerl.problem import Problem
from treerl.replay.bound import ReadBound, ReadRules
from treerl.replay.keys import Provenance
from treerl.replay.rates import pass_rates
from treerl.replay.reuse import Asked, CachedSolution, Label, cached_solutions, source_runs
from treerl.replay.store import Store
from treerl.search.sampler import Origin
from treerl.search.tree import Tree

DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Reader:
    """Reads for one run. base_weights: digest of what it starts from. bound: at step 0."""

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
        rules = ReadRules(
            runs=read.runs,
            exclude_runs=read.exclude_runs,
            policies=read.policies,
            base_weights=base_weights if read.same_policy else None,
            from_step=read.from_step,
            created_after_us=max(oldest, 0),
            older_verifiers=read.verifier_versions,
        )
        bound = ReadBound(
            run_id, position, max_staleness=recipe.replay.max_staleness, rules=rules
        )
        return cls(store, recipe, provenance, bound)

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

    def against(
        self, tree: Tree, problem: Problem, prompt: NDArray[np.int32], step: int
    ) -> list[CachedSolution]:
        """Rows of the other label for a tree whose judged leaves all have one reward; else none."""
        collapse = self.recipe.replay.collapse
        label = opposite(tree)
        if label is None or collapse.rows == 0 or not self.recipe.replay.reuse:
            return []
        if collapse.groups == ("right" if label == "right" else "wrong"):
            return []
        return self._find([Asked(problem, prompt)], step, label, collapse.rows)[0]

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
        sources: list[int] = []
        ages: Mapping[int, int] = {}
        ages = {}
        for tree in trees:
            cached = np.flatnonzero(tree.draws.source > 0)
            sources += tree.draws.source[cached].tolist()
            versions = tree.draws.policy_version[cached]
            ages |= dict(
                zip(tree.draws.source[cached].tolist(), (step - versions).tolist(), strict=True)
            )
        if not sources:
            return {"replay/own_rows": 0, "replay/other_rows": 0}
        runs = source_runs(self.store, sources)
        own = [source for source in sources if runs.get(source) == self.bound.run_id]
        row: dict[str, float] = {
            "replay/own_rows": len(own),
            "replay/other_rows": len(sources) - len(own),
        }
        if own:
            of_own = [ages[source] for source in own]
            row |= {"replay/age_mean": float(np.mean(of_own)), "replay/age_max": max(of_own)}
        return row


def opposite(tree: Tree, right_at: float = 1.0) -> Label | None:
    """The label that a tree lacks: right where all leaves are wrong, wrong where all are right."""
    rewards = tree.nodes.reward[~np.isnan(tree.nodes.reward)]
    if len(rewards) == 0 or not tree.is_uniform():
        return None
    return "wrong" if rewards[0] >= right_at else "right"


def has_path(tree: Tree, tokens: NDArray[np.int32]) -> bool:
    """Whether an ended path of the tree has these completion tokens already."""
    return any(
        np.array_equal(tree.completion_tokens(leaf), tokens) for leaf in tree.leaves().tolist()
    )
