"""FlexAttention over the ancestor test, its block mask built from intervals instead of T^2 pairs.

Compiled on CUDA; on CPU only the forward exists (torch has no backward there).
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128


def flex_mask(end: Tensor, block: int = BLOCK) -> BlockMask:
    """Block mask of the ancestor test over `end` int64[B, T].

    A query block starting at q0 and a key block before it: live iff max(end) > q0, full iff min(end) >= q1
    (both over the key block). The diagonal is always partial. A block that the row's end cuts is never full.
    """
    rows, slots = end.shape
    n_blocks = -(-slots // block)
    padded = n_blocks * block - slots
    highest = (
        torch.nn.functional.pad(end, (0, padded), value=0).view(rows, n_blocks, block).amax(-1)
    )
    lowest = torch.nn.functional.pad(end, (0, padded), value=0).view(rows, n_blocks, block).amin(-1)
    first = torch.arange(n_blocks, device=end.device) * block
    stop = torch.clamp(first + block, max=slots)
    before = first[None, :] < first[:, None]
    live = before & (highest[:, None, :] > first[None, :, None])
    full = live & (lowest[:, None, :] >= stop[None, :, None])
    if padded:
        full[:, -1, :] = False
    diagonal = torch.eye(n_blocks, dtype=torch.bool, device=end.device)
    partial = (live & ~full) | diagonal

    def ancestor(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < end[b, k])

    partial_count, partial_index = _ordered(partial)
    full_count, full_index = _ordered(full)
    return BlockMask.from_kv_blocks(
        partial_count,
        partial_index,
        full_count,
        full_index,
        BLOCK_SIZE=block,
        mask_mod=ancestor,
        seq_lengths=(slots, slots),
    )


def attend_flex(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float | None
) -> Tensor:
    """[B, H, T, D] queries over [B, Hkv, T, D] keys and values; returns [B, H, T, D]."""
    attend = _compiled() if query.is_cuda else cast(Callable[..., Any], flex_attention)
    grouped = query.shape[1] != key.shape[1]
    out = attend(query, key, value, block_mask=mask, scale=scaling, enable_gqa=grouped)
    assert isinstance(out, Tensor)
    return out


@functools.cache
def _compiled() -> Callable[..., Any]:
    # One graph a bucket length, with and without gradient: more than dynamo's default of 8, past which it
    # would run uncompiled and hold all T^2 scores.
    from torch._dynamo import config  # slow to import, needed on CUDA only

    config.recompile_limit = max(config.recompile_limit, 64)
    return torch.compile(flex_attention, dynamic=False)


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Counts int32[B, 1, n] and indices int32[B, 1, n, n] of the live key blocks, live ones first."""
    count = blocks.sum(-1, dtype=torch.int32)
    index = torch.argsort(blocks.to(torch.int8), dim=-1, descending=True, stable=True)
    return count[:, None].contiguous(), index.to(torch.int32)[:, None].contiguous()
