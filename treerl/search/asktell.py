"""What a growth rule and its caller say to each other: `State`, `Result`, `GrowthRule`.

The caller asks, samples what was asked for, has every ended leaf judged, and tells. A strategy is settings
without memory; all that it remembers of a tree is in the tree's `State`, which `start` rebuilds from the tree.
Sampling, judging and the order of work are the scheduler's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from treerl.config import SearchSection
from treerl.search.sampler import Finish, Origin, Request
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict

Exit = Literal["done", "decided", "enough", "budget", "exhausted", "too_long", "timeout", "failed"]
"""Why a tree stopped growing; all but the last three are a strategy's own decision.

done: every leaf that the settings ask for is there. decided: the first rollouts all got the same reward, so
no branch was opened. enough: enough right and enough wrong leaves. budget: the token budget is spent.
exhausted: no (further) point to branch at. too_long, timeout, failed: a continuation came to nothing (see
`sampler.Failure`); the tree keeps what it has.
"""

RIGHT = 0.5
"""A leaf is right if its reward is above this: holds for rewards {0, 1}, -1/+1 and fractions."""


@dataclass(slots=True)
class State:
    """What every strategy keeps of a tree. pending: continuations asked for and not told yet."""

    exit: Exit | None = None
    pending: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """A row that arrived: `verdict` of an ended leaf, None for a span that can go on (finish CUT)."""

    node: int
    verdict: Verdict | None


S = TypeVar("S", bound=State)


class GrowthRule(Protocol[S]):
    """How trees grow, with a state `S`.

    Decisions depend on the tree and its seed alone, never on the order of arrival.
    """

    @property
    def settings(self) -> SearchSection:
        """The recipe's section; the scheduler reads `budget_tokens`."""

    def start(self, tree: Tree) -> S:
        """The state of a new tree, or of a partly grown one whose ended leaves are all judged.

        Solutions grafted at the root (origin CACHE) count as rollouts.
        """

    def ask(self, tree: Tree, state: S, budget_tokens_left: int | None) -> list[Request]:
        """What to sample now; [] while results are awaited, or with `state.exit` set, at the end.

        budget_tokens_left: tokens neither spent nor promised to requests in flight; None: no limit.
        """

    def tell(self, tree: Tree, state: S, results: Sequence[Result]) -> None:
        """Takes in arrived rows (in any order and grouping), already attached and judged."""

    def close(self, tree: Tree, state: S) -> None:
        """Writes the statistics of a tree that grows no more, whatever ended it, into its rows."""


Strategy = GrowthRule[Any]
"""A growth rule whose state is its own business: what schedulers and engines hold."""


def affordable(budget_tokens_left: int | None, max_tokens: int, count: int) -> int:
    """How many of `count` continuations of at most `max_tokens` may be opened.

    One is opened while anything is left, and takes its worst case until it has arrived. Opened in a fixed
    order this is independent of arrivals: a continuation is opened iff those before it cost less than the
    budget in the end, and the budget is overrun by less than one continuation.
    """
    if budget_tokens_left is None:
        return count
    return max(0, min(count, -(-budget_tokens_left // max_tokens)))


@dataclass(slots=True)
class Opening:
    """Requests of one ask, and what is left of the budget while they are made."""

    tree: Tree
    state: State
    left: int | None
    requests: list[Request]

    def open(
        self,
        node: int,
        count: int,
        *,
        max_tokens: int | None = None,
        origin: Origin = Origin.SAMPLE,
        chosen_by_token: bool = False,
    ) -> int:
        """Asks for up to `count` continuations of `node`, as far as the budget goes; returns how many."""
        room = self.tree.max_completion_length - self.tree.completion_length(node)
        each = room if max_tokens is None else min(max_tokens, room)
        count = affordable(self.left, each, count)
        if count == 0:
            return 0
        self.requests.append(
            self.tree.request(
                node, count, max_tokens=max_tokens, origin=origin, chosen_by_token=chosen_by_token
            )
        )
        self.state.pending += count
        if self.left is not None:
            self.left -= count * each
        return count


def opening(tree: Tree, state: State, budget_tokens_left: int | None) -> Opening:
    """An `Opening` without requests."""
    return Opening(tree, state, budget_tokens_left, [])


def missing_rollouts(tree: Tree, wanted: int) -> int:
    """Rollouts from the root still to be opened. Cached ones count, but at least one must be fresh."""
    origin = tree.nodes.origin
    children = tree.children(ROOT)
    cached = sum(int(origin[row]) == Origin.CACHE for row in children)
    return max(0, max(1, wanted - cached) - (len(children) - cached))


def stumps(tree: Tree) -> list[int]:
    """Rows of spans that were cut and never continued, by the seed of their draw."""
    nodes = tree.nodes
    rows = [
        row for row in (nodes.finish == Finish.CUT).nonzero()[0].tolist() if not tree.children(row)
    ]
    return sorted(rows, key=lambda row: int(tree.draws.seed[nodes.draw[row]]))
