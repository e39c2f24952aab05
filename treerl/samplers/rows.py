"""What the host knows of the rows that decode together: whose they are, and what each has drawn so far."""

import numpy as np
from numpy.typing import NDArray

from treerl.search.sampler import Continuation

NOTHING = Continuation(np.zeros(0, dtype=np.int32), 0, 0, False)


class Rows:
    """Host side of the rows under way; arrays of `capacity` rows, the first `count` in use.

    seeds uint64; made, limit int64: tokens drawn, at most; last int64: token to run next; tokens, logprobs,
    entropies [capacity, T]: what was drawn.
    """

    def __init__(self, capacity: int) -> None:
        self.count = 0
        self.tickets: list[int] = [0] * capacity
        self.works: list[Continuation] = [NOTHING] * capacity
        self.seeds = np.zeros(capacity, dtype=np.uint64)
        self.made = np.zeros(capacity, dtype=np.int64)
        self.limit = np.zeros(capacity, dtype=np.int64)
        self.last = np.zeros(capacity, dtype=np.int64)
        self.tokens = np.zeros((capacity, 64), dtype=np.int32)
        self.logprobs = np.zeros((capacity, 64), dtype=np.float32)
        self.entropies = np.zeros((capacity, 64), dtype=np.float32)

    @property
    def tickets_in_use(self) -> list[int]:
        """Tickets of the rows in use."""
        return self.tickets[: self.count]

    def append(self, work: list[tuple[int, Continuation]]) -> None:
        """Adds a row for each."""
        for row, (ticket, item) in enumerate(work, self.count):
            self.tickets[row], self.works[row] = ticket, item
            self.seeds[row] = item.seed % 2**64
            self.made[row], self.limit[row] = 0, item.max_tokens
            self.last[row] = item.prefix[-1]
        self.count += len(work)

    def write(
        self,
        tokens: NDArray[np.int64],
        logprobs: NDArray[np.float32],
        entropies: NDArray[np.float32],
    ) -> None:
        """Stores what was drawn, [steps, rows] each, behind what the rows have."""
        steps, n = tokens.shape
        columns = self.made[:n] + np.arange(steps)[:, None]
        width = self.tokens.shape[1]
        if int(columns.max()) >= width:
            for name in ("tokens", "logprobs", "entropies"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old)], axis=1))
        row = np.arange(n)
        self.tokens[row, columns] = tokens
        self.logprobs[row, columns] = logprobs
        self.entropies[row, columns] = entropies
        self.last[:n] = tokens[-1]

    def keep(self, left: int, holes: NDArray[np.int64], movers: NDArray[np.int64]) -> None:
        """Leaves the first `left` rows, after copying rows `movers` onto rows `holes`."""
        for name in ("seeds", "made", "limit", "last", "tokens", "logprobs", "entropies"):
            column = getattr(self, name)
            column[holes] = column[movers]
        for hole, mover in zip(holes.tolist(), movers.tolist(), strict=True):
            self.tickets[hole], self.works[hole] = self.tickets[mover], self.works[mover]
        self.count = left
