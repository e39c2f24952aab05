"""CURE: branch again at critical tokens of finished rollouts (arXiv 2508.11016), on a tree.

First `num_initial` rollouts, then at one critical point of each rollout `num_branches` new continuations.
The critical token itself is drawn again, everything before it is kept, and one length limit and one reward
hold for the full text. Differences from the release: entropies come from the sampler (no second forward
pass), a rollout without a candidate is not branched, and by default (`only_undecided`) neither is a problem
whose first rollouts all got the same reward.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from treerl.canon import generator
from treerl.config import CureSearch, EntropyWindow
from treerl.search.asktell import Opening, Result, State, missing_rollouts, opening, stumps
from treerl.search.cut import Cut, chosen_by_token, cut_origin, points_before
from treerl.search.sampler import Origin, Request
from treerl.search.tree import ROOT, Tree

_BRANCHES = (int(Origin.ENTROPY), int(Origin.WINDOW), int(Origin.RANDOM))


@dataclass(slots=True)
class Site:
    """A branch point and how many continuations it still gets."""

    draw: int
    offset: int
    missing: int


@dataclass(slots=True)
class CureState(State):
    """missing: first rollouts not opened yet. rollouts: ended ones, not yet cut. without: had no candidate."""

    missing: int = 0
    stumps: list[int] = field(default_factory=list)
    rollouts: list[int] = field(default_factory=list)
    sites: deque[Site] = field(default_factory=deque)
    cut: bool = False
    without: int = 0


@dataclass(frozen=True, slots=True)
class Cure:
    """`num_initial` rollouts, each branched once into `num_branches` more; `cut` says where."""

    settings: CureSearch
    cut: Cut

    def start(self, tree: Tree) -> CureState:
        """Counts rollouts and branches that are there; branch points are found again from the seeds."""
        return CureState(
            missing=missing_rollouts(tree, self.settings.num_initial),
            stumps=stumps(tree),
            rollouts=[row for row in tree.leaves().tolist() if _is_rollout(tree, row)],
        )

    def ask(self, tree: Tree, state: CureState, budget_tokens_left: int | None) -> list[Request]:
        """First rollouts at once; branches when their rollout is there, or all are where that decides."""
        out = opening(tree, state, budget_tokens_left)
        while state.stumps and out.open(state.stumps[0], 1, origin=Origin.EXTEND):
            state.stumps.pop(0)
        if not state.stumps and state.missing:
            state.missing -= out.open(ROOT, state.missing)
        first_wave = (
            state.missing > 0 or bool(state.stumps) or (state.pending > 0 and not state.cut)
        )
        if not (first_wave and self._waits):
            if self._decided(tree, state):
                state.exit = "decided"
                return []
            self._place(tree, state)
        self._branch(tree, state, out)
        if state.pending == 0:
            if state.missing or state.stumps or state.sites:
                state.exit = "budget"
            else:
                state.exit = "exhausted" if state.without else "done"
        return out.requests

    def tell(self, tree: Tree, state: CureState, results: Sequence[Result]) -> None:
        """Keeps the ended rollouts to be branched."""
        state.pending -= len(results)
        state.rollouts += [r.node for r in results if _is_rollout(tree, r.node)]

    def close(self, tree: Tree, state: CureState) -> None:
        """Counts leaves and rewards."""
        tree.recount()

    @property
    def _waits(self) -> bool:
        """Do branches need all first rollouts? A budget does too: else arrivals would decide who gets it."""
        settings = self.settings
        return (
            settings.only_undecided
            or settings.budget_tokens is not None
            or isinstance(settings.cut, EntropyWindow)
        )

    def _decided(self, tree: Tree, state: CureState) -> bool:
        if state.cut or not self.settings.only_undecided:
            return False
        rewards = tree.nodes.reward[state.rollouts]
        rewards = rewards[~np.isnan(rewards)]
        return len(rewards) == 0 or bool(rewards.min() == rewards.max())

    def _place(self, tree: Tree, state: CureState) -> None:
        """Draws the branch point of every rollout that waits for one, in the order of their draws."""
        rollouts = sorted(state.rollouts, key=lambda row: _number(tree, row))
        if not rollouts:
            return
        threshold = self.cut.threshold(tree, rollouts)
        for row in rollouts:
            candidates = self.cut.candidates(tree, row, threshold)
            if len(candidates) == 0:
                state.without += 1
                continue
            seed = tree.draws.at("seed", tree.nodes.at("draw", row))
            drawn = generator(tree.seed, "cure", seed).integers(len(candidates))
            position = int(candidates[drawn])
            ((draw, offset),) = points_before(tree, row, [position])
            missing = self.settings.num_branches - _branches(tree, row)
            if missing > 0:
                state.sites.append(Site(draw, offset, missing))
        state.rollouts = []
        state.cut = True

    def _branch(self, tree: Tree, state: CureState, out: Opening) -> None:
        """Opens branches site by site, as far as the budget goes."""
        settings = self.settings
        while state.sites and (out.left is None or out.left > 0):
            site = state.sites[0]
            site.missing -= out.open(
                tree.node_at(site.draw, site.offset),
                site.missing,
                origin=cut_origin(settings.cut),
                chosen_by_token=chosen_by_token(settings.cut),
            )
            if site.missing == 0:
                state.sites.popleft()


def _is_rollout(tree: Tree, leaf: int) -> bool:
    """Was the whole path drawn from the root, without a branch?"""
    at = tree.nodes.at
    return not any(at("origin", row) in _BRANCHES for row in tree.path(leaf))


def _number(tree: Tree, leaf: int) -> int:
    """k of the path's first draw."""
    number: int = tree.draws.at("k", tree.nodes.at("draw", tree.path(leaf)[1]))
    return number


def _branches(tree: Tree, leaf: int) -> int:
    """Branches that hang on the path already; none hangs on the root."""
    at = tree.nodes.at
    return sum(
        at("origin", c) in _BRANCHES for row in tree.path(leaf)[1:] for c in tree.children(row)
    )
