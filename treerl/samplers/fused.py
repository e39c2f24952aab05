"""One decoding step of a plain Llama with few kernels: for small models, where launching them is the cost.

The library's forward runs some 45 operations a layer; a step of one token a row needs 15. Query, key and
value weights are joined into one matrix, and so are gate and up, in copies that are made anew when the weights
have changed; numbers of a head that turn together lie side by side in them, so that a position is one complex
factor (cached keys have that order too, see `reorder`). Only what is exactly a fp32 `LlamaForCausalLM` without
biases or adapters is taken; everything else, and every prefix, runs through the model's own forward.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from treerl.plain_llama import is_plain_llama
from treerl.samplers.cache import RowCache, RowLayer

COPY_BYTES = 512 << 20
"""Joined weights may take this much memory; a larger model is bound by arithmetic, not by launches."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one layer, transposed. qkv: [width, (H + 2K) d], gate_up: [width, 2 m]."""

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
        self._turns = torch.zeros(0, 1, 1, dtype=torch.complex64)

    def step(self, ids: Tensor, bias: Tensor, positions: Tensor, cache: RowCache) -> Tensor:
        """Logits float[n, V] behind tokens `ids` int64[n] at `positions` int64[n].

        bias: float[n, 1, t], 0 on the keys a row sees and -inf elsewhere, its own new one included. The cache
        holds keys in the order that `reorder` makes.
        """
        self._refresh()
        inner, groups = self._inner, self._groups
        x = F.embedding(ids, inner.embed_tokens.weight)
        width = (x.shape[1],)
        turn = self._turn(positions, cache)
        mask = bias if groups == 1 else bias.repeat_interleave(groups, 0)
        for layer, kept in zip(self._layers, cache.rows_of_layers, strict=True):
            h = F.rms_norm(x, width, layer.before_attention, self._eps)
            # In place: x was made here.
            x.addmm_(self._attend(h.mm(layer.qkv), turn, mask, kept), layer.out)
            h = F.rms_norm(x, width, layer.before_mlp, self._eps)
            gate, up = h.mm(layer.gate_up).chunk(2, -1)
            x.addmm_(F.silu(gate).mul_(up), layer.down)
        return F.linear(F.rms_norm(x, width, inner.norm.weight, self._eps), self._head)

    def _attend(self, joined: Tensor, turn: Tensor, mask: Tensor, kept: RowLayer) -> Tensor:
        """Values [n, H d] mixed for the queries in `joined` [n, (H + 2K) d]; its keys and values are kept."""
        n, groups, heads = joined.shape[0], self._groups, self._heads
        vectors = joined.view(n, heads + 2 * groups, -1)
        size = vectors.shape[-1]
        torch.view_as_complex(vectors.view(n, heads + 2 * groups, -1, 2))[:, : heads + groups].mul_(
            turn
        )
        keys, values = kept.write(vectors[:, heads : heads + groups], vectors[:, heads + groups :])
        query = vectors[:, :heads]
        if groups > 1:
            query = query.reshape(n * groups, -1, size)
        scores = torch.baddbmm(mask, query, keys.transpose(1, 2), alpha=size**-0.5)
        return torch.bmm(scores.softmax(-1), values).view(n, -1)

    def _turn(self, positions: Tensor, cache: RowCache) -> Tensor:
        """Rotary angles as complex numbers, [n, 1, d / 2], from a table that grows with need."""
        longest = cache.window.column - cache.window.low + 1
        if longest > len(self._turns):
            place = torch.arange(2 * longest)[None]
            cos, sin = self._inner.rotary_emb(self._head, place)
            half = cos.shape[-1] // 2
            self._turns = torch.complex(cos[0, :, :half], sin[0, :, :half])[:, None]
        return self._turns.index_select(0, positions)

    def reorder(self, cache: RowCache) -> None:
        """Brings keys that the model's own forward cached into the order of the joined weights."""
        for layer in cache.rows_of_layers:
            assert layer.keys is not None
            halves = layer.keys.view(*layer.keys.shape[:-1], 2, -1)
            layer.keys = halves.transpose(-1, -2).flatten(-2)

    def _refresh(self) -> None:
        """Joins the weights again if any parameter was written to since."""
        written = sum(parameter._version for parameter in self._watched)
        if written == self._seen:
            return
        self._seen = written
        self._layers = [
            _Layer(
                qkv=_transposed(
                    _paired(layer.self_attn.q_proj, self._heads),
                    _paired(layer.self_attn.k_proj, self._groups),
                    layer.self_attn.v_proj.weight,
                ),
                out=_transposed(layer.self_attn.o_proj.weight),
                gate_up=_transposed(layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight),
                down=_transposed(layer.mlp.down_proj.weight),
                before_attention=layer.input_layernorm.weight,
                before_mlp=layer.post_attention_layernorm.weight,
            )
            for layer in self._inner.layers
        ]

    def forget(self) -> None:
        """The weights have changed, in whatever way: joins them again at the next step."""
        self._seen = -1


def _transposed(*parts: Tensor) -> Tensor:
    return torch.cat([part.detach() for part in parts]).t()


def _paired(part: nn.Linear, heads: int) -> Tensor:
    """Rows of each head in the order 0, d/2, 1, d/2 + 1, ..."""
    rows, width = part.weight.shape
    halves = part.weight.view(heads, 2, rows // heads // 2, width)
    return halves.transpose(1, 2).reshape(rows, width)


def can_fuse(model: PreTrainedModel) -> bool:
    """Whether `FusedLlama` computes what this model computes."""
    if not is_plain_llama(model):
        return False
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    joined = sum(m.weight.nbytes for m in linears) - model.lm_head.weight.nbytes
    return model.dtype == torch.float32 and joined <= COPY_BYTES
