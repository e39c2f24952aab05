"""Growable struct of arrays: named numpy columns of one length that double their capacity when full."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Schema = dict[str, tuple[str, Any]]
"""Column name -> (numpy dtype, value of a row that does not set it)."""


class Columns:
    """Base of the column sets of a tree. `columns.name` is a view of the rows in use (writable)."""

    SCHEMA: ClassVar[Schema] = {}

    def __init__(self) -> None:
        self._size = 0
        self._data: dict[str, NDArray[Any]] = {
            name: np.empty(16, dtype) for name, (dtype, _) in self.SCHEMA.items()
        }

    def __len__(self) -> int:
        return self._size

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("_data")
        if data is None or name not in data:
            raise AttributeError(name)
        return data[name][: self._size]

    def append(self, **values: Any) -> int:
        """Adds one row, absent columns at their default; returns its number."""
        self._reserve(1)
        row = self._size
        for name, (_, default) in self.SCHEMA.items():
            self._data[name][row] = values.get(name, default)
        self._size = row + 1
        return row

    def extend(self, count: int, **values: Any) -> tuple[int, int]:
        """Adds `count` rows from arrays or scalars; returns [start, stop)."""
        self._reserve(count)
        start, stop = self._size, self._size + count
        for name, (_, default) in self.SCHEMA.items():
            self._data[name][start:stop] = values.get(name, default)
        self._size = stop
        return start, stop

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Copies of all columns, by name."""
        return {name: column[: self._size].copy() for name, column in self._data.items()}

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Replaces all rows; `arrays` must hold every column with one common length."""
        sizes = {len(arrays[name]) for name in self.SCHEMA}
        if len(sizes) != 1:
            raise ValueError(f"columns of unequal length: {sorted(sizes)}")
        self._size = sizes.pop()
        self._data = {
            name: np.array(arrays[name], dtype=dtype) if self._size else np.empty(16, dtype)
            for name, (dtype, _) in self.SCHEMA.items()
        }

    def _reserve(self, count: int) -> None:
        capacity = len(next(iter(self._data.values())))
        if self._size + count <= capacity:
            return
        capacity = max(2 * capacity, self._size + count)
        for name, column in self._data.items():
            grown = np.empty(capacity, column.dtype)
            grown[: self._size] = column[: self._size]
            self._data[name] = grown
