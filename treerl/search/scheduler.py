"""One asynchronous scheduler for all strategies: grows many trees over one sampler.

A tree's next requests are submitted the moment its results and their verdicts are there, and a further tree
is opened whenever the sampler has too little to do. There is no barrier between trees and none between
levels: ended leaves are judged in the background while the sampler works, and a problem that is slow to
sample or to judge holds up its own tree only. Which rows to grow is the strategies' business, how tokens are
drawn the sampler's.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import assert_never

import numpy as np

from treerl.errors import DoesNotFit, SamplerError
from treerl.problem import Problem
from treerl.search.asktell import Exit, Result, State, Strategy
from treerl.search.judging import Decode, Judge, Judging
from treerl.search.mend import mend
from treerl.search.sampler import CUT, Continuation, Failure, Origin, Request, Sampler, Span
from treerl.search.tree import Tree

log = logging.getLogger(__name__)

_ROUNDING = 1e-4
"""How far above 0 a float32 log-probability may lie by rounding alone."""
_QUEUED = 2
"""Continuations under way for each one that the sampler can draw at a time, unless `Limits` say otherwise."""


@dataclass(slots=True, eq=False)
class Growth:
    """A tree to grow. prompt: text that verifiers may see."""

    tree: Tree
    strategy: Strategy
    problem: Problem
    prompt: str = ""


@dataclass(slots=True)
class Counts:
    """What a scheduler did. outcomes: verdicts by outcome; exits: finished trees by `tree.meta["exit"]`."""

    generated_tokens: int = 0
    continuations: int = 0
    judged: int = 0
    trees: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    exits: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is under way at a time, and how long is waited for it.

    in_flight: continuations; trees are opened while there are fewer (None: twice the sampler's capacity).
    request_s: seconds from the submission of a continuation to its end; then its tree ends by "timeout".
    item_s: seconds that judging one completion may take; without a verdict for longer than all that wait may
    take, and a minute, the search ends in a TreerlError.
    """

    in_flight: int | None = None
    request_s: float = math.inf
    item_s: float = math.inf


NO_LIMITS = Limits()


@dataclass(slots=True, eq=False)
class _Active:
    """A tree under way. spent and promised are in tokens; waiting: verdict batches outstanding.

    failed: why it asks for nothing more, and ends once all that is under way is there.
    """

    growth: Growth
    spent: int
    state: State | None = None
    promised: int = 0
    in_flight: int = 0
    waiting: int = 0
    failed: Exit | None = None


@dataclass(slots=True, eq=False)
class _Ticket:
    """A continuation under way: number `which` of `request`; `due` on the monotonic clock."""

    active: _Active
    request: Request
    which: int
    due: float


def grow(
    growths: Iterable[Growth],
    sampler: Sampler,
    judge: Judge,
    decode: Decode,
    counts: Counts | None = None,
    *,
    in_order: bool = False,
    limits: Limits = NO_LIMITS,
    on_round: Callable[[], None] = lambda: None,
) -> Iterator[Growth]:
    """Grows trees side by side and yields each when it is finished, in order of finishing.

    Sets `tree.meta["exit"]` (see `asktell.Exit`) and `tree.meta["generated_tokens"]`. A continuation that
    comes to nothing ends its own tree. Trees that grow when the iterator is closed or an exception passes
    (Ctrl-C included) stay consistent: whole spans only, exit "interrupted"; a later `grow` takes them up.
    Raises SamplerError where the sampler cannot go on or returns a log-probability or entropy that cannot
    be, TreerlError where verdicts stay away.

    growths: taken one by one, as the sampler has room.
    in_order: take verdicts in the order in which leaves were submitted, before the sampler goes on. What is
    batched together, and with it rounding, then depends on no clock; the sampler waits for slow verdicts.
    on_round: called before each step of the sampler, when all trees are whole.
    """
    run = _Run(sampler, judge, decode, Counts() if counts is None else counts, in_order, limits)
    waiting = iter(growths)
    try:
        while True:
            while len(run.tickets) < run.window and (growth := next(waiting, None)) is not None:
                run.open(growth)
            yield from run.take_finished()
            if not run.active:
                return
            on_round()
            run.sample()
            yield from run.collect()
    finally:
        run.close()


