"""DeepSearch as published (arXiv 2509.25454): tree search chunk by chunk, one recorded leaf an expansion.

Expands a node into `width` chunks; of the terminal ones it records at most one (right ones first, then the
most confident wrong one), backs it up, and goes on at the best node of the whole frontier; without a terminal
one it goes on with the best of the new chunks (UCT, which ties among new chunks). It ends at exactly
`num_generations` recorded leaves. Kept for comparison: `deepsearch` is the improved form. Not kept of the
release: the lockstep of many problems, termination read from padding, the crash on an empty frontier, ties
that always fall on child 0.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from treerl.config import DeepSearchSearch
from treerl.search.asktell import RIGHT, Result, State, opening
from treerl.search.backup import Tally, chunks, make_gamma
from treerl.search.frontier import Frontier, Point
from treerl.search.sampler import CUT, Origin, Request
from treerl.search.select import ranked, uct_score
from treerl.search.tree import ROOT, Tree


@dataclass(slots=True)
class ChunkState(State):
    """current: the node being expanded, None once nothing can be. arrived: rows of the expansion under way.

    tallies: q and N by row (a new chunk that can go on starts with one visit of value 0). frontier: rows that
    can go on with fewer than `width` children, the root excluded; points: all that ever were on it. recorded:
    leaves that count.
    """

    frontier: Frontier[int] = field(kw_only=True)
    current: int | None = ROOT
    origin: Origin = Origin.SAMPLE
    arrived: list[int] = field(default_factory=list)
    tallies: dict[int, Tally] = field(default_factory=dict)
    points: dict[int, Point[int]] = field(default_factory=dict)
    recorded: int = 0


@dataclass(frozen=True, slots=True)
class DeepSearchFaithful:
    """The paper's search. `nodes.selected` marks the recorded leaves; the others stay in the tree."""

    settings: DeepSearchSearch

    def start(self, tree: Tree) -> ChunkState:
        """Caps paths at `max_depth` chunks; rebuilds q, N, frontier and recorded leaves from the rows."""
        settings = self.settings
        tree.max_completion_length = min(
            tree.max_completion_length, settings.max_depth * settings.chunk_tokens
        )
        root = Tally()
        frontier: Frontier[int] = Frontier(
            settings, seed=tree.seed, max_depth=settings.max_depth, root=root
        )
        state = ChunkState(tallies={ROOT: root}, frontier=frontier)
        for row in tree.order.tolist():
            self._enter(tree, state, [c for c in tree.children(row) if not _is_cached(tree, c)])
        for row in tree.children(ROOT):
            if _is_cached(tree, row):
                state.tallies[row] = Tally()
                self._record(tree, state, row)
        if len(tree) > 1 and not self._missing(tree, ROOT):
            state.current = self._best_frontier(state)
            state.origin = Origin.FRONTIER
        return state

    def ask(self, tree: Tree, state: ChunkState, budget_tokens_left: int | None) -> list[Request]:
        """The missing chunks of the current node, once the expansion before it is complete."""
        out = opening(tree, state, budget_tokens_left)
        if state.pending:
            return []
        if state.arrived:
            self._advance(tree, state)
        if state.recorded >= self.settings.num_generations:
            state.exit = "done"
        elif state.current is None:
            state.exit = "exhausted"
        elif not out.open(
            state.current,
            self._missing(tree, state.current),
            max_tokens=self.settings.chunk_tokens,
            origin=state.origin,
        ):
            state.exit = "budget"
        return out.requests

    def tell(self, tree: Tree, state: ChunkState, results: Sequence[Result]) -> None:
        """Collects the chunks of the expansion."""
        state.pending -= len(results)
        state.arrived += [result.node for result in results]

    def close(self, tree: Tree, state: ChunkState) -> None:
        """Enters what arrived of an expansion that was given up; stores N and q of every row."""
        self._enter(tree, state, state.arrived)
        for row, tally in state.tallies.items():
            tree.nodes.visits[row] = tally.visits
            tree.nodes.value_sum[row] = tally.q

    def _advance(self, tree: Tree, state: ChunkState) -> None:
        """After an expansion: record at most one terminal chunk, then choose the next node."""
        arrived, state.arrived = state.arrived, []
        if self._enter(tree, state, arrived):
            state.current, state.origin = self._best_frontier(state), Origin.FRONTIER
        else:
            state.current, state.origin = self._best_child(tree, state, arrived), Origin.EXTEND

    def _enter(self, tree: Tree, state: ChunkState, rows: list[int]) -> bool:
        """Enters the chunks of one expansion; True if one of them is terminal (and one was recorded)."""
        if not rows:
            return False
        terminal = []
        for row in rows:
            state.tallies[row] = Tally()
            if tree.nodes.at("finish", row) == CUT:
                state.tallies[row].visits = 1
                state.points[row] = self._point(tree, state, row)
                if not self._missing(tree, row):
                    state.frontier.use(state.points[row])
            else:
                tree.nodes.set("selected", row, False)
                terminal.append(row)
        parent = tree.nodes.at("parent", rows[0])
        if parent in state.points and not self._missing(tree, parent):
            state.frontier.use(state.points[parent])
        if terminal:
            self._record(tree, state, _most_confident(tree, terminal))
        return bool(terminal)

    def _record(self, tree: Tree, state: ChunkState, leaf: int) -> None:
        """Marks a leaf as a training row and backs its outcome up; unscored leaves back up nothing."""
        state.recorded += 1
        tree.nodes.set("selected", leaf, True)
        reward = tree.nodes.at("reward", leaf)
        if math.isnan(reward):
            return
        gamma = make_gamma(self.settings.gamma, self.settings.gamma_min)
        leaf_depth, path = self._depth(tree, leaf), tree.path(leaf)
        for row in path:
            state.tallies[row].add(gamma(self._depth(tree, row), leaf_depth), reward > RIGHT)
        state.frontier.backed_up(state.points[row] for row in path if row in state.points)

    def _best_child(self, tree: Tree, state: ChunkState, rows: list[int]) -> int:
        parent = state.tallies[tree.nodes.at("parent", rows[0])]
        return ranked(tree, self._uct(tree, state, rows, parent.visits))[0]

    def _uct(
        self, tree: Tree, state: ChunkState, rows: list[int], parent_visits: int
    ) -> Iterator[tuple[int, float, int, int]]:
        for row in rows:
            tally = state.tallies[row]
            score = uct_score(tally.mean, tally.visits, parent_visits, self.settings.uct_weight)
            yield row, score, *tree.point(row)

    def _best_frontier(self, state: ChunkState) -> int | None:
        best = state.frontier.best()
        return best[0].key if best else None

    def _point(self, tree: Tree, state: ChunkState, row: int) -> Point[int]:
        """A row opened on the frontier. Uncertainty is the mean NLL of the chunk."""
        at, uncertainty = tree.nodes.at, math.nan
        if self.settings.uncertainty_weight:
            chunk = tree.tokens.logprob[at("start", row) : at("stop", row)]
            uncertainty = -float(chunk.mean())
        draw, offset = tree.point(row)
        return state.frontier.add(
            row,
            lane=ROOT,
            above=state.points.get(at("parent", row)),
            tally=state.tallies[row],
            uncertainty=uncertainty,
            depth=self._depth(tree, row),
            tie=(tree.draws.at("seed", draw), offset),
        )

    def _depth(self, tree: Tree, row: int) -> int:
        return chunks(tree.completion_length(row), self.settings.chunk_tokens)

    def _missing(self, tree: Tree, row: int) -> int:
        """Children a node still lacks; cached solutions do not count."""
        return self.settings.width - sum(not _is_cached(tree, c) for c in tree.children(row))


def _is_cached(tree: Tree, row: int) -> bool:
    return bool(tree.nodes.at("origin", row) == Origin.CACHE)


def _most_confident(tree: Tree, leaves: list[int]) -> int:
    """The leaf an expansion records: among the right ones, else the wrong, else the unscored, the one whose
    response has the least mean negative log-likelihood."""
    reward = tree.nodes.reward
    right = [row for row in leaves if reward[row] > RIGHT]
    scored = [row for row in leaves if not math.isnan(reward[row])]
    logprob = tree.tokens.logprob
    rows = []
    for row in right or scored or leaves:
        response = tree.path_index(row)[tree.n_prompt :]
        rows.append((row, float(np.mean(logprob[response], dtype=np.float64)), *tree.point(row)))
    return ranked(tree, rows)[0]
