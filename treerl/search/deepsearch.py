"""DeepSearch in the improved form: full responses first, then branches at the best frontier points.

The paper's score F and closed-form q (arXiv 2509.25454) steer, over a grid of points every `chunk_tokens`
along the responses. Unlike the paper's search (see `deepsearch_faithful`) it takes a few waves of full
continuations instead of one call a chunk, keeps every leaf, spends a budget in tokens, and ends when enough
right and wrong leaves are there, when the budget is spent or when no point is left.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from treerl.config import DeepSearchSearch
from treerl.search.asktell import (
    RIGHT,
    Exit,
    Opening,
    Result,
    State,
    missing_rollouts,
    opening,
    stumps,
)
from treerl.search.backup import Tally, chunks, make_gamma, store_tallies
from treerl.search.cut import points_before, response_entropies
from treerl.search.sampler import Finish, Origin, Request
from treerl.search.select import frontier_score, ranked
from treerl.search.tree import ROOT, Tree

Key = tuple[int, int]
"""(draw, offset): the end of a chunk, stable under splits."""


@dataclass(slots=True)
class Point:
    """A grid point. uncertainty: mean entropy (nats) of its chunk; depth in chunks; top: first draw above."""

    parent: Key
    top: int
    depth: int
    uncertainty: float
    tally: Tally = field(default_factory=Tally)
    branched: bool = False


@dataclass(slots=True)
class FrontierState(State):
    """missing: first rollouts not opened. new: leaves not yet in `points`. queue: branches chosen, not opened.

    leaves: all ended ones; below: the same by first draw.
    """

    missing: int = 0
    stumps: list[int] = field(default_factory=list)
    new: list[int] = field(default_factory=list)
    queue: list[tuple[Key, int]] = field(default_factory=list)
    points: dict[Key, Point] = field(default_factory=dict)
    root: Tally = field(default_factory=Tally)
    below: Counter[int] = field(default_factory=Counter)
    leaves: int = 0
    right: int = 0
    wrong: int = 0


@dataclass(frozen=True, slots=True)
class DeepSearch:
    """Rollouts, then waves of as many branches; each wave is chosen when the one before it is judged."""

    settings: DeepSearchSearch

    def start(self, tree: Tree) -> FrontierState:
        """Rebuilds the frontier from the leaves that are there; points with a branch are used up."""
        settings = self.settings
        state = FrontierState(
            missing=missing_rollouts(tree, min(settings.num_initial, settings.num_generations)),
            stumps=stumps(tree),
            new=tree.leaves().tolist(),
        )
        self._absorb(tree, state)
        for row in range(len(tree)):
            if tree.nodes.origin[row] == Origin.FRONTIER:
                key = tree.point(int(tree.nodes.parent[row]))
                if key in state.points:
                    state.points[key].branched = True
        return state

    def ask(
        self, tree: Tree, state: FrontierState, budget_tokens_left: int | None
    ) -> list[Request]:
        """Opens what is queued; when all of it is there and judged, chooses the next wave."""
        out = opening(tree, state, budget_tokens_left)
        self._open(tree, state, out)
        if state.pending == 0 and not (state.queue or state.missing or state.stumps):
            self._absorb(tree, state)
            state.exit = self._choose(tree, state)
            self._open(tree, state, out)
        if state.pending == 0 and state.exit is None:
            state.exit = "budget"
        return out.requests

    def tell(self, tree: Tree, state: FrontierState, results: Sequence[Result]) -> None:
        """Keeps the leaves for the next choice."""
        state.pending -= len(results)
        state.new += [result.node for result in results]

    def close(self, tree: Tree, state: FrontierState) -> None:
        """Stores N and q of every row."""
        reward = tree.nodes.reward
        pairs = [
            (row, bool(reward[row] > RIGHT))
            for row in tree.leaves().tolist()
            if not math.isnan(reward[row])
        ]
        gamma = make_gamma(self.settings.gamma, self.settings.gamma_min)
        store_tallies(tree, pairs, gamma, self.settings.chunk_tokens)

    def _open(self, tree: Tree, state: FrontierState, out: Opening) -> None:
        while state.stumps and out.open(state.stumps[0], 1, origin=Origin.EXTEND):
            state.stumps.pop(0)
        if not state.stumps and state.missing:
            state.missing -= out.open(ROOT, state.missing)
        while state.queue and (out.left is None or out.left > 0):
            (draw, offset), count = state.queue.pop(0)
            opened = out.open(tree.node_at(draw, offset), count, origin=Origin.FRONTIER)
            if opened < count:
                state.queue.insert(0, ((draw, offset), count - opened))

    def _choose(self, tree: Tree, state: FrontierState) -> Exit | None:
        """Queues the next wave, or says why there is none.

        A wave has at most `num_initial` continuations, at one point of each first rollout's subtree, and no
        subtree gets more than its share of the leaves: else the search works among the siblings of the
        first solution it found.
        """
        settings = self.settings
        enough = settings.enough
        if enough is not None and min(state.right, state.wrong) >= enough:
            return "enough"
        room = settings.num_generations - state.leaves
        if room <= 0:
            return "done"
        wave = min(room, settings.num_initial)
        share = int(settings.max_share * settings.num_generations)
        used: set[int] = set()
        for key in ranked(tree, self._scores(tree, state)):
            point = state.points[key]
            count = min(settings.num_branches, wave, share - state.below[point.top])
            if count <= 0 or point.top in used:
                continue
            used.add(point.top)
            state.queue.append((key, count))
            point.branched = True
            wave -= count
            if wave == 0:
                break
        return None if state.queue else "exhausted"

    def _scores(self, tree: Tree, state: FrontierState) -> Iterator[tuple[Key, float, int, int]]:
        """(key, F, draw, offset) of the points without a branch."""
        max_depth = max(1, chunks(tree.max_completion_length, self.settings.chunk_tokens))
        for key, point in state.points.items():
            if point.branched:
                continue
            parent = state.points[point.parent].tally if point.depth > 1 else state.root
            score = frontier_score(
                self.settings,
                parent_mean=parent.mean,
                own_mean=point.tally.mean,
                uncertainty=point.uncertainty,
                depth=point.depth,
                max_depth=max_depth,
            )
            yield key, score, *key

    def _absorb(self, tree: Tree, state: FrontierState) -> None:
        """Enters new leaves: their grid points, and their outcome at all points above them."""
        chunk, reward = self.settings.chunk_tokens, tree.nodes.reward
        gamma = make_gamma(self.settings.gamma, self.settings.gamma_min)
        for leaf in state.new:
            length = tree.completion_length(leaf)
            depth = chunks(length, chunk)
            top = int(tree.nodes.draw[tree.path(leaf)[1]])
            state.leaves += 1
            state.below[top] += 1
            tallies = [state.root, *self._grid(tree, state, leaf, top, length)]
            if math.isnan(reward[leaf]):
                continue
            is_right = bool(reward[leaf] > RIGHT)
            state.right += is_right
            state.wrong += not is_right
            for level, tally in enumerate(tallies):
                tally.add(gamma(level, depth), is_right)
        state.new = []

    def _grid(
        self, tree: Tree, state: FrontierState, leaf: int, top: int, length: int
    ) -> list[Tally]:
        """Tallies of the grid points of a path, made where missing. The stop token is not drawn again."""
        chunk = self.settings.chunk_tokens
        last = length - 1 if tree.nodes.finish[leaf] == Finish.STOP else length
        positions = range(chunk, last, chunk)
        if not positions:
            return []
        keys = points_before(tree, leaf, positions)
        entropies = response_entropies(tree, leaf)
        parent: Key = (0, tree.n_prompt)
        tallies = []
        for level, (key, position) in enumerate(zip(keys, positions, strict=True), start=1):
            if key not in state.points:
                mean = float(entropies[position - chunk : position].mean())
                state.points[key] = Point(parent, top, level, mean)
            tallies.append(state.points[key].tally)
            parent = key
        return tallies
