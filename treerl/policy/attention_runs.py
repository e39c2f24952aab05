"""Attention by runs: one SDPA per stretch of consecutive tokens over its ancestors' keys and itself.

A row is cut where a token's predecessor is not the slot before (a first child continues its parent's run).
Work is the number of true query-key pairs; no mask over the row is made. Windows, soft caps and sinks are
not supported here.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from treerl.policy.batch import PackedBatch


@dataclass(frozen=True, slots=True)
class Run:
    """Slots [start, stop) of one row; `atoms` index the row's atoms that its queries see, its own last.

    Atoms are the pieces between run starts and forks: every path is a whole number of them.
    """

    start: int
    stop: int
    atoms: tuple[int, ...]
    sizes: tuple[int, ...]


def find_runs(batch: PackedBatch) -> tuple[tuple[Run, ...], ...]:
    """Runs of each row, from `prev` alone. Each row's runs and atoms cover it from slot 0 to T."""
    raise NotImplementedError


def attend_runs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    runs: tuple[tuple[Run, ...], ...],
    scaling: float | None,
) -> Tensor:
    """[B, H, T, D] queries over [B, Hkv, T, D] keys and values; returns [B, H, T, D]."""
    raise NotImplementedError
