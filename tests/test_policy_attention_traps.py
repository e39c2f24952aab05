"""The traps of packing: what leaks, what goes missing, and what a library default would break."""

import copy

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from tests.support_policy import (
    gradient,
    make_policy,
    one_row,
    packed_loss,
    ragged_tree,
    random_columns,
    random_tree,
    tiny_llama,
    with_attention,
)
from treerl.errors import ConfigError
from treerl.policy import attention as attention_module
from treerl.policy.attention import NAME
from treerl.policy.attention_flex import flex_mask
from treerl.policy.forward import token_logprobs
from treerl.policy.model import enable_checkpointing
from treerl.policy.pack import pack_trees
from treerl.policy.selfcheck import check_weights


def changed_by_flip(policy, batch, slot):
    """Slots whose log-prob changes when the token at `slot` does."""
    before, _ = token_logprobs(policy, batch)
    token = batch.token.copy()
    token.reshape(-1)[slot] = (token.reshape(-1)[slot] + 1) % 50 + 3
    flipped = copy.copy(batch)
    object.__setattr__(flipped, "token", token)
    after, _ = token_logprobs(policy, flipped)
    return set(np.flatnonzero((before - after).abs().reshape(-1).numpy() > 1e-7).tolist())


def descendants(batch, slot):
    """Owned slots whose path holds `slot`, itself included."""
    found = set()
    prev, own = batch.prev.reshape(-1), batch.own.reshape(-1)
    for t in range(prev.size):
        k = t
        while k > slot:
            k = prev[k]
        if k == slot and own[t]:
            found.add(t)
    return found


@pytest.mark.parametrize("variant", ["dense", "runs", "blocks"])
def test_flip_one_token_and_only_its_descendants_change(variant):
    """Traps 1, 2, 3 and 5: no sibling, other tree or padding is seen, and no ancestor is missed."""
    policy = with_attention(tiny_llama(), variant)
    (batch,) = pack_trees([ragged_tree(), random_tree(1)], max_tokens=400)
    assert batch.shape[0] == 2
    assert (batch.source < 0).any()
    outside = missing = 0
    for slot in range(batch.source.size):
        changed, wanted = changed_by_flip(policy, batch, slot), descendants(batch, slot)
        outside += len(changed - wanted)
        missing += len(wanted - changed)
    assert (outside, missing) == (0, 0)


def test_the_flip_test_sees_a_leak(monkeypatch):
    """Trap 1 on purpose: with a plain causal mask siblings see each other."""
    policy = with_attention(tiny_llama(), "dense")
    batch = one_row([ragged_tree()])

    def causal(tree, *, window, chunk, dtype):
        slots = tree.end.shape[1]
        return torch.full((slots, slots), float("-inf"), dtype=dtype).triu(1)[None, None]

    monkeypatch.setattr(attention_module, "dense_mask", causal)
    leaks = [len(changed_by_flip(policy, batch, s) - descendants(batch, s)) for s in range(7, 40)]
    assert sum(leaks) > 100


def test_flat_rows_are_not_taken_for_packed_ones():
    """Trap 6: rows run without cache, and with no position restart for the library to detect."""
    policy = with_attention(tiny_llama(), "dense")
    seen = []
    base = policy.model.model
    whole = base.forward

    def spy(**options):
        seen.append(options)
        return whole(**options)

    base.forward = spy
    (batch,) = pack_trees([ragged_tree()], max_tokens=500, mode="flat")
    token_logprobs(policy, batch)
    assert seen[0]["use_cache"] is False
    assert seen[0].get("position_ids") is None


def test_left_padded_batch_and_generate_are_those_of_sdpa():
    """Trap 7: without a mask function the library drops the padding mask in silence."""
    ours = tiny_llama().model
    theirs = LlamaForCausalLM(copy.deepcopy(ours.config))
    theirs.set_attn_implementation("sdpa")
    theirs.load_state_dict(ours.state_dict())
    theirs.eval()
    assert ours.config._attn_implementation == NAME
    token = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(token)
    mask[1, :4] = 0
    with torch.no_grad():
        a = ours(input_ids=token, attention_mask=mask).logits
        b = theirs(input_ids=token, attention_mask=mask).logits
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1, 4:], b[1, 4:])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "use_cache": True}
    a = ours.generate(token, attention_mask=mask, **options)
    b = theirs.generate(token, attention_mask=mask, **options)
    assert torch.equal(a, b)


def test_runs_refuse_what_they_would_ignore():
    """Trap 8: windows, soft caps and sinks."""
    policy = tiny_llama()
    batch = one_row([ragged_tree()])
    tree = attention_module.prepare(batch, "runs", policy.device)
    q = torch.randn(1, 4, batch.shape[1], 8)
    for option in ({"sliding_window": 8}, {"softcap": 5.0}, {"s_aux": torch.zeros(4)}):
        with pytest.raises(ConfigError, match=r'policy\.attention = "dense"'):
            attention_module._attend(
                policy.model, q, q, q, None, scaling=1.0, tree_attention=tree, **option
            )


