"""Keys and values of the rows that decode together, in buffers allocated ahead of need.

All rows end at one column: a row of n cached tokens lies in columns [column - n, column), so that a step
writes one column and a new row may join at any time. A row that ends leaves its place to the last row.
Tokens, seeds and finishes of the rows are the sampler's business.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_COLUMN_BLOCK = 64


@dataclass(slots=True)
class Window:
    """The part of the buffers in use: rows [0, rows), columns [low, column); what is allocated."""

    rows: int = 0
    low: int = 0
    column: int = 0
    row_capacity: int = 0
    column_capacity: int = 0


class RowLayer(CacheLayerMixin):
    """One layer: keys and values [row_capacity, heads, column_capacity, head size], zero where unused.

    Sliding windows are left to the mask: slots of a row are as far apart as its tokens.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates from the shape, type and device of the first states."""
        self.keys, self.values = self._zeros(key_states), self._zeros(value_states)
        self.is_initialized = True

    def _zeros(self, like: Tensor) -> Tensor:
        window = self.window
        # Zeros: the mask takes rubbish out only where it is finite.
        return like.new_zeros(
            window.row_capacity, like.shape[1], window.column_capacity, like.shape[3]
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes q new columns behind the window; returns all up to there, [rows, heads, k + q, size]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window = self.window
        stop = window.column + key_states.shape[2]
        self.keys[: window.rows, :, window.column : stop] = key_states
        self.values[: window.rows, :, window.column : stop] = value_states
        return (
            self.keys[: window.rows, :, window.low : stop],
            self.values[: window.rows, :, window.low : stop],
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

    def resize(self, window: Window) -> None:
        """Takes buffers of `window`'s capacity and shifts what is in use to end at its column."""
        if not self.is_initialized:
            return
        old, width = self.window, min(self.window.column - self.window.low, window.column)
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            fresh = buffer.new_zeros(
                window.row_capacity, buffer.shape[1], window.column_capacity, buffer.shape[3]
            )
            fresh[: old.rows, :, window.column - width : window.column] = buffer[
                : old.rows, :, old.column - width : old.column
            ]
            setattr(self, name, fresh)


class RowCache(Cache):
    """The cache handed to the model, of `n_layers` attention layers.

    mask: bool[row_capacity, column_capacity], True where a row has a token (or is about to write one).
    """

    layers: list[RowLayer]

    def __init__(self, n_layers: int, device: torch.device) -> None:
        self.window = Window()
        super().__init__(layers=[RowLayer(self.window) for _ in range(n_layers)])
        self.mask = torch.zeros(0, 0, dtype=torch.bool, device=device)

    def reserve(self, rows: int, columns: int) -> None:
        """Makes room for `rows` rows in all and for `columns` columns behind the present one."""
        now = self.window
        width = now.column - now.low
        if rows <= now.row_capacity and now.column + columns <= now.column_capacity:
            return
        wide = max(now.column_capacity, width + columns + width // 2)
        wide = -(-wide // _COLUMN_BLOCK) * _COLUMN_BLOCK
        self._resize(max(rows, now.row_capacity), wide, width)

    def align(self, column: int) -> None:
        """Puts the end of all rows at `column` or later, so that a row of that many tokens fits."""
        if self.window.rows == 0:
            self.window.low = self.window.column = column
        elif column > self.window.column:
            wide = max(self.window.column_capacity, column + _COLUMN_BLOCK)
            self._resize(self.window.row_capacity, wide, column)

    def _resize(self, rows: int, columns: int, column: int) -> None:
        old = self.window
        shift = column - old.column
        new = Window(old.rows, old.low + shift, column, rows, columns)
        for layer in self.layers:
            layer.resize(new)
        mask = self.mask.new_zeros(rows, columns)
        mask[: old.rows, new.low : column] = self.mask[: old.rows, old.low : old.column]
        self.mask = mask
        for name in ("low", "column", "row_capacity", "column_capacity"):
            setattr(old, name, getattr(new, name))

    def append(self, lengths: Tensor) -> None:
        """Adds rows of `lengths` cached tokens each (int64[m]); their keys and values are written after."""
        window = self.window
        rows = slice(window.rows, window.rows + len(lengths))
        columns = torch.arange(self.mask.shape[1], device=self.mask.device)
        self.mask[rows] = (columns >= window.column - lengths[:, None]) & (columns < window.column)
        window.rows = rows.stop
