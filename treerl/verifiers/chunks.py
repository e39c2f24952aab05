"""Batches on their way through the worker processes: jobs, their chunks, and the run of a chunk.

Book-keeping only: which item is under way, for how long, and what has its verdict. The threads that use
it are in `workers.py`.
"""

import pickle
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from treerl.problem import Problem
from treerl.verifiers.nursery import Child
from treerl.verifiers.verdict import Completion, Verdict
from treerl.verifiers.worker import MARK

PATIENCE_SECONDS = 0.1
"""An item that takes longer is slow: what waits behind it goes elsewhere."""


@dataclass(slots=True)
class Job:
    """One submitted batch. `left` counts verdicts to come; guarded by `lock`."""

    problems: Sequence[Problem]
    completions: Sequence[Completion]
    verdicts: list[Verdict | None]
    left: int
    future: "Future[list[Verdict]]" = field(default_factory=Future)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def settle(self, index: int, verdict: Verdict) -> None:
        """Records a verdict (the first one counts); the last one completes the future."""
        with self.lock:
            if self.verdicts[index] is not None:
                return
            self.verdicts[index] = verdict
            self.left -= 1
            done = self.left == 0
        if done:
            self.future.set_result([verdict for verdict in self.verdicts if verdict is not None])


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some items of a job, judged in one process that has the families `needs` loaded."""

    job: Job
    indices: tuple[int, ...]
    needs: frozenset[str]


class ChunkQueue:
    """Chunks of several jobs, one of each in turn, so that no job waits behind the whole of another.

    What was handed back by a slow process goes before everything else.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, deque[Chunk]] = OrderedDict()
        self._ends = 0
        self._changed = threading.Condition()

    def put(self, chunk: Chunk, *, first: bool = False) -> None:
        """Adds a chunk behind those of its own job, or before all others."""
        key = id(chunk.job)
        with self._changed:
            chunks = self._waiting.setdefault(key, deque())
            if first:
                chunks.appendleft(chunk)
                self._waiting.move_to_end(key, last=False)
            else:
                chunks.append(chunk)
            self._changed.notify()

    def end(self, count: int) -> None:
        """Lets `count` calls of `take` come back with None."""
        with self._changed:
            self._ends += count
            self._changed.notify_all()

    def take(self) -> Chunk | None:
        """Waits for the next chunk; None is the end for the thread that gets it."""
        with self._changed:
            while not self._waiting and not self._ends:
                self._changed.wait()
            if self._ends:
                self._ends -= 1
                return None
            key, chunks = next(iter(self._waiting.items()))
            chunk = chunks.popleft()
            if chunks:
                self._waiting.move_to_end(key)
            else:
                del self._waiting[key]
            return chunk

    def drain(self) -> list[Chunk]:
        """Takes out all that is waiting."""
        with self._changed:
            chunks = [chunk for waiting in self._waiting.values() for chunk in waiting]
            self._waiting.clear()
            return chunks

    def is_empty(self) -> bool:
        """Whether nothing is waiting."""
        return not self._waiting


class Run:
    """One chunk in one child: what has come back, which item is under way, and for how long."""

    def __init__(self, chunk: Chunk, child: Child, timeout: float) -> None:
        self.chunk = chunk
        self.alone = self.set_aside = False
        self.child = child
        self._timeout = timeout
        self._received = 0
        self._current: int | None = None
        self._sent = 0.0

    def send(self) -> None:
        """Gives the chunk to the child. Raises OSError where it is gone."""
        job, indices = self.chunk.job, self.chunk.indices
        MARK.pack_into(self.child.marks, 0, -1, 0.0)
        self._sent = time.monotonic()
        self.child.connection.send_bytes(
            pickle.dumps(
                (
                    [job.problems[index] for index in indices],
                    [job.completions[index] for index in indices],
                    self._timeout * len(indices),
                )
            )
        )

    @property
    def waiting(self) -> bool:
        """Whether verdicts are still to come."""
        if self._current is not None:
            return self._received <= self._current
        return self._received < len(self.chunk.indices)

    def receive(self) -> None:
        """Settles what the child has sent. Raises EOFError where it is gone."""
        verdicts = pickle.loads(self.child.connection.recv_bytes())
        for verdict in verdicts:
            if self._current is None or self._received == self._current:
                self.chunk.job.settle(self.chunk.indices[self._received], verdict)
            self._received += 1

    def patience(self) -> float:
        """Seconds to wait before looking at the clock again."""
        elapsed = self._elapsed()
        slow_in = PATIENCE_SECONDS - elapsed
        next_look = slow_in if slow_in > 0 else PATIENCE_SECONDS
        return max(0.001, min(next_look, self._timeout - elapsed))

    def is_slow(self) -> bool:
        """Whether the item under way has had more than `PATIENCE_SECONDS`."""
        return self._elapsed() >= PATIENCE_SECONDS

    def is_late(self) -> bool:
        """Whether the item under way has had its time."""
        return self._elapsed() >= self._timeout

    def leave_alone(self) -> list[int]:
        """From here on only the item under way counts; gives the others that have no verdict."""
        if self._current is not None or self._is_whole():
            return []
        marked, _ = self.child.mark()
        current = min(max(marked, self._received), len(self.chunk.indices) - 1)
        self._current, self.alone = current, True
        rest = enumerate(self.chunk.indices)
        return [index for place, index in rest if place >= self._received and place != current]

    def settle_current(self, verdict: Verdict) -> None:
        """Settles the item under way (a user's whole batch), after `leave_alone`."""
        if self._current is None:
            settle_all(self.chunk, verdict)
        else:
            self.chunk.job.settle(self.chunk.indices[self._current], verdict)

    def _is_whole(self) -> bool:
        return self.child.shape == "batch"

    def _elapsed(self) -> float:
        marked, began = self.child.mark()
        if marked < self._received:  # not begun: unpickling, or between two items
            began = max(self._sent, began)
        return time.monotonic() - began


def settle_all(chunk: Chunk, verdict: Verdict) -> None:
    """The same verdict for every item of the chunk that has none."""
    for index in chunk.indices:
        chunk.job.settle(index, verdict)
