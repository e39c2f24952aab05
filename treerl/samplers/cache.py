"""Keys and values of the rows that decode together, in buffers allocated ahead of need.

All rows end at one column: a row of n cached tokens lies in columns [column - n, column), so that a step
writes one column and a new row may join at any time. The last rows take the places of rows that ended.
Tokens, seeds and finishes of the rows are the sampler's business.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from treerl.samplers.reuse import Kept, KeysValues

_COLUMN_BLOCK = 64


@dataclass(slots=True)
class Window:
    """The part of the buffers in use: rows [0, rows), columns [low, column); what is allocated."""

    rows: int = 0
    low: int = 0
    column: int = 0
    row_capacity: int = 0
    column_capacity: int = 0


class RowLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer: keys and values [row_capacity, heads, column_capacity, head size].

    Zero where never written: the mask takes rubbish out only where it is finite. Sliding windows are left
    to the mask too: slots of a row are as far apart as its tokens.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self, window: Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates from the shape, type and device of the first states."""
        rows, columns = self.window.row_capacity, self.window.column_capacity
        self.keys = key_states.new_zeros(rows, key_states.shape[1], columns, key_states.shape[3])
        self.values = value_states.new_zeros(
            rows, value_states.shape[1], columns, value_states.shape[3]
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes q columns behind the window; returns all from its start, [rows, heads, k + q, size]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        window = self.window
        stop = window.column + key_states.shape[2]
        self.keys[: window.rows, :, window.column : stop] = key_states
        self.values[: window.rows, :, window.column : stop] = value_states
        seen = slice(window.low, stop)
        return self.keys[: window.rows, :, seen], self.values[: window.rows, :, seen]

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """`update` of one column, [rows, heads, size]; returns [rows * heads, k + 1, size]."""
        if not self.is_initialized:
            self.lazy_initialization(keys[:, :, None], values[:, :, None])
        assert self.keys is not None
        assert self.values is not None
        window = self.window
        self.keys[: window.rows, :, window.column] = keys
        self.values[: window.rows, :, window.column] = values
        seen = slice(window.low, window.column + 1)
        return (
            self.keys[: window.rows, :, seen].flatten(0, 1),
            self.values[: window.rows, :, seen].flatten(0, 1),
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that `update` will return."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.window.column - self.window.low

    def get_max_length(self) -> int:
        """No limit that a caller need know."""
        return -1


class RowCache(Cache):
    """What is handed to the model as `past_key_values`.

    start: int64[row_capacity], first column of each row.
    """

    def __init__(self, n_layers: int) -> None:
        self.window = Window()
        self.rows_of_layers = [RowLayer(self.window) for _ in range(n_layers)]
        super().__init__(layers=list(self.rows_of_layers))
        self.start = np.zeros(0, dtype=np.int64)

    @property
    def rows(self) -> int:
        """Rows in use."""
        return self.window.rows

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Cached tokens of each row in use, int64[rows]; also the position of the next token."""
        return self.window.column - self.start[: self.window.rows]

    def advance(self) -> None:
        """Counts the column that the model just wrote."""
        self.window.column += 1

    def append(self, lengths: NDArray[np.int64], columns: int) -> slice:
        """Adds rows of `lengths` tokens, room for `columns` steps; returns them. See `fill`."""
        window = self.window
        longest = int(lengths.max())
        if window.rows == 0:
            window.low, window.column = 0, longest
        rows = slice(window.rows, window.rows + len(lengths))
        self.reserve(rows.stop, columns, longest)
        self.start[rows] = window.column - lengths
        window.rows = rows.stop
        window.low = int(self.start[: window.rows].min())
        return rows

    def reserve(self, rows: int, columns: int, longest: int = 0) -> None:
        """Makes room for `rows` rows, for `columns` steps, and for a row of `longest` tokens."""
        now = self.window
        width = max(now.column - now.low, longest)
        fits = now.column + columns <= now.column_capacity and longest <= now.column
        if fits and rows <= now.row_capacity:
            return
        # More than asked for: columns are used up as rows come and go, and then all must be shifted.
        high = now.row_capacity if rows <= now.row_capacity else max(rows, 2 * now.row_capacity)
        wide = max(now.column_capacity, width + columns + width // 2)
        wide = -(-wide // _COLUMN_BLOCK) * _COLUMN_BLOCK
        self._shift(high, wide, width)

    def _shift(self, row_capacity: int, column_capacity: int, column: int) -> None:
        """What is in use comes to end at `column`, in larger buffers where more is asked for."""
        window = self.window
        shift = column - window.column
        source = slice(window.low, window.column)
        target = slice(window.low + shift, column)
        same = (row_capacity, column_capacity) == (window.row_capacity, window.column_capacity)
        for layer in self.rows_of_layers:
            for name in ("keys", "values"):
                old = getattr(layer, name)
                if old is not None:
                    used = old[: window.rows, :, source]
                    if same:
                        used = used.clone()  # the two parts may overlap
                    else:
                        shape = row_capacity, old.shape[1], column_capacity, old.shape[3]
                        setattr(layer, name, old.new_zeros(shape))
                    getattr(layer, name)[: window.rows, :, target] = used
        start = np.zeros(row_capacity, dtype=np.int64)
        start[: window.rows] = self.start[: window.rows] + shift
        self.start = start
        window.low, window.column = target.start, column
        window.row_capacity, window.column_capacity = row_capacity, column_capacity

    def fill(self, rows: slice, source: "RowCache", indices: Tensor) -> None:
        """Copies rows `indices` (int64[m]) of `source`, whose rows end at its column, into `rows`."""
        width = source.window.column - source.window.low
        if width == 0:
            return
        mine = slice(self.window.column - width, self.window.column)
        theirs = slice(source.window.low, source.window.column)
        for layer, other in zip(self.rows_of_layers, source.rows_of_layers, strict=True):
            assert other.keys is not None
            assert other.values is not None
            if not layer.is_initialized:
                layer.lazy_initialization(other.keys, other.values)
            assert layer.keys is not None
            assert layer.values is not None
            layer.keys[rows, :, mine] = other.keys[:, :, theirs].index_select(0, indices)
            layer.values[rows, :, mine] = other.values[:, :, theirs].index_select(0, indices)

    def put(self, rows: slice, kept: Kept, length: int) -> None:
        """Copies the first `length` tokens of a kept row into each of `rows`."""
        mine = slice(self.window.column - length, self.window.column)
        for layer, (keys, values) in zip(self.rows_of_layers, kept.states, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys, values)
            assert layer.keys is not None
            assert layer.values is not None
            theirs = slice(kept.first, kept.first + length)
            layer.keys[rows, :, mine] = keys[kept.row, :, theirs]
            layer.values[rows, :, mine] = values[kept.row, :, theirs]

    def take(self, rows: NDArray[np.int64]) -> tuple[KeysValues, list[int]]:
        """Copies of the keys and values of `rows`, and the column in them where each row begins."""
        low = int(self.start[rows].min())
        used = slice(low, self.window.column)
        states: KeysValues = []
        for layer in self.rows_of_layers:
            assert layer.keys is not None
            assert layer.values is not None
            index = torch.from_numpy(rows).to(layer.keys.device)
            states.append(
                (
                    layer.keys[:, :, used].index_select(0, index),
                    layer.values[:, :, used].index_select(0, index),
                )
            )
        return states, (self.start[rows] - low).tolist()

    def keep(self, rows: int, holes: NDArray[np.int64], movers: NDArray[np.int64]) -> None:
        """Leaves the first `rows` rows, after copying rows `movers` onto rows `holes`."""
        window = self.window
        if len(holes):
            for layer in self.rows_of_layers:
                for buffer in (layer.keys, layer.values):
                    assert buffer is not None
                    target = torch.from_numpy(holes).to(buffer.device)
                    source = torch.from_numpy(movers).to(buffer.device)
                    used = buffer[:, :, window.low : window.column]
                    used.index_copy_(0, target, used.index_select(0, source))
            self.start[holes] = self.start[movers]
        window.rows = rows
        if rows:
            window.low = int(self.start[:rows].min())

    def clear(self) -> None:
        """Leaves no row; the buffers stay, with what they hold."""
        self.window.rows = 0


def moves(ended: NDArray[np.bool_]) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """How the rows that go on close ranks: (rows left, holes, rows that fill them)."""
    left = int((~ended).sum())
    holes = np.flatnonzero(ended[:left])
    movers = left + np.flatnonzero(~ended[left:])
    return left, holes, movers
