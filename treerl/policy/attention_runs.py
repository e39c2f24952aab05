"""Attention by runs: one SDPA per stretch of consecutive tokens over its ancestors' keys and itself.

A row is cut where a token's predecessor is not the slot before (a first child continues its parent's run).
Work is the number of true query-key pairs; no mask over the row is made. Windows, soft caps and sinks are
not supported here.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from treerl.policy.batch import PackedBatch


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive slots of one row whose queries see the same ancestors.

    length: queries. atoms: the row's atoms they see, root first, their own last. Atoms are the pieces of
    the row between run starts and forks, so that every path is a whole number of them.
    """

    length: int
    atoms: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RowRuns:
    """One row as runs and as atoms; both cover slots 0 to T. Padding is one run without queries to attend."""

    runs: tuple[Run, ...]
    atom_sizes: tuple[int, ...]
    padding: int
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict, compare=False)

    def mask(self, queries: int, keys: int, like: Tensor) -> Tensor:
        """Additive causal mask [queries, keys] whose last query sees all keys; made once, for all layers."""
        if (queries, keys) not in self.masks:
            mask = torch.full((queries, keys), float("-inf"), dtype=like.dtype, device=like.device)
            self.masks[queries, keys] = mask.triu_(keys - queries + 1)
        return self.masks[queries, keys]


CHUNK = 128
"""Longest run with ancestors: SDPA computes masked pairs too, so a long run would waste half of its square."""


def find_runs(batch: PackedBatch) -> tuple[RowRuns, ...]:
    """The runs of each row, from `prev` alone."""
    slots = batch.shape[1]
    return tuple(
        _row_runs(np.where(prev < 0, -1, prev - b * slots), int((source >= 0).sum()))
        for b, (prev, source) in enumerate(zip(batch.prev, batch.source, strict=True))
    )


def _row_runs(prev: NDArray[Any], filled: int) -> RowRuns:
    """Runs of one row: `prev` int[T] local to the row, `filled` slots before the padding."""
    index = np.arange(filled)
    starts: NDArray[Any] = np.flatnonzero(
        (prev[:filled] != index - 1) | (index == 0) | (prev[:filled] < 0)
    )
    starts = _chunked(starts, prev, filled)
    forks = prev[starts[prev[starts] >= 0]] + 1
    edges = np.unique(np.concatenate([starts, forks, [filled]]))
    atom_of = np.searchsorted(edges, np.arange(filled), side="right") - 1
    stops = [*starts[1:].tolist(), filled]
    runs = []
    seen: dict[int, tuple[int, ...]] = {}
    for start, stop in zip(starts.tolist(), stops, strict=True):
        above = seen[int(atom_of[prev[start]])] if prev[start] >= 0 else ()
        own = range(int(atom_of[start]), int(atom_of[stop - 1]) + 1)
        for atom in own:
            above = (*above, atom)
            seen[atom] = above
        runs.append(Run(stop - start, above))
    return RowRuns(tuple(runs), tuple(np.diff(edges).tolist()), len(prev) - filled)


def _chunked(starts: NDArray[Any], prev: NDArray[Any], filled: int) -> NDArray[Any]:
    """Adds a start every CHUNK slots inside long runs; a root's run stays whole (plain causal)."""
    stops = np.append(starts[1:], filled)
    extra = [
        np.arange(start + CHUNK, stop - CHUNK // 2, CHUNK)
        for start, stop in zip(starts, stops, strict=True)
        if prev[start] >= 0
    ]
    return np.sort(np.concatenate([starts, *extra])).astype(np.int64)


def attend_runs(
    query: Tensor, key: Tensor, value: Tensor, rows: tuple[RowRuns, ...], scaling: float | None
) -> Tensor:
    """[B, H, T, D] queries over [B, Hkv, T, D] keys and values; returns [B, H, T, D], 0 on padding."""
    if len(rows) == 1:
        return _attend_row(query, key, value, rows[0], scaling)
    columns = (torch.split(column, 1) for column in (query, key, value))
    parts = zip(*columns, rows, strict=True)
    return torch.cat([_attend_row(q, k, v, row, scaling) for q, k, v, row in parts])


def _attend_row(
    query: Tensor, key: Tensor, value: Tensor, row: RowRuns, scaling: float | None
) -> Tensor:
    # split has one backward node for all pieces; slicing would write a full-length gradient per slice.
    padding = [row.padding] if row.padding else []
    queries = torch.split(query, [run.length for run in row.runs] + padding, 2)
    keys = torch.split(key, [*row.atom_sizes, *padding], 2)
    values = torch.split(value, [*row.atom_sizes, *padding], 2)
    grouped = query.shape[1] != key.shape[1]
    parts = []
    for q, run in zip(queries, row.runs, strict=False):
        k = _join([keys[atom] for atom in run.atoms])
        v = _join([values[atom] for atom in run.atoms])
        causal = k.shape[2] == run.length
        mask = None if causal else row.mask(run.length, k.shape[2], q)
        parts.append(
            scaled_dot_product_attention(
                q, k, v, mask, is_causal=causal, scale=scaling, enable_gqa=grouped
            )
        )
    if padding:
        parts.append(values[-1].new_zeros(queries[-1].shape[:3] + value.shape[3:]))
    return _join(parts)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
