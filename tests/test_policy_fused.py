"""The few-kernel forward: when it is taken, when it is refused, and where its blocks cut."""

import numpy as np
import pytest
import torch

from tests.support_policy import random_tree, tiny_llama, with_attention
from treerl.errors import ConfigError
from treerl.policy import forward, fused
from treerl.policy.attention_blocks import CHUNK, find_blocks
from treerl.policy.forward import token_logprobs
from treerl.policy.fused import can_fuse
from treerl.policy.model import enable_checkpointing
from treerl.policy.pack import pack_trees


def packed():
    trees = [random_tree(seed, spans=9, longest=40) for seed in (1, 2)]
    return pack_trees(trees, max_tokens=4096)


@pytest.mark.parametrize(
    "options", [{"attention_bias": True}, {"mlp_bias": True}, {"hidden_act": "gelu"}]
)
def test_other_architectures_are_not_fused(options):
    assert can_fuse(tiny_llama().model)
    policy = tiny_llama(**options)
    assert not can_fuse(policy.model)
    with pytest.raises(ConfigError, match=r"policy\.attention = \"blocks\""):
        token_logprobs(with_attention(policy, "blocks"), packed()[0])


def test_checkpointed_models_and_half_precision_are_not_fused():
    checkpointed = tiny_llama().model
    enable_checkpointing(checkpointed)
    assert not can_fuse(checkpointed)
    assert not can_fuse(tiny_llama(torch.bfloat16).model)


def test_large_models_are_not_fused(monkeypatch):
    model = tiny_llama().model
    size = sum(parameter.nbytes for parameter in model.model.layers.parameters())
    monkeypatch.setattr(fused, "WEIGHT_BYTES", size)
    assert can_fuse(model)
    monkeypatch.setattr(fused, "WEIGHT_BYTES", size - 1)
    assert not can_fuse(model)


def test_auto_fuses_short_paths_alone(monkeypatch):
    policy = tiny_llama()
    ran = []
    whole = forward.last_hidden_states

    def spy(*arguments):
        ran.append(True)
        return whole(*arguments)

    monkeypatch.setattr(forward, "last_hidden_states", spy)
    (batch, *_) = packed()
    short, _ = token_logprobs(policy, batch)
    assert ran == [True]
    monkeypatch.setattr(forward, "DEEPEST", int(batch.position.max()))
    deep, _ = token_logprobs(policy, batch)
    assert ran == [True]
    torch.testing.assert_close(short, deep, atol=2e-5, rtol=0)


def test_blocks_hold_each_real_token_once_over_its_own_path():
    (batch, *_) = packed()
    blocks = find_blocks(batch, heads=1, groups=1, dtype=torch.float32)
    prev = batch.prev.reshape(-1)
    queries = torch.cat([block.queries.flatten() for block in blocks.blocks])
    assert queries[blocks.back].tolist() == list(range(len(blocks.slots)))
    seen = 0
    for block in blocks.blocks:
        assert block.queries.shape[1] <= CHUNK
        for chunk, row in np.ndindex(*block.queries.shape):
            keys = block.keys[chunk][block.mask[chunk, row] == 0].tolist()
            path, slot = [], int(blocks.slots[block.queries[chunk, row]])
            while slot >= 0:
                path.append(int(np.searchsorted(blocks.slots, slot)))
                slot = int(prev[slot])
            is_padding = len(keys) == 1 and row > 0 and block.queries[chunk, row] == 0
            if not is_padding:
                assert keys == path[::-1]
                seen += 1
    assert seen == len(blocks.slots)
