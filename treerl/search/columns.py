"""Growable struct of arrays: named numpy columns of one length that double their capacity when full.

`Nodes`, `Draws` and `Tokens` are the three of a tree.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from treerl.search.sampler import Finish, Origin

IntArray = NDArray[Any]
FloatArray = NDArray[Any]

NO_PARENT = -1

_PREPARED = 256

Schema = dict[str, tuple[str, Any]]
"""Column name -> (numpy dtype, value of a row that does not set it)."""


class Columns:
    """Base of the column sets of a tree. `columns.name` is a view of the rows in use (writable)."""

    SCHEMA: ClassVar[Schema] = {}

    def __init__(self) -> None:
        self._size = self._ready = 0
        self._capacity = 16
        self._views: list[str] = []
        self._data = self._empty()

    def __len__(self) -> int:
        return self._size

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("_data")
        if data is None or name not in data:
            raise AttributeError(name)
        # The view stays an attribute, found without this function, until the number of rows changes.
        view = data[name][: self._size]
        self.__dict__[name] = view
        self._views.append(name)
        return view

    def at(self, name: str, row: int) -> Any:
        """One value as a Python number: several times cheaper than an element of `columns.name`."""
        return self._data[name].item(row)

    def set(self, name: str, row: int, value: Any) -> None:
        """Changes one value."""
        self._data[name][row] = value

    def append(self, **values: Any) -> int:
        """Adds one row, absent columns at their default; returns its number."""
        row = self._size
        if row >= self._ready:
            self._prepare()
        data = self._data
        for name, value in values.items():
            data[name][row] = value
        self._resize(row + 1)
        return row

    def extend(self, count: int, **values: Any) -> tuple[int, int]:
        """Adds `count` rows from arrays or scalars; returns [start, stop)."""
        start, stop = self._size, self._size + count
        if stop > self._capacity:
            self._reserve(count)
        for name, (_, default) in self.SCHEMA.items():
            self._data[name][start:stop] = values.get(name, default)
        self._ready = max(self._ready, stop)
        self._resize(stop)
        return start, stop

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Copies of all columns, by name."""
        return {name: column[: self._size].copy() for name, column in self._data.items()}

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Replaces all rows; `arrays` must hold every column with one common length."""
        sizes = {len(arrays[name]) for name in self.SCHEMA}
        if len(sizes) != 1:
            raise ValueError(f"columns of unequal length: {sorted(sizes)}")
        size = sizes.pop()
        self._capacity = max(16, size)
        self._data = self._empty()
        for name, column in self._data.items():
            column[:size] = arrays[name]
        self._ready = size
        self._resize(size)

    def _resize(self, size: int) -> None:
        """Changes the number of rows in use; views made before are forgotten."""
        while self._views:
            self.__dict__.pop(self._views[-1], None)
            self._views.pop()
        self._size = size

    def _prepare(self) -> None:
        """Puts defaults into the next rows, so that `append` writes only what differs."""
        if self._size == self._capacity:
            self._reserve(1)
        start, stop = self._size, self._size + _PREPARED
        for name, (_, default) in self.SCHEMA.items():
            self._data[name][start:stop] = default
        self._ready = min(stop, self._capacity)

    def _reserve(self, count: int) -> None:
        self._capacity = max(2 * self._capacity, self._size + count)
        grown = self._empty()
        for name, column in self._data.items():
            grown[name][: self._size] = column[: self._size]
        self._ready = self._size
        self._data = grown

    def _empty(self) -> dict[str, NDArray[Any]]:
        return {name: np.empty(self._capacity, dtype) for name, (dtype, _) in self.SCHEMA.items()}


class Nodes(Columns):
    """One row a span. N rows; `start`, `stop` index the token columns.

    offset: tokens on the path before the span, prompt included. reward: NaN = not judged. selected: an ended
    leaf that becomes a training row. chosen_by_token: the branch point was picked because of its sampled
    token, so the original continuation is no fair sample of the point's value.
    """

    SCHEMA: ClassVar[Schema] = {
        "parent": ("i4", NO_PARENT),
        "draw": ("i4", 0),
        "start": ("i8", 0),
        "stop": ("i8", 0),
        "offset": ("i8", 0),
        "visits": ("i8", 0),
        "value_sum": ("f8", 0.0),
        "prior": ("f8", np.nan),
        "finish": ("i1", int(Finish.OPEN)),
        "reward": ("f8", np.nan),
        "origin": ("i1", int(Origin.SAMPLE)),
        "chosen_by_token": ("?", False),
        "selected": ("?", True),
    }
    if TYPE_CHECKING:
        parent: IntArray
        draw: IntArray
        start: IntArray
        stop: IntArray
        offset: IntArray
        visits: IntArray
        value_sum: FloatArray
        prior: FloatArray
        finish: IntArray
        reward: FloatArray
        origin: IntArray
        chosen_by_token: NDArray[np.bool_]
        selected: NDArray[np.bool_]


class Draws(Columns):
    """One row a sampled continuation (draw 0 is the prompt).

    A draw is named by (parent draw, offset of its first token in it, k) and owns the contiguous tokens
    [start, start+length); spans are pieces of draws. source: 0 = drawn for this tree, else the id of the
    stored draw it was taken from.
    """

    SCHEMA: ClassVar[Schema] = {
        "parent": ("i4", NO_PARENT),
        "offset": ("i8", 0),
        "k": ("i4", 0),
        "seed": ("i8", 0),
        "start": ("i8", 0),
        "length": ("i8", 0),
        "finish": ("i1", int(Finish.OPEN)),
        "policy_version": ("i4", 0),
        "source": ("i8", 0),
    }
    if TYPE_CHECKING:
        parent: IntArray
        offset: IntArray
        k: IntArray
        seed: IntArray
        start: IntArray
        length: IntArray
        finish: IntArray
        policy_version: IntArray
        source: IntArray


class Tokens(Columns):
    """One row a unique token. mask: takes gradient (False on the prompt and on observations)."""

    SCHEMA: ClassVar[Schema] = {
        "token": ("i4", 0),
        "logprob": ("f4", np.nan),
        "entropy": ("f4", np.nan),
        "policy_version": ("i4", 0),
        "mask": ("?", True),
    }
    if TYPE_CHECKING:
        token: IntArray
        logprob: FloatArray
        entropy: FloatArray
        policy_version: IntArray
        mask: NDArray[np.bool_]
