"""The search half of a training step: problems to judged trees, with what was cached and what it cost."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from treerl.canon import derive_seed
from treerl.config import Recipe
from treerl.engine.guard import GuardedSampler
from treerl.engine.session import Session
from treerl.problem import Problem
from treerl.replay.keys import Provenance
from treerl.replay.reuse import CachedSolution
from treerl.replay.writer import Writer
from treerl.search.sampler import Finish
from treerl.search.scheduler import Counts, Growth, Limits, grow
from treerl.search.tree import ROOT, Tree

OUTCOMES = ("scored", "skipped", "timeout", "error")
TreeName = tuple[str, int]
"""Key of a problem, and which of the step's trees of that problem it is (from 0)."""


@dataclass(slots=True)
class Searched:
    """Judged trees of one step in the order of its problems, and the figures of their search.

    adopted: indices of trees that came from the store. counts: what was done now, adopted trees not in it.
    """

    problems: list[Problem]
    names: list[TreeName]
    trees: list[Tree]
    adopted: set[int] = field(default_factory=set)
    dropped_prompts: int = 0
    counts: Counts = field(default_factory=Counts)
    prefill_tokens: int = 0
    reused_tokens: int = 0
    discarded_tokens: int = 0
    sampler_seconds: float = 0.0
    seconds: float = 0.0

    def index_of(self, tree: Tree) -> int:
        """Place of this very tree."""
        return next(i for i, other in enumerate(self.trees) if other is tree)

    @property
    def generated_tokens(self) -> int:
        """Tokens drawn for the trees, now or before they were adopted."""
        return sum(tree.n_generated for tree in self.trees)

    @property
    def cached_leaves(self) -> int:
        """Leaves that came from the cache."""
        return sum(int(_is_cached(tree, tree.leaves()).sum()) for tree in self.trees)


def search_step(
    session: Session,
    problems: Sequence[Problem],
    *,
    step: int,
    stored: Mapping[TreeName, Tree] | None = None,
    cached: Mapping[str, Sequence[CachedSolution]] | None = None,
    on_tree: Callable[[Searched, int], None] = lambda searched, index: None,
    on_round: Callable[[Searched], None] = lambda searched: None,
) -> Searched:
    """Grows one tree a problem; `on_tree` hears of each the moment it is finished.

    on_round: called often while trees grow, between steps of the sampler.

    stored: trees this run already has for the step, taken as they are. cached: solutions of other searches
    by problem key, grafted under the root before the search begins.
    """
    begun = time.perf_counter()
    prompts = session.prompts(problems)
    kept = [i for i, prompt in enumerate(prompts) if prompt is not None]
    out = Searched([problems[i] for i in kept], tree_names([problems[i] for i in kept]), [])
    out.dropped_prompts = len(problems) - len(kept)
    stored = _adoptable(session, stored or {}, out.names)
    growths: list[Growth] = []
    for index, (which, name) in enumerate(zip(kept, out.names, strict=True)):
        problem, prompt = problems[which], prompts[which]
        if name in stored:
            out.trees.append(stored[name])
            out.adopted.add(index)
            continue
        assert prompt is not None
        growth = new_growth(session, problem, prompt, step, name)
        graft_cached(growth.tree, (cached or {}).get(problem.key, ()))
        out.trees.append(growth.tree)
        growths.append(growth)
    grow_all(session, growths, out, on_tree=on_tree, on_round=on_round)
    out.seconds = time.perf_counter() - begun
    return out


def new_growth(
    session: Session, problem: Problem, prompt: Sequence[int], step: int, name: TreeName
) -> Growth:
    """A tree that is all prompt, and what will grow it. Its draws depend on seed, step and name alone."""
    tree = Tree(
        np.asarray(prompt, np.int32),
        seed=derive_seed(session.recipe.seed, step, *name),
        max_completion_length=session.recipe.sampler.max_completion_length,
    )
    return Growth(tree, session.strategy, problem, problem.question)


def grow_all(
    session: Session,
    growths: Iterable[Growth],
    out: Searched,
    *,
    on_tree: Callable[[Searched, int], None],
    on_round: Callable[[Searched], None],
) -> None:
    """Grows trees of `out`, which `growths` may add to it as it hands them over; fills in the figures."""
    before = session.sampler.stats
    with GuardedSampler(session.sampler, session.recipe) as sampler:
        for done in grow(
            growths,
            sampler,
            session.pool.submit,
            session.decode_text,
            out.counts,
            in_order=session.recipe.deterministic,
            limits=_limits(session.recipe),
            on_round=lambda: on_round(out),
        ):
            on_tree(out, out.index_of(done.tree))
    after = session.sampler.stats
    out.prefill_tokens += after["prefill_tokens"] - before["prefill_tokens"]
    out.reused_tokens += after["reused_tokens"] - before["reused_tokens"]
    out.discarded_tokens += after["discarded_tokens"] - before["discarded_tokens"]
    out.sampler_seconds += after["seconds"] - before["seconds"]


def _limits(recipe: Recipe) -> Limits:
    return Limits(
        in_flight=recipe.sampler.max_in_flight,
        request_s=recipe.sampler.request_timeout_s,
        item_s=recipe.verifier.timeout_s,
    )


