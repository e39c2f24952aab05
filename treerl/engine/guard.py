"""A step of the sampler that never comes back ends the process, with the reason: nothing waits for ever.

Code that hangs inside a library cannot be interrupted from Python. What is stored is whole at any moment, as
after a kill, so the process ends with exit code 1 and the run is resumed. Continuations that stay away while
steps do come back are the scheduler's business.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from treerl.config import Recipe
from treerl.engine.folder import resume_command, run_paths
from treerl.search.sampler import Continuation, Outcome, Sampler


class GuardedSampler:
    """The sampler `inner`, each of whose steps may take `sampler.request_timeout_s`; a context manager."""

    def __init__(self, inner: Sampler, recipe: Recipe) -> None:
        self._inner, self._limit = inner, recipe.sampler.request_timeout_s
        self._remedy = "Start again"
        if run_paths(recipe).recipe.is_file():
            self._remedy = f"What is stored stays. Go on with: {resume_command(recipe)}"
        self._began: float | None = None
        self._submitted = 0
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._run, daemon=True, name="treerl-guard")

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._watch.join()

    @property
    def capacity(self) -> int:
        """That of `inner`."""
        return self._inner.capacity

    @property
    def policy_version(self) -> int:
        """That of `inner`."""
        return self._inner.policy_version

    @property
    def stats(self) -> dict[str, Any]:
        """Those of `inner`."""
        return self._inner.stats

    def submit(self, ticket: int, work: Continuation) -> None:
        """Queues one continuation."""
        self._inner.submit(ticket, work)
        self._submitted += 1

    def step(self) -> Sequence[tuple[int, Outcome]]:
        """A step of `inner`; the process ends where it does not come back."""
        self._began = time.monotonic()
        try:
            ended = self._inner.step()
        finally:
            self._began = None
        self._submitted -= len(ended)
        return ended

    def abort(self, tickets: Iterable[int]) -> None:
        """Drops continuations."""
        dropped = list(tickets)
        self._inner.abort(dropped)
        self._submitted -= len(dropped)

    def _run(self) -> None:
        while not self._ended.wait(min(1.0, self._limit / 10)):
            began = self._began
            if began is not None and time.monotonic() - began > self._limit:
                self._give_up()

    def _give_up(self) -> None:
        sys.stderr.write(
            f"treerl: a step of the sampler has not come back for {self._limit:g} s "
            f"(sampler.request_timeout_s); {self._submitted} continuations were under way. {self._remedy}\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)
        os._exit(1)
