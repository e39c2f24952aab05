"""`treerl search --watch`: the tree of the current problem as it grows, counters, a line a finished tree."""

import time
from functools import partial

import numpy as np
from rich.text import Text

from treerl.engine.display import Display
from treerl.engine.session import Session
from treerl.engine.step import Searched
from treerl.inspect.live import Watched, watch_lines
from treerl.inspect.model import view_tree
from treerl.inspect.text import fit, visible
from treerl.search.tree import Tree

BETWEEN = 0.25
"""Seconds between two looks at the trees, at least."""
SHARE = 20
"""A look of t CPU seconds is followed by at least SHARE * t without one: big trees do not slow their search."""


class Watcher:
    """Looks at a search of `total` trees between steps of its sampler; on its thread, where trees are whole."""

    def __init__(self, session: Session, display: Display, total: int) -> None:
        self._session, self._display, self._total = session, display, total
        self._begun = time.perf_counter()
        self._stats = session.sampler.stats
        self._next = 0.0
        self._shown = -1

    def look(self, searched: Searched) -> None:
        """Brings the view up to date, if it is time."""
        now = time.perf_counter()
        if not self._display.is_live or now < self._next:
            return
        begun = time.thread_time()
        state = self._counters(searched)
        self._shown = _current(searched.trees, self._shown)
        if self._shown >= 0:
            problem = searched.problems[self._shown]
            state.title = f"tree {self._shown + 1} of {self._total}"
            state.view = view_tree(
                searched.trees[self._shown],
                self._session.decode_text,
                question=problem.question,
                truth=problem.truth or "?",
            )
        self._display.show(partial(_lines, state))
        self._next = time.perf_counter() + max(BETWEEN, SHARE * (time.thread_time() - begun))

    def finished(self, searched: Searched, index: int) -> None:
        """One line of a finished tree, which stays."""
        tree, problem = searched.trees[index], searched.problems[index]
        right = int((tree.nodes.reward >= 1.0).sum())
        self._display.say(
            f"tree {index + 1}/{self._total}: {right}/{len(tree.leaves())} right, "
            f"{len(tree)} spans, {tree.n_generated:,} tokens, {tree.meta['exit']}: "
            f"{fit(visible(problem.question), 60)}"
        )

    def _counters(self, searched: Searched) -> Watched:
        rewards = np.concatenate([tree.nodes.reward for tree in searched.trees] or [np.zeros(0)])
        stats, outcomes = self._session.sampler.stats, searched.counts.outcomes
        return Watched(
            generated_tokens=searched.counts.generated_tokens,
            seconds=time.perf_counter() - self._begun,
            cached_leaves=searched.cached_leaves,
            reused_tokens=stats["reused_tokens"] - self._stats["reused_tokens"],
            prefill_tokens=stats["prefill_tokens"] - self._stats["prefill_tokens"],
            judged=searched.counts.judged,
            right=int((rewards >= 1.0).sum()),
            failed=outcomes["timeout"] + outcomes["error"],
        )


def _lines(state: Watched, width: int, height: int) -> list[Text]:
    return watch_lines(state, width=width, height=height)


def _current(trees: list[Tree], shown: int) -> int:
    """The tree shown as long as it grows, then the first that does; -1 before any has begun."""
    growing = [i for i, tree in enumerate(trees) if tree.meta.get("exit") == "interrupted"]
    if shown in growing or not growing:
        return shown
    return growing[0]
