"""Packed trees through a plain Llama in few kernels, on CPU: for small models they are half of the cost.

Query, key and value weights are joined into one matrix, so are gate and up, and the weight of a norm is a
factor of the matrix behind it; all heads of a key-value group are rows of one matrix product. The joined
matrices are functions of the model's own parameters, so gradients arrive there. Same numbers as the model's
own forward up to rounding; what cannot be run so is refused by `can_fuse`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from treerl.plain_llama import is_plain_llama
from treerl.policy.attention_blocks import Blocks, attend_blocks

DEEPEST = 256
"""Tokens of a path, at most: beyond, attention by runs does less work."""

WEIGHT_BYTES = 64 << 20
"""Weights of the layers, at most: each forward copies them, and a larger model is bound by arithmetic."""


def can_fuse(model: Any) -> bool:
    """Whether `last_hidden_states` computes what this model computes, and faster."""
    if not is_plain_llama(model) or model.is_gradient_checkpointing:
        return False
    weight = model.model.embed_tokens.weight
    right = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
    size = sum(parameter.nbytes for parameter in model.model.layers.parameters())
    return right and size <= WEIGHT_BYTES and float(model.config.attention_dropout) == 0.0


def last_hidden_states(model: Any, token: Tensor, position: Tensor, blocks: Blocks) -> Tensor:
    """The model's last hidden states, [n, d]. token, position int64[n]: the real tokens of `blocks`."""
    inner, config = model.model, model.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    x = F.embedding(token, inner.embed_tokens.weight)
    turn = _turns(inner, x, position)
    # Values do not turn; made together with keys, they are gathered with them.
    turn_both = torch.cat(
        [turn.expand(-1, groups, -1), torch.ones_like(turn).expand(-1, groups, -1)], 1
    )
    for layer in inner.layers:
        attention, mlp = layer.self_attn, layer.mlp
        norm = layer.input_layernorm.weight
        unit = _unit(x, config.rms_norm_eps)
        query = F.linear(unit, _paired(attention.q_proj.weight, heads) * norm)
        both = torch.cat([_paired(attention.k_proj.weight, groups), attention.v_proj.weight])
        both = _turned(F.linear(unit, both * norm), turn_both)
        mixed = attend_blocks(_turned(query, turn), both, blocks)
        x = torch.addmm(x, mixed, attention.o_proj.weight.t())
        joined = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        unit = _unit(x, config.rms_norm_eps)
        gated = _gate(F.linear(unit, joined * layer.post_attention_layernorm.weight))
        x = torch.addmm(x, gated, mlp.down_proj.weight.t())
    return torch.mul(_unit(x, config.rms_norm_eps), inner.norm.weight)


def _turns(inner: Any, x: Tensor, position: Tensor) -> Tensor:
    """Rotary angles as complex numbers of unit length (times the model's scaling), [n, 1, D / 2]."""
    cos, sin = inner.rotary_emb(x, position[None])
    half = cos.shape[-1] // 2
    return torch.complex(cos[0, :, :half], sin[0, :, :half])[:, None]


def _turned(part: Tensor, turn: Tensor) -> Tensor:
    """Paired vectors [n, h D] turned by [n, 1 or h, D / 2]."""
    pairs = torch.view_as_complex(part.view(len(part), -1, turn.shape[-1], 2))
    return torch.view_as_real(pairs * turn).view_as(part)


def _unit(x: Tensor, eps: float) -> Tensor:
    unit: Tensor = _Unit.apply(x, eps)  # type: ignore[no-untyped-call]
    return unit


def _gate(joined: Tensor) -> Tensor:
    gated: Tensor = _Gate.apply(joined)  # type: ignore[no-untyped-call]
    return gated


def _paired(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head reordered 0, D/2, 1, D/2 + 1, ...: numbers that turn together lie side by side.

    Done to queries and keys alike, which leaves their products as they were.
    """
    wide = weight.shape[1]
    return weight.view(heads, 2, -1, wide).transpose(1, 2).reshape(-1, wide)


class _Unit(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps), row by row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        """x [n, d]."""
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        unit = x * inverse
        ctx.save_for_backward(unit, inverse)
        return unit  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """dx = (g - y mean(g y)) / rms."""
        unit, inverse = ctx.saved_tensors
        mean = (grad * unit).mean(-1, keepdim=True)
        return torch.addcmul(grad, unit, mean, value=-1).mul_(inverse), None


class _Gate(torch.autograd.Function):
    """silu(gate) * up of a joined [n, 2 m]."""

    @staticmethod
    def forward(ctx: Any, joined: Tensor) -> Tensor:
        """[n, 2 m] to [n, m]."""
        gate, up = joined.chunk(2, -1)
        soft = F.silu(gate)
        ctx.save_for_backward(joined, soft)
        return soft * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Both halves are written where they belong."""
        joined, soft = ctx.saved_tensors
        gate, up = joined.chunk(2, -1)
        out = torch.empty_like(joined)
        to_gate, to_up = out.chunk(2, -1)
        torch.mul(grad, soft, out=to_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=to_gate)
        return out