class _Run:
    """The books of one `grow`: which ticket belongs to which tree, which verdicts are outstanding."""

    def __init__(
        self,
        sampler: Sampler,
        judge: Judge,
        decode: Decode,
        counts: Counts,
        in_order: bool,
        limits: Limits,
    ) -> None:
        self.sampler, self.counts, self.limits = sampler, counts, limits
        self.window = limits.in_flight or _QUEUED * sampler.capacity
        self.active: dict[_Active, None] = {}
        self.finished: list[Growth] = []
        self.tickets: dict[int, _Ticket] = {}
        self.numbers = count()
        self.next_look = 0.0
        self.judging: Judging[_Active] = Judging(
            judge, decode, in_order=in_order, item_s=limits.item_s
        )

    def open(self, growth: Growth) -> None:
        """Starts a tree; leaves that an earlier run left unjudged are judged first."""
        tree = growth.tree
        tree.meta["exit"] = "interrupted"
        active = _Active(growth, tree.n_generated)
        self.active[active] = None
        unjudged = [row for row in tree.leaves().tolist() if row not in tree.verdicts]
        if unjudged:
            self.send_to_judge(active, unjudged)
        else:
            self.advance(active)

    def advance(self, active: _Active) -> None:
        """Asks the strategy what comes next, and submits it or closes the tree."""
        growth, tree = active.growth, active.growth.tree
        if active.state is None:
            active.state = growth.strategy.start(tree)
        if active.failed is None:
            budget = growth.strategy.settings.budget_tokens
            left = None if budget is None else budget - active.spent - active.promised
            for request in growth.strategy.ask(tree, active.state, left):
                self.submit(active, request)
        if active.state.exit is not None:
            self.finish(active, active.state.exit)
        elif not active.in_flight and not active.waiting:
            if active.failed is None:
                raise RuntimeError(f"{type(growth.strategy).__name__} neither asks nor ends")
            self.finish(active, active.failed)

    def submit(self, active: _Active, request: Request) -> None:
        """Queues one continuation a seed; they share one prefix array."""
        prefix = active.growth.tree.path_tokens(request.node)
        due = time.monotonic() + self.limits.request_s
        for which, seed in enumerate(request.seeds):
            ticket = next(self.numbers)
            work = Continuation(prefix, seed, request.max_tokens, request.last)
            try:
                self.sampler.submit(ticket, work)
            except DoesNotFit as error:
                self.fail(active, Failure("too_long", str(error)))
                return
            self.tickets[ticket] = _Ticket(active, request, which, due)
            active.promised += request.max_tokens
            active.in_flight += 1

    def fail(self, active: _Active, failure: Failure) -> None:
        """A tree one of whose continuations came to nothing asks no more; the rest of it still arrives."""
        active.failed = active.failed or failure.exit
        problem = active.growth.problem
        log.warning("problem %s ends: %s (%s)", problem.key, failure.exit, failure.reason)

    def finish(self, active: _Active, reason: Exit) -> None:
        """Closes a tree, to be handed out."""
        tree, strategy = active.growth.tree, active.growth.strategy
        strategy.close(tree, active.state)
        tree.meta["exit"] = reason
        tree.meta["generated_tokens"] = active.spent
        self.counts.trees += 1
        self.counts.exits[reason] += 1
        del self.active[active]
        self.finished.append(active.growth)

    def take_finished(self) -> list[Growth]:
        """The trees that were closed since the last call."""
        finished, self.finished = self.finished, []
        return finished

    def sample(self) -> None:
        """One step of the sampler; spans that can go on are told at once, ended ones sent to the judge."""
        if not self.tickets:
            return
        arrivals: dict[_Active, list[int]] = {}
        for number, outcome in self.sampler.step():
            ticket = self.tickets[number]
            match outcome:
                case Span():
                    self.attach(number, ticket, outcome, arrivals)
                case Failure():
                    self.drop(number, outcome)
                    arrivals.setdefault(ticket.active, [])
                case _:
                    assert_never(outcome)
        for active in self.drop_overdue():
            arrivals.setdefault(active, [])
        for active, rows in arrivals.items():
            at = active.growth.tree.nodes.at
            ended = [row for row in rows if at("finish", row) != CUT]
            if ended:
                self.send_to_judge(active, ended)
            if len(ended) < len(rows) or not rows:
                self.tell(active, [Result(row, None) for row in rows if at("finish", row) == CUT])

    def attach(
        self, number: int, ticket: _Ticket, span: Span, arrivals: dict[_Active, list[int]]
    ) -> None:
        """Puts a span into its tree; `arrivals` gets its row, unless the sampler gave it up half-way."""
        active, request = ticket.active, ticket.request
        _check(span, active.growth, request)
        del self.tickets[number]
        row = active.growth.tree.append(request, ticket.which, span)
        active.promised -= request.max_tokens
        active.spent += len(span.tokens)
        active.in_flight -= 1
        self.counts.generated_tokens += len(span.tokens)
        self.counts.continuations += 1
        if span.finish == CUT and request.last and active.failed is None:
            # New weights came in between, say: it goes on from there.
            self.submit(active, active.growth.tree.request(row, 1, origin=Origin.EXTEND))
        else:
            arrivals.setdefault(active, []).append(row)

    def drop(self, number: int, failure: Failure) -> None:
        """Takes a continuation that came to nothing out of the books."""
        ticket = self.tickets.pop(number)
        ticket.active.promised -= ticket.request.max_tokens
        ticket.active.in_flight -= 1
        self.fail(ticket.active, failure)

    def drop_overdue(self) -> list[_Active]:
        """Aborts continuations that have taken too long; their trees."""
        now = time.monotonic()
        if now < self.next_look or math.isinf(self.limits.request_s):
            return []
        self.next_look = now + min(1.0, self.limits.request_s / 10)
        overdue = {number: t for number, t in self.tickets.items() if t.due <= now}
        self.sampler.abort(overdue)
        for number in overdue:
            reason = f"the sampler did not return a continuation within {self.limits.request_s:g} s"
            self.drop(number, Failure("timeout", f"{reason} (sampler.request_timeout_s)"))
        return [ticket.active for ticket in overdue.values()]

    def collect(self) -> Iterator[Growth]:
        """Takes in the verdicts that are there; waits for one if the sampler has nothing to do.

        Yields trees the moment they are finished.
        """
        yield from self.take_finished()
        while (judged := self.judging.take(idle=not self.tickets)) is not None:
            batch, verdicts = judged
            active = batch.owner
            active.waiting -= 1
            for row, verdict in zip(batch.rows, verdicts, strict=True):
                active.growth.tree.judge(row, verdict)
                self.counts.outcomes[verdict.outcome] += 1
            self.counts.judged += len(verdicts)
            if active.state is None:
                self.advance(active)
            else:
                self.tell(
                    active, [Result(*pair) for pair in zip(batch.rows, verdicts, strict=True)]
                )
            yield from self.take_finished()

    def send_to_judge(self, active: _Active, rows: list[int]) -> None:
        """Has ended leaves of one tree judged in the background."""
        growth = active.growth
        active.waiting += 1
        self.judging.send(active, growth.tree, growth.problem, growth.prompt, rows)

    def tell(self, active: _Active, results: list[Result]) -> None:
        """Hands results to the strategy and goes on with the tree."""
        active.growth.strategy.tell(active.growth.tree, active.state, results)
        self.advance(active)

    def close(self) -> None:
        """Drops what is queued; trees under way keep the whole spans they have."""
        self.sampler.abort(list(self.tickets))
        for active in self.active:
            tree = mend(active.growth.tree)
            tree.meta["generated_tokens"] = tree.n_generated


def _check(span: Span, growth: Growth, request: Request) -> None:
    """Raises SamplerError for numbers that cannot be, before they reach the tree."""
    for name, column, top in (
        ("logprob", span.logprobs, _ROUNDING),
        ("entropy", span.entropies, np.inf),
    ):
        bad = ~(np.isfinite(column) & (column <= top))
        if bad.any():
            at = int(bad.argmax())
            raise SamplerError(
                f"the sampler returned {name} {column[at]} at token {at} of a continuation of node "
                f"{request.node}, problem {growth.problem.key} ({growth.problem.question[:60]!r}); "
                "the weights or the sampling settings are broken: go back to the last checkpoint, or "
                "try dtype = float32"
            )
