"""Flat search: independent samples from the prompt, the group of GRPO and DAPO."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from treerl.config import FlatSearch
from treerl.search.asktell import Result, State, missing_rollouts, opening, stumps
from treerl.search.sampler import Origin, Request
from treerl.search.tree import ROOT, Tree


@dataclass(slots=True)
class FlatState(State):
    """missing: rollouts not opened yet. stumps: rows that an interruption cut, to be continued."""

    missing: int = 0
    stumps: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Flat:
    """`num_generations` full responses; fewer if the token budget is spent first."""

    settings: FlatSearch

    def start(self, tree: Tree) -> FlatState:
        """Counts the rollouts that are there."""
        return FlatState(
            missing=missing_rollouts(tree, self.settings.num_generations), stumps=stumps(tree)
        )

    def ask(self, tree: Tree, state: FlatState, budget_tokens_left: int | None) -> list[Request]:
        """All missing rollouts at once, as far as the budget goes."""
        out = opening(tree, state, budget_tokens_left)
        while state.stumps and out.open(state.stumps[0], 1, origin=Origin.EXTEND):
            state.stumps.pop(0)
        if not state.stumps and state.missing:
            state.missing -= out.open(ROOT, state.missing)
        if state.pending == 0:
            state.exit = "budget" if state.missing or state.stumps else "done"
        return out.requests

    def tell(self, tree: Tree, state: FlatState, results: Sequence[Result]) -> None:
        """Counts arrivals."""
        state.pending -= len(results)

    def close(self, tree: Tree, state: FlatState) -> None:
        """Counts leaves and rewards."""
        tree.recount()
