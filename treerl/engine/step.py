"""The search half of a training step: problems to judged trees, with what was cached and what it cost."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from treerl.canon import derive_seed
from treerl.engine.session import Session
from treerl.problem import Problem
from treerl.replay.reuse import CachedSolution
from treerl.search.sampler import Finish, Origin
from treerl.search.scheduler import Counts, Growth, grow
from treerl.search.tree import ROOT, Tree


@dataclass(slots=True)
class Searched:
    """Judged trees of one step in the order of its problems, and the figures of their search."""

    problems: list[Problem]
    trees: list[Tree]
    adopted: set[int] = field(default_factory=set)
    """Indices of trees that came from the store."""
    dropped_prompts: int = 0
    cached_leaves: int = 0
    trees_with_cache: int = 0
    counts: Counts = field(default_factory=Counts)
    prefill_tokens: int = 0
    seconds: float = 0.0


def search_step(
    session: Session,
    problems: Sequence[Problem],
    *,
    step: int,
    stored: Mapping[str, Tree],
    cached: Mapping[str, Sequence[CachedSolution]],
    on_tree: Callable[[int, int], None] = lambda done, total: None,
) -> Searched:
    """Grows one tree a problem.

    stored: trees this run already has for the step, by problem key; taken as they are. cached: solutions
    of other searches by problem key, grafted under the root before the search begins.
    """
    begun = time.perf_counter()
    prompts = session.prompts(problems)
    kept = [i for i, prompt in enumerate(prompts) if prompt is not None]
    out = Searched([problems[i] for i in kept], [], dropped_prompts=len(problems) - len(kept))
    growths: list[Growth] = []
    for index, which in enumerate(kept):
        problem, prompt = problems[which], prompts[which]
        if problem.key in stored:
            out.trees.append(stored[problem.key])
            out.adopted.add(index)
            continue
        tree = Tree(
            np.asarray(prompt, np.int32),
            seed=derive_seed(session.recipe.seed, step, problem.key, 0),
            max_completion_length=session.recipe.sampler.max_completion_length,
        )
        taken = graft_cached(tree, cached.get(problem.key, ()))
        out.cached_leaves += taken
        out.trees_with_cache += taken > 0
        out.trees.append(tree)
        growths.append(Growth(tree, session.strategy, problem, problem.question))
    prefilled = session.sampler.stats["prefill_tokens"]
    for done, _ in enumerate(
        grow(growths, session.sampler, session.pool.submit, session.decode_text, out.counts), 1
    ):
        on_tree(done, len(growths))
    out.prefill_tokens = session.sampler.stats["prefill_tokens"] - prefilled
    out.seconds = time.perf_counter() - begun
    return out


def graft_cached(tree: Tree, solutions: Iterable[CachedSolution]) -> int:
    """Attaches stored solutions under the root with the verdicts they had; returns how many."""
    count = 0
    for solution in solutions:
        row = tree.graft(ROOT, solution.span(), source=solution.draw)
        tree.judge(row, solution.verdict)
        count += 1
    return count


def search_metrics(searched: Searched) -> dict[str, float]:
    """Metrics of the search, `search/...`, `verify/...`, `completions/...` and TRL's top-level names."""
    trees = searched.trees
    fresh = [_fresh_leaves(tree) for tree in trees]
    rewards = [tree.nodes.reward[rows] for tree, rows in zip(trees, fresh, strict=True)]
    scored = [values[~np.isnan(values)] for values in rewards]
    lengths = [
        tree.completion_length(row) for tree, rows in zip(trees, fresh, strict=True) for row in rows
    ]
    finishes = np.concatenate(
        [t.nodes.finish[rows] for t, rows in zip(trees, fresh, strict=True)] or [[]]
    )
    drawn = np.concatenate([_fresh_entropies(tree) for tree in trees] or [np.zeros(0)])
    counts = searched.counts
    out: dict[str, float] = {
        "reward": _mean(np.concatenate(scored or [np.zeros(0)])),
        "reward_std": _mean([float(v.std(ddof=1)) for v in scored if len(v) > 1]),
        "frac_reward_zero_std": _mean([float(tree.is_uniform()) for tree in trees]),
        "entropy": _mean(drawn),
        "completions/mean_length": _mean(lengths),
        "completions/max_length": max(lengths, default=0),
        "completions/clipped_ratio": _mean(finishes == Finish.LENGTH),
        "search/generated_tokens": counts.generated_tokens,
        "search/prefill_tokens": searched.prefill_tokens,
        "search/trees": len(trees) - len(searched.adopted),
        "search/adopted_trees": len(searched.adopted),
        "search/dropped_prompts": searched.dropped_prompts,
        "search/nodes_per_tree": _mean([len(tree) for tree in trees]),
        "search/leaves_per_tree": _mean([len(tree.leaves()) for tree in trees]),
        "search/seconds": searched.seconds,
        "search/tokens_per_second": counts.generated_tokens / max(searched.seconds, 1e-9),
        "replay/cached_leaves": searched.cached_leaves,
        "replay/trees_with_cache": searched.trees_with_cache,
    }
    out |= {
        f"verify/{name}": counts.outcomes[name]
        for name in ("scored", "skipped", "timeout", "error")
    }
    exits = Counter(str(tree.meta.get("exit", "unknown")) for tree in trees)
    return out | {f"search/exit/{name}": count for name, count in sorted(exits.items())}


def _fresh_leaves(tree: Tree) -> Any:
    leaves = tree.leaves()
    return leaves[tree.nodes.origin[leaves] != Origin.CACHE]


def _fresh_entropies(tree: Tree) -> Any:
    cached = np.repeat(tree.draws.source > 0, tree.draws.length)
    return tree.tokens.entropy[tree.tokens.mask & ~cached]


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else math.nan