def tree_names(problems: Sequence[Problem]) -> list[TreeName]:
    """Names of the trees of a step: a problem that comes up twice has two."""
    seen: Counter[str] = Counter()
    names = []
    for problem in problems:
        names.append((problem.key, seen[problem.key]))
        seen[problem.key] += 1
    return names


def _adoptable(
    session: Session, stored: Mapping[TreeName, Tree], names: Sequence[TreeName]
) -> Mapping[TreeName, Tree]:
    """The stored trees to take. On CPU a resumed run equals the unbroken one to the bit, and the numbers of

    a tree depend in their last bits on what was batched with it: there a step is adopted whole or not at all.
    """
    whole = all(name in stored for name in names)
    return stored if whole or session.policy.device.type != "cpu" else {}


def graft_cached(tree: Tree, solutions: Iterable[CachedSolution]) -> int:
    """Attaches stored solutions under the root with the verdicts they had; returns how many."""
    count = 0
    for solution in solutions:
        row = tree.graft(ROOT, solution.span(), source=solution.draw)
        tree.judge(row, solution.verdict)
        count += 1
    return count


def put_tree(
    session: Session,
    writer: Writer,
    searched: Searched,
    index: int,
    *,
    step: int,
    provenance: Provenance,
) -> None:
    """Hands one finished tree to the writer, with the texts of its leaves."""
    tree = searched.trees[index]
    writer.put(
        tree,
        step=step,
        number=searched.names[index][1],
        problem=searched.problems[index],
        provenance=provenance,
        texts=leaf_texts(session, tree),
    )


def leaf_texts(session: Session, tree: Tree) -> dict[int, str]:
    """The response of each leaf, by its row."""
    return {
        row: session.decode_text(tree.completion_tokens(row).tolist())
        for row in tree.leaves().tolist()
    }


def search_metrics(searched: Searched) -> dict[str, float]:
    """Metrics of the search, `search/...`, `verify/...`, `completions/...` and TRL's top-level names.

    Those that tell of trees count adopted trees too, so that a resumed run writes what the unbroken one wrote.
    """
    trees, counts = searched.trees, searched.counts
    fresh = [_fresh_leaves(tree) for tree in trees]
    rewards = [tree.nodes.reward[rows] for tree, rows in zip(trees, fresh, strict=True)]
    scored = [values[~np.isnan(values)] for values in rewards]
    lengths = [
        tree.completion_length(row) for tree, rows in zip(trees, fresh, strict=True) for row in rows
    ]
    finishes = [t.nodes.finish[rows] for t, rows in zip(trees, fresh, strict=True)]
    out: dict[str, float] = {
        "reward": _mean(_joined(scored)),
        "reward_std": _mean([float(v.std(ddof=1)) for v in scored if len(v) > 1]),
        "frac_reward_zero_std": _mean([float(tree.is_uniform()) for tree in trees]),
        "entropy": _mean(_joined([_fresh_entropies(tree) for tree in trees])),
        "completions/mean_length": _mean(lengths),
        "completions/max_length": max(lengths, default=0),
        "completions/clipped_ratio": _mean(_joined(finishes) == Finish.LENGTH),
        "search/generated_tokens": searched.generated_tokens,
        "search/prefill_tokens": searched.prefill_tokens,
        "search/reused_tokens": searched.reused_tokens,
        "search/discarded_tokens": searched.discarded_tokens,
        "search/trees": len(trees) - len(searched.adopted),
        "search/adopted_trees": len(searched.adopted),
        "search/dropped_prompts": searched.dropped_prompts,
        "search/nodes_per_tree": _mean([len(tree) for tree in trees]),
        "search/leaves_per_tree": _mean([len(tree.leaves()) for tree in trees]),
        "search/depth_per_tree": _mean([tree.depth() for tree in trees]),
        "search/solved": _mean([float((values >= 1.0).any()) for values in rewards]),
        "search/seconds": searched.seconds,
        "search/sampler_seconds": searched.sampler_seconds,
        "search/tokens_per_second": counts.generated_tokens / max(searched.seconds, 1e-9),
        "replay/cached_leaves": searched.cached_leaves,
        "replay/trees_with_cache": sum(bool(tree.draws.source.any()) for tree in trees),
    }
    outcomes: Counter[str] = Counter(
        tree.verdicts[row].outcome
        for tree, rows in zip(trees, fresh, strict=True)
        for row in rows.tolist()
        if row in tree.verdicts
    )
    out |= {f"verify/{name}": outcomes[name] for name in OUTCOMES}
    exits = Counter(str(tree.meta.get("exit", "unknown")) for tree in trees)
    return out | {f"search/exit/{name}": count for name, count in sorted(exits.items())}


def _is_cached(tree: Tree, rows: Any) -> Any:
    """Whether spans were taken from the cache: by their draw, which a split does not change (bool[rows])."""
    return tree.draws.source[tree.nodes.draw[rows]] > 0


def _fresh_leaves(tree: Tree) -> Any:
    leaves = tree.leaves()
    return leaves[~_is_cached(tree, leaves)]


def _fresh_entropies(tree: Tree) -> Any:
    cached = np.repeat(tree.draws.source > 0, tree.draws.length)
    return tree.tokens.entropy[tree.tokens.mask & ~cached]


def _joined(columns: list[Any]) -> Any:
    return np.concatenate(columns) if columns else np.zeros(0)


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else math.nan
