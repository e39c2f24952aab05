"""Self-imitation of a run: its good rows go into a pool, and some come back into later updates.

The pool is read as it stood when the step began and its draws are named by (seed, step), so that a resumed
run replays what the unbroken one did. Rows are stored by leaf, reward above the mean of its group; a leaf
with a good node on its path is not thereby good.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from treerl.canon import derive_seed, generator
from treerl.config import Recipe
from treerl.credit.imitate import imitation_credits, ramp, rebased, row_ratios
from treerl.credit.importance import effective_share
from treerl.credit.masses import TokenCredit
from treerl.credit.rows import FloatArray
from treerl.engine.step import Searched, graft_cached
from treerl.policy.model import Policy
from treerl.policy.reference import score_trees
from treerl.replay.keys import Provenance, problem_key
from treerl.replay.pool import Drawn, Pool, PoolSettings, draws_of_rows
from treerl.replay.reuse import CachedSolution, solutions_of_draws
from treerl.replay.store import Store
from treerl.search.tree import Tree

POOL = "imitate"


@dataclass(slots=True)
class Imitated:
    """What joins an update: trees of stored rows with their credits; metrics of the draw."""

    trees: list[Tree] = field(default_factory=list)
    credits: list[TokenCredit] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


class Imitation:
    """The pool of one run, and the median of its group means (`history`, which the checkpoint keeps)."""

    def __init__(
        self,
        store: Store,
        recipe: Recipe,
        provenance: Provenance,
        *,
        run_id: str,
        history: list[float],
    ) -> None:
        self.store, self.recipe, self.provenance = store, recipe, provenance
        self.run_id, self.history = run_id, history
        settings = recipe.replay.imitate
        self.pool = Pool(
            store,
            run_id,
            POOL,
            PoolSettings(
                sampler=settings.sampler,
                remover=settings.remover,
                max_size=settings.pool_size,
                max_times_sampled=settings.max_times_sampled,
                max_age=settings.max_age,
                priority_exponent=settings.priority_exponent,
            ),
        )

    def replay(self, policy: Policy, step: int) -> Imitated:
        """Rows for the update of `step`; none while the pool is small, or where they are too far off-policy."""
        settings = self.recipe.replay.imitate
        out = Imitated()
        size = len(self.pool.at(step)[0])
        weight = settings.weight * ramp(step, settings.warmup_steps)
        out.metrics = {
            "replay/pool_size": size,
            "replay/imitation_weight": weight,
            "replay/imitated_rows": 0,
        }
        if size < settings.min_size or not self.history:
            return out
        random = generator("imitate", self.recipe.seed, step)
        drawn = self.pool.draw(settings.rows, step=step, generator=random)
        trees, advantages = self._trees(drawn, step)
        out.metrics["replay/imitation_baseline"] = float(np.median(self.history))
        near = self._is_near(policy, trees, out.metrics)
        rows = sum(int(tree.nodes.selected[tree.leaves()].sum()) for tree in trees) if near else 0
        out.metrics["replay/imitated_rows"] = rows
        if rows and weight > 0:
            out.trees = trees
            out.credits = imitation_credits(
                trees, advantages, weight=weight, loss_agg_mode=self.recipe.loss.loss_agg_mode
            )
        return out

    def _trees(self, drawn: Sequence[Drawn], step: int) -> tuple[list[Tree], list[FloatArray]]:
        """The drawn rows above the baseline, one tree a prompt, and the advantages of their leaves."""
        settings = self.recipe.replay.imitate
        weights: dict[int, float] = defaultdict(float)
        for one in drawn:
            weights[one.item.draw] += one.weight(settings.importance_exponent)
        found = solutions_of_draws(self.store, weights, verifier=self.provenance.verifier)
        by_prompt: dict[bytes, list[int]] = {}
        for draw in sorted(found):
            by_prompt.setdefault(found[draw][0].tobytes(), []).append(draw)
        trees, advantages = [], []
        for prompt, draws in sorted(by_prompt.items()):
            rewards = np.array([found[draw][1].verdict.reward for draw in draws], np.float64)
            values = rebased(rewards, self.history) * [weights[draw] for draw in draws]
            good = [found[draw][1] for draw, value in zip(draws, values, strict=True) if value > 0]
            if good:
                trees.append(self._tree(found[draws[0]][0], good, step, prompt))
                advantages.append(values[values > 0])
        return trees, advantages

    def _tree(
        self, prompt: np.ndarray, solutions: Sequence[CachedSolution], step: int, name: bytes
    ) -> Tree:
        tree = Tree(
            prompt,
            seed=derive_seed(self.recipe.seed, "imitate", step, name),
            max_completion_length=self.recipe.sampler.max_completion_length,
        )
        graft_cached(tree, solutions)
        return tree

    def _is_near(self, policy: Policy, trees: list[Tree], metrics: dict[str, float]) -> bool:
        """Takes out rows that the policy has left far behind; whether enough of the other tokens counts."""
        settings, recipe = self.recipe.replay.imitate, self.recipe
        if not trees:
            return False
        scores = score_trees(
            policy,
            trees,
            temperature=recipe.sampler.temperature,
            max_tokens=recipe.update.max_tokens_per_microbatch,
            pack=recipe.update.pack,
        )
        limit = settings.max_mean_ratio
        ratios, dropped = [], 0
        for tree, lp in zip(trees, scores, strict=True):
            for leaf, row in zip(tree.leaves().tolist(), row_ratios(tree, lp), strict=True):
                if limit is not None and row.mean() > limit:
                    tree.nodes.selected[leaf] = False
                    dropped += 1
                else:
                    ratios.append(row)
        share = effective_share(np.concatenate(ratios) if ratios else np.zeros(0))
        metrics |= {"replay/imitation_ess": share, "replay/imitation_dropped": dropped}
        return share >= settings.min_ess

    def keep(self, searched: Searched, step: int) -> None:
        """Puts the good rows of a step, whose trees are in the store, into the pool."""
        ends: dict[tuple[bytes, int, int], float] = {}
        for problem, name, tree in zip(
            searched.problems, searched.names, searched.trees, strict=True
        ):
            rows, above = good_rows(tree)
            self.history += [] if above is None else [above]
            key = problem_key(problem)
            ends |= {(key, name[1], draw): priority for draw, priority in rows.items()}
        del self.history[: -self.recipe.replay.imitate.history]
        found = draws_of_rows(self.store, self.run_id, step=step, ends=ends)
        self.pool.put({found[end]: ends[end] for end in ends if end in found}, step=step)


def good_rows(tree: Tree) -> tuple[dict[int, float], float | None]:
    """Of the fresh judged leaves: R - mean of those above the mean, by draw; and the mean, None without one."""
    leaves = tree.leaves()
    draw = tree.nodes.draw[leaves]
    reward = tree.nodes.reward[leaves]
    fresh = (tree.draws.source[draw] == 0) & ~np.isnan(reward)
    draw, reward = draw[fresh], reward[fresh]
    if len(reward) == 0:
        return {}, None
    mean = float(reward.mean())
    rows = zip(draw.tolist(), (reward - mean).tolist(), strict=True)
    return {d: above for d, above in rows if above > 0}, mean
