"""Attention of one new token a row over cached keys that query heads share.

transformers' own paths copy the keys and values of each group once a query head when there is a mask. Here
the heads of a group are rows of one matrix product. Installed under a name, for the time of a decoding step
only; whatever attention the model has stays in charge of everything else.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

NAME = "treerl_decode"
_OWN_FORMULA = {"position_bias", "cache"}


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """softmax(scaling q k + mask) v. query: [n, heads, 1, d]; key, value: [n, kv heads, t, d].

    attention_mask: None, bool (True: seen) or additive, broadcast to [n, 1, 1, t]. Soft cap (Gemma 2) and
    sinks (GPT-OSS) as in their eager forms. Returns [n, 1, heads, d].
    """
    n, heads, length, size = query.shape
    if length != 1 or _OWN_FORMULA & {k for k, v in options.items() if v is not None}:
        raise NotImplementedError("decode attention takes one query a row and no position bias")
    groups = key.shape[1]
    # One batch dimension, views of the cache: bmm copies nothing.
    query = query.reshape(n * groups, heads // groups, size)
    key, flat_value = key.flatten(0, 1), value.flatten(0, 1)
    scale = size**-0.5 if scaling is None else scaling
    if softcap is None and groups == 1 and attention_mask is not None:
        mask = additive(attention_mask, query.dtype).expand(n, 1, 1, -1)[:, 0]
        scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=scale)
    else:
        scores = torch.bmm(query, key.transpose(1, 2)).mul_(scale)
        if softcap is not None:
            scores = scores.div_(softcap).tanh_().mul_(softcap)
        if attention_mask is not None:
            scores.view(n, groups, heads // groups, -1).add_(
                additive(attention_mask, query.dtype)
            )
    if s_aux is None:
        weights = scores.float().softmax(-1)
    else:
        sinks = s_aux.view(groups, heads // groups, 1).repeat(n, 1, 1).to(scores.dtype)
        weights = torch.cat([scores, sinks], -1).float().softmax(-1)[..., :-1]
    out = torch.bmm(weights.to(value.dtype), flat_value)
    return out.view(n, 1, heads, value.shape[-1]), None


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as 0 and -inf; others as they are."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def can_decode(model: PreTrainedModel) -> bool:
    """Whether the model takes its attention from the registry, and now computes plain attention."""
    return bool(model._supports_attention_backend) and not (
        model.config._attn_implementation or "eager"
    ).startswith(("eager", "flash", "flex", "paged", "kernels"))


@contextlib.contextmanager
def decoding(model: PreTrainedModel) -> Iterator[None]:
    """Makes `attend` the attention of `model` inside."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
