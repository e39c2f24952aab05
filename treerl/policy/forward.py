"""Log-probs and entropies of packed trees under the policy: one forward, backward through it if asked.

Used alike for lp_old, lp_ref and the training pass, so that the first ratio of an update is 1.
"""

import numpy as np
import torch
from torch import Tensor

from treerl.errors import ConfigError
from treerl.policy.attention import active, choose_variant, prepare
from treerl.policy.attention_blocks import find_blocks
from treerl.policy.batch import PackedBatch
from treerl.policy.fused import DEEPEST, last_hidden_states
from treerl.policy.head import Head, edge_logprobs
from treerl.policy.model import Policy, checkpointing


def token_logprobs(
    policy: Policy,
    batch: PackedBatch,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    grad: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """lp [B, T] of each owned token given its path, and the entropy [B, T] of the distribution it had.

    0 where `own` is False; float32 (float64 for a float64 model) on the policy's device. Both are those of
    softmax(logits / temperature). The entropy of a token is that of its predecessor's position, so first
    tokens of siblings have one; None unless `with_entropy`. grad: keep the graph for a backward.
    Rows that are plain chains (pack mode "flat") run with ordinary causal attention, which any
    architecture can do. Raises ConfigError if `temperature` is not positive.
    """
    if temperature <= 0.0:
        raise ConfigError(
            f"sampler.temperature = {temperature}: training needs a positive temperature"
        )
    with checkpointing(policy) if grad else torch.no_grad():
        edges = np.flatnonzero(batch.own)
        if len(edges) == 0:
            zero = torch.zeros(batch.shape, device=policy.device, requires_grad=grad)
            return zero, zero.clone() if with_entropy else None
        before, row = np.unique(batch.prev.reshape(-1)[edges], return_inverse=True)
        # Edges in order of their predecessor, so that a chunk of rows has a stretch of edges.
        by_row = np.argsort(row, kind="stable")
        edges, row = edges[by_row], row[by_row]
        edge = _tensor(edges, policy)
        rows = _tensor(row, policy)
        target = _tensor(batch.token.reshape(-1)[edges], policy)
        hidden, head = _hidden_states(policy, batch, before)
        logprob, entropy = edge_logprobs(
            head, hidden, rows, target, temperature=temperature, with_entropy=with_entropy
        )
        spread = None if entropy is None else _place(entropy[rows], edge, batch)
        return _place(logprob, edge, batch), spread


def is_chain(batch: PackedBatch) -> bool:
    """Every row is one plain sequence from slot 0, padded at the right: causal attention is exact."""
    slots = batch.shape[1]
    index = np.arange(batch.prev.size).reshape(batch.shape)
    chained = (batch.prev == index - 1) & (np.arange(slots) > 0)
    first = np.arange(slots) == 0
    return bool(np.all(chained | first | (batch.source < 0)))


def _hidden_states(policy: Policy, batch: PackedBatch, before: np.ndarray) -> tuple[Tensor, Head]:
    """Last hidden states of the flat slots `before`, [R, d], and the head for them.

    Where the model's head is not known, the "hidden states" are its logits under an identity head.
    """
    if _is_fused(policy, batch):
        return _fused_states(policy, batch, before), Head(policy.model.lm_head.weight)
    token = _tensor(batch.token, policy)
    network = policy.model
    if policy.head is not None:
        network = getattr(policy.model, policy.model.base_model_prefix)
    if is_chain(batch):
        output = network(input_ids=token, use_cache=False)
    else:
        variant = choose_variant(policy.attention, batch.shape[1], policy.device)
        tree = prepare(batch, variant, policy.device)
        with active(tree):
            output = network(
                input_ids=token, position_ids=tree.position, use_cache=False, tree_attention=tree
            )
    if policy.head is not None:
        return output.last_hidden_state.flatten(0, 1)[_tensor(before, policy)], policy.head
    logits = output.logits.flatten(0, 1)[_tensor(before, policy)]
    size = logits.shape[-1]
    return logits, Head(torch.eye(size, dtype=logits.dtype, device=logits.device))


def _is_fused(policy: Policy, batch: PackedBatch) -> bool:
    """Whether the few-kernel forward is to run `batch`. Raises ConfigError where it is asked for and cannot."""
    if policy.attention == "auto":
        return int(batch.position.max()) < DEEPEST and policy.fused
    if policy.attention == "blocks" and not policy.fused:
        raise ConfigError(
            f'policy.attention = "blocks" runs small plain fp32 or fp64 Llamas on CPU, without gradient '
            f'checkpointing; this is {type(policy.model).__name__}: set it to "auto"'
        )
    return policy.attention == "blocks"


def _fused_states(policy: Policy, batch: PackedBatch, before: np.ndarray) -> Tensor:
    """Last hidden states of the flat slots `before` by the few-kernel forward."""
    config = policy.model.config
    blocks = find_blocks(
        batch,
        heads=config.num_attention_heads,
        groups=config.num_key_value_heads,
        dtype=policy.dtype,
    )
    token, position = (
        _tensor(column.reshape(-1)[blocks.slots], policy)
        for column in (batch.token, batch.position)
    )
    hidden = last_hidden_states(policy.model, token, position, blocks)
    return hidden[_tensor(np.searchsorted(blocks.slots, before), policy)]


def _place(values: Tensor, edge: Tensor, batch: PackedBatch) -> Tensor:
    flat = torch.zeros(batch.prev.size, dtype=values.dtype, device=values.device)
    return flat.index_put((edge,), values).view(batch.shape)


def _tensor(array: np.ndarray, policy: Policy) -> Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(policy.device)
