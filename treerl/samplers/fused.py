"""One decoding step of a plain Llama with few kernels: for small models, where launching them is the cost.

The library's forward runs some 45 operations a layer; a step of one token a row needs 18. Query, key and
value weights are joined into one matrix, and so are gate and up, in copies that are made anew when the weights
have changed. Only what is exactly a fp32 `LlamaForCausalLM` without biases or adapters is taken; everything
else, and every prefix, runs through the model's own forward.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from treerl.plain_llama import is_plain_llama
from treerl.samplers.cache import RowCache

COPY_BYTES = 512 << 20
"""Joined weights may take this much memory; a larger model is bound by arithmetic, not by launches."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one layer. qkv: [(H + 2K) d, width], gate_up: [2 m, width]; the others are the model's own."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor
    before_attention: Tensor
    before_mlp: Tensor


class FusedLlama:
    """`step` equals the model's forward of one token a row up to rounding."""

    def __init__(self, model: Any) -> None:
        self._inner = model.model
        self._head: Tensor = model.lm_head.weight
        config = model.config
        self._heads: int = config.num_attention_heads
        self._groups: int = config.num_key_value_heads
        self._eps: float = config.rms_norm_eps
        self._layers: list[_Layer] = []
        self._seen = -1
        self._watched = list(model.parameters())

    def step(self, ids: Tensor, bias: Tensor, positions: Tensor, cache: RowCache) -> Tensor:
        """Logits float[n, V] behind tokens `ids` int64[n, 1] at `positions` int64[n, 1].

        bias: float[n, 1, 1, t], 0 on the keys a row sees and -inf elsewhere, its own new one included.
        """
        self._refresh()
        inner = self._inner
        x = F.embedding(ids[:, 0], inner.embed_tokens.weight)
        width = (x.shape[1],)
        cos, sin = inner.rotary_emb(x[:, None], positions)
        half = sin.shape[-1] // 2
        # rotate_half(x) * sin is a roll by half a head times sin with its first half negated.
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        for index, layer in enumerate(self._layers):
            h = F.rms_norm(x, width, layer.before_attention, self._eps)
            x = x + F.linear(self._attend(index, h, layer, cos, sin, bias, cache), layer.out)
            h = F.rms_norm(x, width, layer.before_mlp, self._eps)
            gate, up = F.linear(h, layer.gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate).mul_(up), layer.down)
        return F.linear(F.rms_norm(x, width, inner.norm.weight, self._eps), self._head)

    def _attend(
        self,
        index: int,
        h: Tensor,
        layer: _Layer,
        cos: Tensor,
        sin: Tensor,
        bias: Tensor,
        cache: RowCache,
    ) -> Tensor:
        n, groups, heads = h.shape[0], self._groups, self._heads
        size = cos.shape[-1]
        joined = F.linear(h, layer.qkv).view(n, heads + 2 * groups, size)
        turned = joined[:, : heads + groups]
        turned = torch.addcmul(turned * cos, turned.roll(size // 2, -1), sin)
        keys, values = cache.rows_of_layers[index].update(
            turned[:, heads:, None], joined[:, heads + groups :, None]
        )
        query = turned[:, :heads].reshape(n * groups, heads // groups, size)
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        mask = bias[:, 0] if groups == 1 else bias[:, 0].repeat_interleave(groups, 0)
        scores = torch.baddbmm(mask, query, keys.transpose(1, 2), alpha=size**-0.5)
        return torch.bmm(scores.softmax(-1), values).view(n, heads * size)

    def _refresh(self) -> None:
        """Joins the weights again if any parameter was written to since."""
        written = sum(parameter._version for parameter in self._watched)
        if written == self._seen:
            return
        self._seen = written
        self._layers = [
            _Layer(
                qkv=_join(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                out=layer.self_attn.o_proj.weight,
                gate_up=_join(layer.mlp.gate_proj, layer.mlp.up_proj),
                down=layer.mlp.down_proj.weight,
                before_attention=layer.input_layernorm.weight,
                before_mlp=layer.post_attention_layernorm.weight,
            )
            for layer in self._inner.layers
        ]

    def forget(self) -> None:
        """The weights have changed, in whatever way: joins them again at the next step."""
        self._seen = -1


def _join(*parts: nn.Linear) -> Tensor:
    return torch.cat([part.weight.detach() for part in parts])


def can_fuse(model: PreTrainedModel) -> bool:
    """Whether `FusedLlama` computes what this model computes."""
    if not is_plain_llama(model):
        return False
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    joined = sum(m.weight.nbytes for m in linears) - model.lm_head.weight.nbytes
    return model.dtype == torch.float32 and joined <= COPY_BYTES