def test_a_model_that_drops_the_metadata_is_refused():
    policy = tiny_llama()
    batch = one_row([ragged_tree()])
    tree = attention_module.prepare(batch, "runs", policy.device)
    token = torch.from_numpy(batch.token).long()
    with attention_module.active(tree), pytest.raises(ConfigError, match="hand keywords"):
        policy.model(input_ids=token, position_ids=tree.position, use_cache=False)


@pytest.mark.parametrize("variant", ["dense", "runs"])
def test_any_split_into_parts_gives_the_same_gradient(variant):
    """Traps 10 and 11: parts contribute plain sums, and a repeated path is trained in one part only."""
    policy = with_attention(tiny_llama(torch.float64), variant)
    trees = [ragged_tree(0), random_tree(7, spans=15)]
    weights, bonus = random_columns(trees, 1), random_columns(trees, 2)
    whole = gradient(policy, packed_loss(policy, [one_row(trees)], weights, bonus))
    for budget in (48, 60, 90):
        parts = pack_trees(trees, max_tokens=budget)
        assert len(parts) > 1
        cut = gradient(policy, packed_loss(policy, parts, weights, bonus))
        assert float((cut - whole).abs().max() / whole.abs().max()) < 1e-6


def test_router_logits_do_not_meet_a_four_dimensional_mask():
    """Trap 13: the balance loss of mixture-of-experts models reuses attention_mask."""
    config = Qwen3MoeConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        output_router_logits=True,
    )
    policy = make_policy(Qwen3MoeForCausalLM, config)
    batch = one_row([ragged_tree()])
    for variant in ("dense", "runs"):
        lp, _ = token_logprobs(with_attention(policy, variant), batch, grad=True)
        lp.sum().backward()
        assert torch.isfinite(lp).all()


@pytest.mark.parametrize("variant", ["dense", "runs"])
def test_gradient_checkpointing_changes_nothing(variant):
    trees = [ragged_tree(0)]
    weights, bonus = random_columns(trees, 1), random_columns(trees, 2)
    plain = with_attention(tiny_llama(), variant)
    checkpointed = with_attention(tiny_llama(), variant)
    enable_checkpointing(checkpointed.model)
    calls = []
    checkpointed.model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    for batches in ([one_row(trees)], pack_trees(trees, max_tokens=120, mode="flat")[:1]):
        calls.clear()
        a = gradient(plain, packed_loss(plain, batches, weights, bonus))
        b = gradient(checkpointed, packed_loss(checkpointed, batches, weights, bonus))
        assert torch.equal(a, b)
        assert len(calls) == 2
    assert not any(module.training for module in checkpointed.model.modules())


def test_bf16_stays_within_ordinary_noise():
    """Trap 15: judged against flat batched versus single, never by a wide tolerance."""
    for variant in ("dense", "runs"):
        check_weights(with_attention(tiny_llama(torch.bfloat16), variant))


@pytest.mark.parametrize("slots", [100, 128, 300, 512])
def test_block_mask_from_intervals_covers_the_ancestor_test(slots):
    trees = [random_tree(seed, spans=12, longest=30) for seed in range(4)]
    batch = one_row(trees)
    end = np.arange(1, slots + 1)[None].copy()
    count = min(slots, batch.shape[1])
    end[0, :count] = np.minimum(batch.end[0, :count], slots)
    mask = flex_mask(torch.from_numpy(end), block=32)
    q, k = np.arange(slots)[:, None], np.arange(slots)[None]
    seen = (k <= q) & (q < end[0][None])
    blocks = -(-slots // 32)
    padded = np.zeros((blocks * 32, blocks * 32), bool)
    padded[:slots, :slots] = seen
    tiles = padded.reshape(blocks, 32, blocks, 32)
    live, full = tiles.any((1, 3)), tiles.all((1, 3))
    partial = np.zeros_like(live)
    complete = np.zeros_like(live)
    for i in range(blocks):
        partial[i, mask.kv_indices[0, 0, i, : mask.kv_num_blocks[0, 0, i]]] = True
        complete[i, mask.full_kv_indices[0, 0, i, : mask.full_kv_num_blocks[0, 0, i]]] = True
    assert not (partial & complete).any()
    assert np.array_equal(partial | complete, live)
    assert np.array_equal(complete[:-1], full[:-1])
    assert not (complete & ~full)[: slots // 32].any()


def test_temperature_must_be_positive():
    with pytest.raises(ConfigError, match=r"sampler\.temperature = 0"):
        token_logprobs(tiny_llama(), one_row([ragged_tree()]), temperature=0.0)


def test_no_grad_values_equal_those_of_training():
    """lp_old from the same packer and variant: the first ratio of an update is exactly 1."""
    policy = tiny_llama()
    for batch in pack_trees([ragged_tree(), random_tree(2)], max_tokens=300):
        old, _ = token_logprobs(policy, batch)
        new, _ = token_logprobs(policy, batch, with_entropy=True, grad=True)
        assert torch.equal(old, new.detach())
