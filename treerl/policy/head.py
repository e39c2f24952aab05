"""Log-probs and entropies of the vocabulary without keeping its logits.

Only distinct predecessor rows are projected, in chunks; the backward recomputes their logits and uses the
closed forms (p = softmax(z / T)): dlp/dz_v = (1[v = y] - p_v) / T, dH/dz_v = -p_v (log p_v + H) / T.
Both lp and H are those of softmax(z / T), the distribution the sampler drew from: what the loss needs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits of a chunk: on CPU below the size (32 MB) from which malloc returns fresh pages each time."""


@dataclass(frozen=True, slots=True)
class Head:
    """How a model makes logits z of its last hidden state h: z = softcap(scale * (W h + b)).

    softcap(x) = c tanh(x / c), None: none.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


def edge_logprobs(
    head: Head,
    hidden: Tensor,
    row: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    with_entropy: bool = True,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """lp[E] of token `target[e]` after hidden state `row[e]`, and the entropy H[R] of each hidden state.

    hidden [R, d]; row int64[E], ascending; target int64[E]; chunk_rows: rows projected at once (None: by
    vocabulary). Results are float32, or float64 where hidden is.
    """
    elements = CHUNK_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS["cuda"])
    chunk = chunk_rows or max(16, elements // head.weight.shape[0])
    logprob, entropy = _EdgeLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, row, target, head, temperature, with_entropy, chunk
    )
    return logprob, entropy if with_entropy else None


class _EdgeLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        row: Tensor,
        target: Tensor,
        head: Head,
        temperature: float,
        with_entropy: bool,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprob = torch.empty(len(row), dtype=wide, device=hidden.device)
        entropy = torch.zeros(len(hidden), dtype=wide, device=hidden.device)
        normaliser = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        bounds = _bounds(row, len(hidden), chunk)
        for start, stop, first, last in bounds:
            logits, _ = _logits(hidden[start:stop], weight, bias, head, temperature, wide)
            peak = logits.amax(-1)
            logits -= peak[:, None]
            p = logits.exp()
            total = p.sum(-1)
            lse = total.log()
            normaliser[start:stop] = peak + lse
            at = row[first:last] - start
            logprob[first:last] = logits[at, target[first:last]] - lse[at]
            if with_entropy:
                # Of centred logits: lse - sum p z of raw ones cancels its digits away in fp32.
                entropy[start:stop] = lse - p.mul_(logits).sum(-1) / total
        ctx.save_for_backward(hidden, weight, bias, row, target, normaliser, entropy)
        ctx.settings = head, temperature, with_entropy, bounds
        return logprob, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprob: Tensor, grad_entropy: Tensor) -> tuple[Any, ...]:
        hidden, weight, bias, row, target, normaliser, entropy = ctx.saved_tensors
        head, temperature, with_entropy, bounds = ctx.settings
        wide = normaliser.dtype
        grad_hidden = torch.empty_like(hidden)
        need_weight, need_bias = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        grad_weight = torch.zeros_like(weight, dtype=wide) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if need_bias else None
        total = torch.zeros(len(hidden), dtype=wide, device=hidden.device)
        total.index_add_(0, row, grad_logprob)
        for start, stop, first, last in bounds:
            logits, slope = _logits(hidden[start:stop], weight, bias, head, temperature, wide)
            logits -= normaliser[start:stop, None]
            # d/dz = -p (g_lp + g_H (log p + H)), plus g_lp at the sampled token.
            factor = total[start:stop, None]
            if with_entropy:
                grad = logits + entropy[start:stop, None]
                grad *= grad_entropy[start:stop, None]
                grad += factor
            else:
                grad = factor.expand_as(logits).clone()
            grad *= logits.exp_().neg_()
            at = row[first:last] - start
            grad.index_put_((at, target[first:last]), grad_logprob[first:last], accumulate=True)
            grad *= head.scale / temperature
            if slope is not None:
                grad *= slope
            narrow = grad.to(hidden.dtype)
            grad_hidden[start:stop] = narrow @ weight
            if grad_weight is not None:
                _add_product(grad_weight, narrow, hidden[start:stop])
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *(None,) * 6,
        )


def _bounds(row: Tensor, n_rows: int, chunk: int) -> list[tuple[int, int, int, int]]:
    """Chunks of rows [start, stop) with their edges [first, last); `row` is ascending."""
    if n_rows <= chunk:
        return [(0, n_rows, 0, len(row))]
    starts = list(range(0, n_rows, chunk))
    edges = torch.searchsorted(row, torch.tensor([*starts, n_rows], device=row.device)).tolist()
    stops = [*starts[1:], n_rows]
    return list(zip(starts, stops, edges[:-1], edges[1:], strict=True))


def _logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    head: Head,
    temperature: float,
    wide: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """z / T in the wide dtype, and the slope of the soft cap (None: 1)."""
    logits = torch.nn.functional.linear(hidden, weight, bias).to(wide)
    slope = None
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is not None:
        bent = torch.tanh(logits / head.softcap)
        slope = 1.0 - bent * bent
        logits = bent * head.softcap
    if temperature != 1.0:
        logits /= temperature
    return logits, slope


def _add_product(total: Tensor, grad: Tensor, hidden: Tensor) -> None:
    """total += grad^T hidden."""
    if total.dtype == grad.dtype:
        total.addmm_(grad.t(), hidden)
    else:
        total += grad.t() @ hidden
