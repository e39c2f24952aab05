"""`VerifierPool`: judges batches in worker processes that are killed when an answer takes too long.

The caller holds the clock. Each item may take `timeout_s` wall-clock seconds from the moment it begins;
then its process is killed, that item alone gets the outcome `timeout`, and the rest of its batch is judged
by another process. An item that is merely slow does not hold up what waits behind it: after a tenth of a
second the waiting items go to a fresh process, so that several answers that never return are timed
together and good ones are judged meanwhile. A process that dies gives `error` with the reason.

Works from any thread and from asyncio (`asyncio.wrap_future(pool.submit(...))`).
"""

import logging
import math
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Protocol, Self

from treerl.errors import TreerlError
from treerl.problem import Problem
from treerl.verifiers.chunks import Chunk, ChunkQueue, Job, Run, settle_all
from treerl.verifiers.judge import Settings, families, judge, rules_of
from treerl.verifiers.nursery import Child, Nursery
from treerl.verifiers.user import split_target
from treerl.verifiers.verdict import Completion, Verdict

log = logging.getLogger(__name__)

_MAX_SET_ASIDE = 8
_CHUNK = 8
_SET_ASIDE_NICENESS = 5


class PoolSettings(Settings, Protocol):
    """`treerl.config.VerifierSettings`."""

    @property
    def timeout_s(self) -> float:
        """Wall-clock seconds an item may take (a batch function of a user: the whole call)."""

    @property
    def workers(self) -> int:
        """Processes that judge at the same time, besides those waiting for their end."""

    @property
    def memory_mb(self) -> int:
        """Address space of one process."""


