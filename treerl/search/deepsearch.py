"""DeepSearch in the improved form: full responses first, then branches at the best frontier points.

The paper's score F and closed-form q (arXiv 2509.25454) steer, over a grid of points every `chunk_tokens`
along the responses. Unlike the paper's search (see `deepsearch_faithful`) it takes a few waves of full
continuations instead of one call a chunk, keeps every leaf, spends a budget in tokens, and ends when enough
right and wrong leaves are there, when the budget is spent or when no point is left.
"""

import math
from collections import Counter
from collections.abc import Sequence
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
from treerl.search.backup import Gammas, Tally, chunks, gamma_table, store_tallies
from treerl.search.cut import response_entropies
from treerl.search.frontier import Frontier, Point
from treerl.search.sampler import STOP, Origin, Request
from treerl.search.tree import ROOT, Tree

Key = tuple[int, int]
"""(draw, offset): the end of a chunk, stable under splits."""


@dataclass(slots=True)
class FrontierState(State):
    """missing: first rollouts not opened. new: leaves not yet in `points`. queue: branches chosen, not opened.

    leaves: all ended ones; below: the same by first draw, which is also the lane of the frontier.
    """

    frontier: Frontier[Key] = field(kw_only=True)
    gammas: Gammas = field(kw_only=True)
    missing: int = 0
    stumps: list[int] = field(default_factory=list)
    new: list[int] = field(default_factory=list)
    queue: list[tuple[Key, int]] = field(default_factory=list)
    points: dict[Key, Point[Key]] = field(default_factory=dict)
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
        root = Tally()
        state = FrontierState(
            frontier=Frontier(
                settings,
                seed=tree.seed,
                max_depth=max(1, chunks(tree.max_completion_length, settings.chunk_tokens)),
                root=root,
            ),
            gammas=gamma_table(settings.gamma, settings.gamma_min),
            root=root,
            missing=missing_rollouts(tree, min(settings.num_initial, settings.num_generations)),
            stumps=stumps(tree),
            new=tree.leaves().tolist(),
        )
        self._absorb(tree, state)
        for row in range(len(tree)):
            if tree.nodes.origin[row] == Origin.FRONTIER:
                key = tree.point(int(tree.nodes.parent[row]))
                if key in state.points:
                    state.frontier.use(state.points[key])
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
        store_tallies(tree, pairs, state.gammas, self.settings.chunk_tokens)

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
        for point in state.frontier.best():
            count = min(settings.num_branches, wave, share - state.below[point.lane])
            if count <= 0:
                continue
            state.queue.append((point.key, count))
            state.frontier.use(point)
            wave -= count
            if wave == 0:
                break
        return None if state.queue else "exhausted"

    def _absorb(self, tree: Tree, state: FrontierState) -> None:
        """Enters new leaves: their grid points, and their outcome at all points above them."""
        for leaf in state.new:
            length = tree.completion_length(leaf)
            chain = self._grid(tree, state, leaf, length)
            state.leaves += 1
            state.below[_top(tree, leaf, chain)] += 1
            reward = tree.nodes.at("reward", leaf)
            if math.isnan(reward):
                continue
            is_right = reward > RIGHT
            state.right += is_right
            state.wrong += not is_right
            gammas = state.gammas(chunks(length, self.settings.chunk_tokens))
            state.root.add(gammas[0], is_right)
            for depth, point in enumerate(chain, start=1):
                point.tally.add(gammas[depth], is_right)
            state.frontier.backed_up(chain)
        state.new = []

    def _grid(self, tree: Tree, state: FrontierState, leaf: int, length: int) -> list[Point[Key]]:
        """Grid points of a path of `length` response tokens, made where missing.

        The stop token is not drawn again. Walks up only as far as to a point that is known.
        """
        at, chunk = tree.draws.at, self.settings.chunk_tokens
        last = length - 1 if tree.nodes.at("finish", leaf) == STOP else length
        draw = tree.nodes.at("draw", leaf)
        end, begin = length, length - at("length", draw)
        pieces = [(draw, begin, end)]
        while (key := (at("parent", draw), at("offset", draw))) not in state.points and key[0]:
            draw, end = key[0], begin
            begin -= key[1]
            pieces.append((draw, begin, end))
        chain = state.points[key].path if key[0] else []
        if chain and chain[-1].depth * chunk >= last:
            chain.pop()
        for draw, begin, end in reversed(pieces):
            for position in range(begin - begin % chunk + chunk, min(end + 1, last), chunk):
                key = draw, position - begin
                if key not in state.points:
                    above = chain[-1] if chain else None
                    state.points[key] = self._point(tree, state, leaf, key, above)
                chain.append(state.points[key])
        return chain

    def _point(
        self, tree: Tree, state: FrontierState, leaf: int, key: Key, above: Point[Key] | None
    ) -> Point[Key]:
        """A new grid point on the path of `leaf`, open on the frontier."""
        depth = above.depth + 1 if above else 1
        uncertainty = math.nan
        if self.settings.uncertainty_weight:
            end = depth * self.settings.chunk_tokens
            chunk = response_entropies(tree, leaf)[end - self.settings.chunk_tokens : end]
            uncertainty = float(chunk.mean())
        return state.frontier.add(
            key,
            lane=above.lane if above else _top(tree, leaf, []),
            above=above,
            tally=Tally(),
            uncertainty=uncertainty,
            depth=depth,
            tie=(tree.draws.at("seed", key[0]), key[1]),
        )


def _top(tree: Tree, leaf: int, chain: list[Point[Key]]) -> int:
    """The first draw above a leaf, known of the grid points above it."""
    if chain:
        return chain[0].lane
    top: int = tree.nodes.at("draw", tree.path(leaf)[1])
    return top
