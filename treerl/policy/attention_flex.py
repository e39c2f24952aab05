"""FlexAttention over the ancestor test, with a block mask built from intervals instead of T^2 pairs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class FlexMask:
    """A torch BlockMask over [B, 1, T, T]."""

    block_mask: Any


def flex_mask(end: Tensor) -> FlexMask:
    """Block mask of `end` int64[B, T]."""
    raise NotImplementedError


def attend_flex(
    query: Tensor, key: Tensor, value: Tensor, mask: FlexMask, scaling: float | None
) -> Tensor:
    """[B, H, T, D] queries over [B, Hkv, T, D] keys and values; returns [B, H, T, D]."""
    raise NotImplementedError
