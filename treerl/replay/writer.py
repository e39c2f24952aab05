"""Writing off the training thread: a queue of whole trees and the one thread that writes them.

`put` takes a snapshot and returns; `flush` returns when everything put so far is in the database, which a
checkpoint must await. An error of the database comes out of the next `put`, `flush` or `close`; trees put
after it are not written, and none of them has been acknowledged by a flush.
"""

import queue
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from treerl.errors import StoreError
from treerl.problem import Problem
from treerl.replay import rows
from treerl.replay.keys import Provenance
from treerl.replay.store import Store
from treerl.search.tree import Tree

BATCH_NODES = 4096
"""Nodes after which a transaction takes no further tree: other writers wait while it runs."""


class Writer:
    """Writes the trees of one run, in the order of `put`, those that wait together in one transaction.

    Use as a context manager, or call `close`.

    capacity: trees that may wait; a fuller queue makes `put` wait.
    """

    def __init__(self, store: Store, run_id: str, *, capacity: int = 64) -> None:
        self.store, self.run_id = store, run_id
        self._queue: queue.Queue[rows.TreeRows | None] = queue.Queue(capacity)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="replay writer", daemon=True)
        self._thread.start()

    def put(
        self,
        tree: Tree,
        *,
        step: int,
        number: int = 0,
        problem: Problem,
        provenance: Provenance,
        texts: Mapping[int, str] | None = None,
        claim: rows.Claim | None = None,
    ) -> None:
        """Queues a snapshot of the tree, as `Store.put_tree`; waits while the queue is full."""
        self._raise()
        if not self._thread.is_alive():
            raise StoreError("the replay writer is closed")
        encoded = rows.encode(
            tree,
            step=step,
            number=number,
            problem=problem,
            provenance=provenance,
            texts=texts or {},
            claim=claim,
        )
        self._queue.put(encoded)

    def flush(self) -> None:
        """Returns when all trees put so far are committed. Raises what went wrong."""
        self._queue.join()
        self._raise()

    def close(self) -> None:
        """Writes what waits, ends the thread and raises what went wrong, if nobody has heard of it."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._raise()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        # The error under way matters more than one of the writer.
        try:
            self.close()
        except StoreError as second:
            error.add_note(f"and the replay writer stopped: {second}")

    def _raise(self) -> None:
        if self._error is not None:
            raise StoreError(str(self._error)) from self._error

    def _work(self) -> None:
        while True:
            batch, last = self._take()
            try:
                if self._error is None:
                    self._write(batch)
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
                self._error = error
            finally:
                for _ in range(len(batch) + last):
                    self._queue.task_done()
            if last:
                return

    def _take(self) -> tuple[list[rows.TreeRows], bool]:
        """Waits for a tree and takes what else is queued, and whether the end has come."""
        batch: list[rows.TreeRows] = []
        encoded = self._queue.get()
        while encoded is not None:
            batch.append(encoded)
            if sum(len(each.visits["row"]) for each in batch) >= BATCH_NODES:
                return batch, False
            try:
                encoded = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _write(self, batch: Sequence[rows.TreeRows]) -> None:
        if not batch:
            return
        try:
            self.store.put_rows(self.run_id, batch)
        except StoreError:
            if len(batch) == 1:
                raise
            # One tree may be at fault: those before it must not be lost with it.
            for encoded in batch:
                self.store.put_rows(self.run_id, [encoded])
