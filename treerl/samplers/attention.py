"""Attention of one new token a row over cached keys that query heads share.

transformers' own paths copy the keys and values of each group once a query head when there is a mask. Here
the heads of a group are rows of one matrix product. Installed under a name, for the time of a decoding step
only; whatever attention the model has stays in charge of everything else, layers with soft caps, sinks or
position biases included.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "treerl_decode"
_OTHER_FORMULA = ("softcap", "s_aux", "position_bias")
_OTHER_MASKS = ("eager", "flash", "flex", "paged", "kernels")
_REPLACED: ContextVar[str] = ContextVar("replaced_attention")


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """softmax(scaling q k + mask) v. query: [n, heads, 1, d]; key, value: [n, kv heads, t, d].

    attention_mask: None, bool (True: seen) or additive, [n or 1, 1, 1, t]. Returns [n, 1, heads, d].
    """
    if query.shape[2] != 1 or any(options.get(name) is not None for name in _OTHER_FORMULA):
        own = ALL_ATTENTION_FUNCTIONS[_REPLACED.get()]
        options |= {"dropout": dropout, "scaling": scaling}
        out, weights = own(module, query, key, value, attention_mask, **options)
        return out, weights
    n, heads, _, size = query.shape
    groups = key.shape[1]
    # One batch dimension, views of the cache: bmm copies nothing.
    query = query.reshape(n * groups, heads // groups, size)
    key, flat_value = key.flatten(0, 1), value.flatten(0, 1)
    scale = size**-0.5 if scaling is None else scaling
    if groups == 1 and attention_mask is not None:
        mask = additive(attention_mask, query.dtype)[:, 0]
        scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=scale)
    else:
        scores = torch.bmm(query, key.transpose(1, 2)).mul_(scale)
        if attention_mask is not None:
            by_group = scores.view(n, groups, heads // groups, -1)
            by_group += additive(attention_mask, query.dtype)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return torch.bmm(weights, flat_value).view(n, 1, heads, value.shape[-1]), None


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as 0 and -inf; others as they are."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def can_decode(model: PreTrainedModel) -> bool:
    """Whether the model looks its attention up in the registry, and has one that takes sdpa's masks."""
    name = model.config._attn_implementation or "eager"
    return bool(model._supports_attention_backend) and not name.startswith(_OTHER_MASKS)


@contextlib.contextmanager
def decoding(model: PreTrainedModel) -> Iterator[None]:
    """Makes `attend` the attention of `model` inside."""
    config = model.config
    before = config._attn_implementation
    token = _REPLACED.set(before)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _REPLACED.reset(token)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
