"""Keys and values of rows that ended, kept so that a branch of one need not be encoded again.

Valid for one version of the weights only; the oldest go first when the room is used up.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

KeysValues = list[tuple[Tensor, Tensor]]
"""One pair a layer: [rows, heads, columns, head size]."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Row `row` of `states`; tokens int32[n]: what its n columns from `first` on encode."""

    states: KeysValues
    row: int
    first: int
    tokens: NDArray[np.int32]


class Reuse:
    """Ended rows by the prefix they were drawn from, at most about `capacity` bytes of states."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._bytes = 0
        self._slabs: deque[tuple[int, list[tuple[bytes, Kept]]]] = deque()
        self._by_root: dict[bytes, list[Kept]] = {}
        self._lengths: dict[int, int] = {}

    def keep(
        self,
        states: KeysValues,
        first: list[int],
        tokens: list[NDArray[np.int32]],
        roots: list[int],
    ) -> None:
        """Takes in rows that ended together, row i from column `first[i]` on.

        The first `roots[i]` of `tokens[i]` were given, the others drawn.
        """
        size = sum(k.nbytes + v.nbytes for k, v in states)
        if size > self.capacity:
            return
        while self._bytes + size > self.capacity:
            self._forget()
        items = []
        for row, (path, root) in enumerate(zip(tokens, roots, strict=True)):
            key, kept = path[:root].tobytes(), Kept(states, row, first[row], path)
            self._by_root.setdefault(key, []).append(kept)
            self._lengths[root] = self._lengths.get(root, 0) + 1
            items.append((key, kept))
        self._slabs.append((size, items))
        self._bytes += size

    def find(self, tokens: NDArray[np.int32]) -> Kept | None:
        """A row that begins with all of `tokens` (int32[n], n > 0)."""
        n = len(tokens)
        for root in sorted(self._lengths, reverse=True):
            if root > n:
                continue
            for kept in self._by_root.get(tokens[:root].tobytes(), ()):
                if len(kept.tokens) >= n and np.array_equal(kept.tokens[root:n], tokens[root:]):
                    return kept
        return None

    def clear(self) -> None:
        """Forgets all."""
        self._bytes = 0
        self._slabs.clear()
        self._by_root.clear()
        self._lengths.clear()

    def _forget(self) -> None:
        size, items = self._slabs.popleft()
        self._bytes -= size
        for key, kept in items:
            bucket, root = self._by_root[key], len(key) // kept.tokens.itemsize
            bucket.remove(kept)
            if not bucket:
                del self._by_root[key]
            self._lengths[root] -= 1
            if not self._lengths[root]:
                del self._lengths[root]