class VerifierPool:
    """Judges problems and completions; owns its processes and is a context manager.

    An instance is a `treerl.verifiers.verdict.Verify`. Raises ConfigError at once for settings or a
    user's target that cannot work, and TreerlError from `submit` after `close`. Processes start with
    the first item that needs one, or at once for kinds that always do.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self._rules = rules_of(settings)
        self._timeout = settings.timeout_s
        self._workers = max(1, settings.workers)
        self._nursery = Nursery(self._rules, memory_mb=settings.memory_mb)
        self._queue = ChunkQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._serving = 0
        self._closed = False
        self._whole_batches = False
        if self._rules.kind == "import":
            split_target(self._rules.target or "")
            try:
                child = self._nursery.spawn(frozenset())
            except BaseException:
                self._nursery.close()
                raise
            self._whole_batches = child.shape == "batch"
            self._add_thread(child)
        elif self._rules.kind in {"math", "reasoning_gym"}:
            self._add_thread(None)

    def __call__(
        self, problems: Sequence[Problem], completions: Sequence[Completion]
    ) -> list[Verdict]:
        """`verify`."""
        return self.verify(problems, completions)

    def verify(
        self, problems: Sequence[Problem], completions: Sequence[Completion]
    ) -> list[Verdict]:
        """Verdicts in order; waits for them."""
        return self.submit(problems, completions).result()

    def submit(
        self, problems: Sequence[Problem], completions: Sequence[Completion]
    ) -> "Future[list[Verdict]]":
        """Starts judging a batch. Raises ConfigError for a kind of problem that nothing judges."""
        if len(problems) != len(completions):
            raise ValueError(f"{len(problems)} problems for {len(completions)} completions")
        job = Job(problems, completions, [None] * len(problems), len(problems))
        job.future.set_running_or_notify_cancel()
        if not problems:
            job.future.set_result([])
            return job.future
        chunks = self._chunks(job)
        with self._lock:
            if self._closed:
                raise TreerlError("the verifier pool is closed")
            for chunk in chunks:
                self._queue.put(chunk)
        return job.future

    def close(self) -> None:
        """Ends all processes; what is not judged by then comes back as `error`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            threads = list(self._threads)
        self._nursery.close()
        self._queue.end(len(threads))
        for thread in threads:
            thread.join()
        for chunk in self._queue.drain():
            settle_all(chunk, _closed_verdict())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Into the queue

    def _chunks(self, job: Job) -> list[Chunk]:
        """What needs a process; the rest is judged here and now.

        A comparison of short texts cannot hang and costs microseconds, less than waking another process:
        a kill is protection only where something can run on.
        """
        if self._rules.kind == "import":
            indices, needs = list(range(len(job.problems))), frozenset[str]()
        else:
            indices, needs = self._judge_cheap(job)
        if not indices:
            return []
        self._grow(len(indices))
        size = len(indices)
        if not self._whole_batches:
            size = min(_CHUNK, max(4, math.ceil(size / self._workers)))
        return [
            Chunk(job, tuple(indices[start : start + size]), needs)
            for start in range(0, len(indices), size)
        ]

    def _judge_cheap(self, job: Job) -> tuple[list[int], frozenset[str]]:
        """Settles what is cheap; gives the other indices and the families they need."""
        indices, needs = [], frozenset[str]()
        wanted = [families(problem, self._rules) for problem in job.problems]
        for index, needed in enumerate(wanted):
            if needed:
                indices.append(index)
                needs |= needed
        for index, needed in enumerate(wanted):
            if not needed:
                job.settle(index, judge(job.problems[index], job.completions[index], self._rules))
        return indices, needs

    def _grow(self, n_items: int) -> None:
        """Threads up to the number of workers, no more than there are items."""
        with self._lock:
            missing = min(self._workers, n_items) - self._serving
        for _ in range(missing):
            self._add_thread(None)

    def _add_thread(self, child: Child | None) -> None:
        thread = threading.Thread(
            target=self._serve, args=(child,), daemon=True, name="treerl-verifier"
        )
        with self._lock:
            if self._closed:
                return
            self._threads.add(thread)
            self._serving += 1
        thread.start()

    # Out of the queue, one thread a process

    def _serve(self, child: Child | None) -> None:
        try:
            if child is None and self._rules.kind in {"math", "reasoning_gym"}:
                child = self._start_early(frozenset({self._rules.kind}))
            while (chunk := self._queue.take()) is not None:
                try:
                    child = self._ready(child, chunk.needs)
                    child, set_aside = self._run(child, chunk)
                except Exception as error:  # noqa: BLE001  a thread that ends here leaves callers waiting
                    child, set_aside = None, False
                    reason = f"{type(error).__name__}: {error}"[:500]
                    settle_all(chunk, Verdict("error", detail={"reason": reason}))
                if set_aside:
                    return
        finally:
            if child is not None:
                self._nursery.end(child)
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _start_early(self, needs: frozenset[str]) -> Child | None:
        try:
            return self._nursery.spawn(needs)
        except (TreerlError, OSError, EOFError) as error:
            if not self._closed:
                log.warning("no verifier worker yet (%s); trying again with the first batch", error)
            return None

    def _ready(self, child: Child | None, needs: frozenset[str]) -> Child:
        if child is not None and needs <= child.loaded and child.is_there():
            return child
        if child is not None:
            self._nursery.end(child)
        return self._nursery.spawn(needs)

    def _run(self, child: Child, chunk: Chunk) -> tuple[Child | None, bool]:
        """Has one chunk judged. Gives the child if it lives, and whether this thread was replaced."""
        run = Run(chunk, child, self._timeout)
        try:
            run.send()
            while run.waiting:
                if child.connection.poll(run.patience()):
                    run.receive()
                elif run.is_late():
                    others = run.leave_alone()
                    self._nursery.end(child)
                    run.settle_current(_timeout_verdict(self._rules.kind, self._timeout))
                    self._requeue(others, chunk)
                    return None, run.set_aside
                elif run.is_slow() and self._may_set_aside(run):
                    self._set_aside(run)
        except (OSError, EOFError):
            others = run.leave_alone()
            status = self._nursery.end(child)
            run.settle_current(_closed_verdict() if self._closed else _death_verdict(status))
            self._requeue(others, chunk)
            return None, run.set_aside
        if run.alone:  # the child goes on with items that others have taken over
            self._nursery.end(child)
            return None, run.set_aside
        return child, False

    def _may_set_aside(self, run: Run) -> bool:
        """A user's function may be slow by nature and dear to load: it keeps its one process."""
        if run.alone or self._rules.kind == "import":
            return False
        return len(run.chunk.indices) > 1 or not self._queue.is_empty()

    def _set_aside(self, run: Run) -> None:
        """Leaves the slow item to this thread, everything else to a new one (bounded in number)."""
        self._requeue(run.leave_alone(), run.chunk)
        run.child.yield_to_others(_SET_ASIDE_NICENESS)
        with self._lock:
            run.set_aside = len(self._threads) < self._workers + _MAX_SET_ASIDE
            self._serving -= run.set_aside
        if run.set_aside:
            self._add_thread(None)

    def _requeue(self, indices: Sequence[int], chunk: Chunk) -> None:
        if not indices:
            return
        if self._closed:
            settle_all(Chunk(chunk.job, tuple(indices), chunk.needs), _closed_verdict())
            return
        size = math.ceil(len(indices) / (4 * self._workers))
        for start in range(0, len(indices), size):
            part = tuple(indices[start : start + size])
            self._queue.put(Chunk(chunk.job, part, chunk.needs), first=True)


def _timeout_verdict(kind: str, timeout: float) -> Verdict:
    return Verdict("timeout", detail={"kind": kind, "limit_s": timeout}, seconds=timeout)


def _closed_verdict() -> Verdict:
    return Verdict("error", detail={"reason": "the verifier pool was closed"})


def _death_verdict(status: int) -> Verdict:
    code = os.waitstatus_to_exitcode(status)
    reason = f"exit code {code}"
    if code < 0:
        reason = f"killed by {signal.Signals(-code).name}"
    return Verdict("error", detail={"reason": f"the worker process died: {reason}"})
