"""One asynchronous scheduler for all strategies: grows many trees over one sampler.

A tree's next requests are submitted the moment its results and their verdicts are there. There is no barrier
between trees and none between levels: ended leaves are judged in the background while the sampler works, and
a problem that is slow to sample or to judge holds up its own tree only. Which rows to grow is the strategies'
business, how tokens are drawn the sampler's.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from queue import Empty, SimpleQueue

import numpy as np

from treerl.errors import SamplerError
from treerl.problem import Problem
from treerl.search.asktell import Result, State, Strategy
from treerl.search.mend import mend
from treerl.search.sampler import Continuation, Finish, Origin, Request, Sampler, Span
from treerl.search.tree import Tree
from treerl.verifiers.verdict import Completion, Verdict

log = logging.getLogger(__name__)

Decode = Callable[[Sequence[int]], str]
"""Token ids of a completion to its text, special tokens skipped."""

Judge = Callable[[list[Problem], list[Completion]], "Future[list[Verdict]]"]
"""Verdicts of some ended leaves of one tree, later. May return a finished future."""

_ROUNDING = 1e-4
"""How far above 0 a float32 log-probability may lie by rounding alone."""


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


@dataclass(slots=True, eq=False)
class _Active:
    """A tree under way. spent and promised are in tokens; waiting: verdict batches outstanding."""

    growth: Growth
    spent: int
    state: State | None = None
    promised: int = 0
    in_flight: int = 0
    waiting: int = 0


_Judged = tuple[int, _Active, list[int], "Future[list[Verdict]]"]
"""Number of the batch in order of submission, its tree, its rows, its verdicts."""


def grow(
    growths: Iterable[Growth],
    sampler: Sampler,
    judge: Judge,
    decode: Decode,
    counts: Counts | None = None,
    *,
    in_order: bool = False,
) -> Iterator[Growth]:
    """Grows all trees at once and yields each when it is finished, in order of finishing.

    Sets `tree.meta["exit"]` (see `asktell.Exit`) and `tree.meta["generated_tokens"]`. Trees that grow
    when the iterator is closed or an exception passes (Ctrl-C included) stay consistent: whole spans only,
    exit "interrupted"; a later `grow` takes them up. Raises SamplerError where the sampler returns a
    log-probability or entropy that cannot be.

    in_order: take verdicts in the order in which leaves were submitted, before the sampler goes on. What is
    batched together, and with it rounding, then depends on no clock; the sampler waits for slow verdicts.
    """
    run = _Run(sampler, judge, decode, Counts() if counts is None else counts, in_order)
    try:
        for growth in growths:
            run.open(growth)
        while run.active or run.finished:
            finished, run.finished = run.finished, []
            yield from finished
            run.sample()
            run.collect()
    finally:
        run.close()


class _Run:
    """The books of one `grow`: which ticket belongs to which tree, which verdicts are outstanding."""

    def __init__(
        self, sampler: Sampler, judge: Judge, decode: Decode, counts: Counts, in_order: bool
    ) -> None:
        self.sampler, self.judge, self.decode, self.counts = sampler, judge, decode, counts
        self.in_order = in_order
        self.submitted = self.taken = 0
        self.early: dict[int, _Judged] = {}
        self.active: dict[_Active, None] = {}
        self.finished: list[Growth] = []
        self.tickets: dict[int, tuple[_Active, Request, int]] = {}
        self.numbers = count()
        self.outstanding = 0
        self.judged: SimpleQueue[_Judged] = SimpleQueue()

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
        budget = growth.strategy.settings.budget_tokens
        left = None if budget is None else budget - active.spent - active.promised
        for request in growth.strategy.ask(tree, active.state, left):
            self.submit(active, request)
        if active.state.exit is not None:
            self.finish(active, active.state.exit)
        elif not active.in_flight and not active.waiting:
            raise RuntimeError(f"{type(growth.strategy).__name__} neither asks nor ends")

    def submit(self, active: _Active, request: Request) -> None:
        """Queues one continuation a seed; they share one prefix array."""
        prefix = active.growth.tree.path_tokens(request.node)
        for which, seed in enumerate(request.seeds):
            ticket = next(self.numbers)
            work = Continuation(prefix, seed, request.max_tokens, request.last)
            self.sampler.submit(ticket, work)
            self.tickets[ticket] = active, request, which
            active.promised += request.max_tokens
            active.in_flight += 1

    def finish(self, active: _Active, reason: str) -> None:
        """Closes a tree and hands it out."""
        tree = active.growth.tree
        tree.meta["exit"] = reason
        tree.meta["generated_tokens"] = active.spent
        self.counts.trees += 1
        self.counts.exits[reason] += 1
        del self.active[active]
        self.finished.append(active.growth)

    def sample(self) -> None:
        """One step of the sampler; spans that can go on are told at once, ended ones sent to the judge."""
        if not self.tickets:
            return
        arrivals: dict[_Active, list[int]] = {}
        for ticket, span in self.sampler.step():
            active, request, which = self.tickets[ticket]
            _check(span, active.growth, request)
            del self.tickets[ticket]
            row = active.growth.tree.append(request, which, span)
            active.promised -= request.max_tokens
            active.spent += len(span.tokens)
            active.in_flight -= 1
            self.counts.generated_tokens += len(span.tokens)
            self.counts.continuations += 1
            if span.finish == Finish.CUT and request.last:
                # The sampler gave the rollout up half-way (new weights, say): it goes on from there.
                self.submit(active, active.growth.tree.request(row, 1, origin=Origin.EXTEND))
            else:
                arrivals.setdefault(active, []).append(row)
        for active, rows in arrivals.items():
            finish = active.growth.tree.nodes.finish
            ended = [row for row in rows if finish[row] != Finish.CUT]
            if ended:
                self.send_to_judge(active, ended)
            if len(ended) < len(rows):
                self.tell(active, [Result(row, None) for row in rows if finish[row] == Finish.CUT])

    def send_to_judge(self, active: _Active, rows: list[int]) -> None:
        """Has ended leaves of one tree judged in the background."""
        growth, tree = active.growth, active.growth.tree
        completions = []
        for row in rows:
            ids = tuple(tree.completion_tokens(row).tolist())
            name = "stop" if tree.nodes.finish[row] == Finish.STOP else "length"
            completions.append(Completion(self.decode(ids), name, growth.prompt, ids))
        active.waiting += 1
        self.outstanding += 1
        number = self.submitted
        self.submitted += 1
        future = self.judge([growth.problem] * len(rows), completions)
        future.add_done_callback(lambda done: self.judged.put((number, active, rows, done)))

    def collect(self) -> None:
        """Takes in the verdicts that are there; waits for one if the sampler has nothing to do."""
        while self.outstanding:
            try:
                _, active, rows, future = self.next_judged()
            except Empty:
                return
            self.outstanding -= 1
            active.waiting -= 1
            verdicts = _verdicts(future, len(rows))
            tree = active.growth.tree
            for row, verdict in zip(rows, verdicts, strict=True):
                tree.judge(row, verdict)
                self.counts.outcomes[verdict.outcome] += 1
            self.counts.judged += len(rows)
            if active.state is None:
                self.advance(active)
            else:
                self.tell(active, [Result(*pair) for pair in zip(rows, verdicts, strict=True)])
            if self.finished:
                return

    def next_judged(self) -> _Judged:
        """The next batch of verdicts. Raises Empty if there is none and the sampler has work meanwhile."""
        if not self.in_order:
            return self.judged.get(block=not self.tickets)
        while self.taken not in self.early:
            item = self.judged.get()
            self.early[item[0]] = item
        self.taken += 1
        return self.early.pop(self.taken - 1)

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


def _verdicts(future: "Future[list[Verdict]]", expected: int) -> list[Verdict]:
    """The verdicts of a future; `error` for each leaf where judging failed."""
    if future.cancelled():
        reason = "judging was cancelled"
    elif (error := future.exception()) is not None:
        reason = f"{type(error).__name__}: {error}"
    elif len(verdicts := future.result()) != expected:
        reason = f"{expected} completions got {len(verdicts)} verdicts"
    else:
        return verdicts
    log.warning("no verdict for %d completions: %s", expected, reason)
    return [Verdict("error", detail={"error": reason})] * expected


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
