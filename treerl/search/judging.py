"""Ended leaves on their way to the verifiers and back: batches of one tree, awaited with a limit.

Book-keeping of the scheduler: which batches are outstanding, in which order their verdicts are taken, how
long is waited for them. What a verdict means is the verifiers' and the strategies' business.
"""

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from treerl.errors import TreerlError
from treerl.problem import Problem
from treerl.search.sampler import STOP
from treerl.search.tree import Tree
from treerl.verifiers.verdict import Completion, Verdict

log = logging.getLogger(__name__)

Decode = Callable[[Sequence[int]], str]
"""Token ids of a completion to its text, special tokens skipped."""

Judge = Callable[[list[Problem], list[Completion]], "Future[list[Verdict]]"]
"""Verdicts of some ended leaves of one tree, later. May return a finished future."""

_GRACE = 60.0
"""Seconds that verdicts may be late beyond what their items may take."""

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Batch(Generic[K]):
    """Leaves of one tree that are judged together. owner: whose they are, to the caller."""

    owner: K
    problem: Problem
    rows: list[int]


class Judging(Generic[K]):
    """Batches out for judgement.

    in_order: verdicts are taken in the order of submission. item_s: seconds one completion may take.
    """

    def __init__(self, judge: Judge, decode: Decode, *, in_order: bool, item_s: float) -> None:
        self._judge, self._decode = judge, decode
        self._in_order, self._item_s = in_order, item_s
        self._numbers = count()
        self._out: dict[int, Batch[K]] = {}
        self._done: SimpleQueue[tuple[int, Future[list[Verdict]]]] = SimpleQueue()
        self._early: dict[int, Future[list[Verdict]]] = {}

    def send(self, owner: K, tree: Tree, problem: Problem, prompt: str, rows: list[int]) -> None:
        """Has ended leaves judged in the background. prompt: text that verifiers may see."""
        completions = []
        for row in rows:
            ids = tuple(tree.completion_tokens(row).tolist())
            name = "stop" if tree.nodes.at("finish", row) == STOP else "length"
            completions.append(Completion(self._decode(ids), name, prompt, ids))
        number = next(self._numbers)
        self._out[number] = Batch(owner, problem, rows)
        future = self._judge([problem] * len(rows), completions)
        future.add_done_callback(lambda done: self._done.put((number, done)))

    def take(self, *, idle: bool) -> tuple[Batch[K], list[Verdict]] | None:
        """The next batch with its verdicts (`error` for each where judging failed).

        None if none is out, or none is back and there is other work (not `idle`, not `in_order`). Raises
        TreerlError where verdicts stay away: a minute longer than all that is out may take.
        """
        if not self._out:
            return None
        if self._in_order:
            number = next(iter(self._out))
            while number not in self._early:
                arrived, future = self._wait()
                self._early[arrived] = future
            future = self._early.pop(number)
        elif idle:
            number, future = self._wait()
        else:
            try:
                number, future = self._done.get_nowait()
            except Empty:
                return None
        batch = self._out.pop(number)
        return batch, _verdicts(future, len(batch.rows))

    def _wait(self) -> tuple[int, "Future[list[Verdict]]"]:
        """The next finished batch, in whatever order."""
        items = sum(len(batch.rows) for batch in self._out.values())
        limit = _GRACE + self._item_s * items
        try:
            return self._done.get(timeout=None if math.isinf(limit) else limit)
        except Empty:
            oldest = next(iter(self._out.values()))
            raise TreerlError(
                f"waited {limit:.0f} s for the verdicts on {items} completions, {len(oldest.rows)} of them "
                f"of problem {oldest.problem.key} ({oldest.problem.question[:60]!r}): the verifiers are stuck"
            ) from None


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
