"""Tree attention for any transformers model: one registered name, variants dense, runs and flex.

A model loaded with `attn_implementation = NAME` behaves as under SDPA until a tree forward is active; then
every layer attends by the ancestor test (query q sees key k iff k <= q < end[k]). How each variant computes
it is in attention_runs and attention_flex; dense masks are built here, per layer type, windows included.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from treerl.errors import ConfigError
from treerl.policy.attention_flex import attend_flex, flex_mask
from treerl.policy.attention_runs import RowRuns, attend_runs, find_runs
from treerl.policy.batch import PackedBatch

NAME = "treerl"
DENSE_LIMIT = 192
"""`auto` takes dense masks for rows up to this many slots; measured crossover with runs."""

Variant = Literal["dense", "runs", "flex", "blocks"]
"""blocks: not through the model's own forward at all, see treerl.policy.fused."""


@dataclass(frozen=True, slots=True)
class TreeAttention:
    """What one tree forward needs in every layer: end, position int64[B, T] and what its variant prepared."""

    variant: Variant
    end: Tensor
    position: Tensor
    runs: tuple[RowRuns, ...] = ()
    flex: Any = None


_ACTIVE: ContextVar[TreeAttention | None] = ContextVar("tree_attention", default=None)


def choose_variant(setting: str, slots: int, device: torch.device) -> Variant:
    """The variant for rows of `slots` tokens under policy.attention = `setting`."""
    if setting == "dense" or (setting == "auto" and slots <= DENSE_LIMIT):
        return "dense"
    if setting == "flex" or (setting == "auto" and device.type == "cuda"):
        return "flex"
    return "runs"


def prepare(batch: PackedBatch, variant: Variant, device: torch.device) -> TreeAttention:
    """Metadata of one forward over `batch`."""
    end = torch.from_numpy(batch.end.astype(np.int64)).to(device)
    position = torch.from_numpy(batch.position.astype(np.int64)).to(device)
    if variant == "runs":
        return TreeAttention(variant, end, position, runs=find_runs(batch))
    if variant == "flex":
        return TreeAttention(variant, end, position, flex=flex_mask(end))
    return TreeAttention(variant, end, position)


@contextlib.contextmanager
def active(tree: TreeAttention) -> Iterator[None]:
    """Makes `tree` the attention of model calls inside; they must also pass it as `tree_attention`."""
    token = _ACTIVE.set(tree)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def register() -> None:
    """Registers NAME with transformers: the attention function and the mask function (idempotent)."""
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _make_mask)


def _make_mask(**options: Any) -> Tensor | None:
    """sdpa_mask, but under a tree forward: the layer type's mask for dense, none for runs and flex."""
    tree = _ACTIVE.get()
    if tree is None:
        return sdpa_mask(**options)
    if tree.variant != "dense":
        return None
    chunk = getattr(options.get("config"), "attention_chunk_size", None)
    local = options.get("local_size")
    return dense_mask(
        tree,
        window=local if local != chunk else None,
        chunk=local if local == chunk else None,
        dtype=options.get("dtype", torch.float32),
    )


def dense_mask(
    tree: TreeAttention, *, window: int | None, chunk: int | None, dtype: torch.dtype
) -> Tensor:
    """Additive mask dtype[B, 1, T, T], 0 or -inf: ancestor test, AND depth difference < window, same chunk.

    Distances are in depth, not in slots: a window ends at the same ancestor as in the leaf's own row.
    """
    slots = tree.end.shape[1]
    index = torch.arange(slots, device=tree.end.device)
    seen = (index[None, :] <= index[:, None]) & (index[:, None] < tree.end[:, None, :])
    depth = tree.position
    if window is not None:
        seen &= depth[:, :, None] - depth[:, None, :] < window
    if chunk is not None:
        seen &= depth[:, :, None] // chunk == depth[:, None, :] // chunk
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, float("-inf"))[:, None]


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    tree: TreeAttention | None = options.pop("tree_attention", None)
    if tree is None:
        active_tree = _ACTIVE.get()
        if active_tree is not None and active_tree.variant != "dense":
            raise ConfigError(
                f"{type(module).__name__} does not hand keywords to its attention: "
                'set policy.attention = "dense" or update.pack = "flat"'
            )
    softcap, sinks = options.get("softcap"), options.get("s_aux")
    if tree is None or tree.variant == "dense":
        if tree is not None and (attention_mask is None or dropout > 0.0):
            raise ConfigError(f"{type(module).__name__} drops the tree's mask or has dropout")
        if softcap is not None or sinks is not None:
            return _attend_capped(
                module, query, key, value, attention_mask, scaling, softcap, sinks
            ), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **options
        )
    if options.get("sliding_window") is not None or softcap or sinks is not None or dropout > 0.0:
        raise ConfigError(
            f"{type(module).__name__} has a window, a soft cap, sinks or dropout, which attention "
            f'"{tree.variant}" cannot do: set policy.attention = "dense"'
        )
    if tree.variant == "runs":
        out = attend_runs(query, key, value, tree.runs, scaling)
    else:
        out = attend_flex(query, key, value, tree.flex, scaling)
    return out.transpose(1, 2).contiguous(), None


def _attend_capped(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Plain attention with soft cap or sinks, which SDPA would drop in silence."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        late = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(
            1 + scores.shape[-1] - scores.shape[-2]
        )
        scores = scores.masked_fill(late, float("-inf"))
    elif mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    else:
        scores = scores + mask
    if sinks is not None:
        column = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)
        weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous()


register()
