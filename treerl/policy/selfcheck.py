"""Does packing hold for this model? Asked once when a policy is loaded for packed training.

First the config, then a tiny model of the same class against one leaf at a time, then the loaded weights
against the noise of ordinary batching. There is no silent fallback: running flat is a setting of its own.
"""

import copy
import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from treerl.errors import ConfigError, SamplerError
from treerl.policy.attention import Variant
from treerl.policy.batch import PackedBatch
from treerl.policy.forward import token_logprobs
from treerl.policy.model import Policy, text_config, wrap_model
from treerl.policy.pack import pack_trees, scatter_to_trees
from treerl.search.sampler import Finish, Span
from treerl.search.tree import ROOT, Tree

log = logging.getLogger(__name__)

LIMIT = 1e-4
"""Largest right log-prob error seen on tiny models 6.8e-6, smallest wrong one 0.16 nats."""
NOISE_FACTOR = 10.0
"""Loaded weights: packed against flat at most this many times flat batched against flat single."""
FLOOR = 1e-5
"""Noise below this (nats) counts as this: fp32 batches can agree to the bit."""
WINDOW = 8
"""Windows, chunks and RoPE's original length of the twin: below the depth of its trees."""
REMEDY = 'Set update.pack = "flat".'

FULL = {"full_attention", "attention", "global"}
LOCAL = {"sliding_attention", "chunked_attention", "local", "sliding"}


def check_packing(policy: Policy, *, max_path: int | None = None) -> None:
    """Raises ConfigError unless packed trees give the log-probs and gradients of single rows.

    max_path: tokens of the longest path (prompt and completion), for RoPE that changes with length.
    """
    check_config(policy, max_path=max_path)
    check_twin(policy)
    check_weights(policy)


# From the config -------------------------------------------------------------------------------------------


def check_config(policy: Policy, *, max_path: int | None = None) -> None:
    """Refuses what the config already tells: state layers, ALiBi, RoPE that depends on length, dropout."""
    config = text_config(policy.model.config)
    name = config.model_type
    kinds = layer_kinds(config)
    unknown = kinds - FULL - LOCAL
    if unknown:
        raise ConfigError(
            f"{name}: layers of kind {', '.join(sorted(unknown))} carry state along the row, so a branch "
            f"would see its siblings. {REMEDY}"
        )
    if getattr(config, "alibi", False) or name in ("bloom", "mpt"):
        raise ConfigError(f"{name}: ALiBi measures distance by slot, not by depth. {REMEDY}")
    for parameters in _rope_parameters(config):
        _check_rope(name, parameters, max_path)
    dropout = max((v for k, v in config.to_dict().items() if _is_dropout(k, v)), default=0.0)
    if dropout > 0.0 and policy.model.training:
        raise ConfigError(
            f"{name}: dropout {dropout} in training mode; its masks differ between packed and single rows. "
            "Set the model's dropout to 0"
        )
    if (kinds & LOCAL or _is_capped(config)) and policy.attention != "dense":
        raise ConfigError(
            f"{name}: layer kinds {', '.join(sorted(kinds))} have windows, soft caps or sinks, which "
            f'policy.attention = "{policy.attention}" cannot do: set policy.attention = "dense". '
            f"Or: {REMEDY}"
        )


def layer_kinds(config: Any) -> set[str]:
    """Kinds of layers a text config declares; windows and state models without `layer_types` included."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        window = getattr(config, "sliding_window", None)
        if window is not None and getattr(config, "use_sliding_window", True):
            kinds.add("sliding_attention")
        elif getattr(config, "attention_chunk_size", None):
            kinds.add("chunked_attention")
        elif any(hasattr(config, key) for key in ("ssm_cfg", "state_size", "conv_kernel", "rwkv")):
            kinds.add("state")
        else:
            kinds.add("full_attention")
    return kinds


def _is_capped(config: Any) -> bool:
    cap = getattr(config, "attn_logit_softcapping", None)
    return cap is not None or config.model_type == "gpt_oss"


def _is_dropout(key: str, value: Any) -> bool:
    named = "dropout" in key or key in ("attn_pdrop", "embd_pdrop", "resid_pdrop")
    unused = "classifier" in key or "summary" in key
    return named and not unused and isinstance(value, float)


def _rope_parameters(config: Any) -> Iterable[dict[str, Any]]:
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(parameters, dict):
        return []
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]


def _check_rope(name: str, parameters: dict[str, Any], max_path: int | None) -> None:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "dynamic":
        raise ConfigError(f"{name}: RoPE dynamic depends on the length of the batch. {REMEDY}")
    original = parameters.get("original_max_position_embeddings")
    if kind == "longrope" and (max_path is None or original is None or max_path > original):
        raise ConfigError(
            f"{name}: RoPE longrope changes at {original} tokens and paths may have {max_path}. Keep "
            f"sampler.max_prompt_length + sampler.max_completion_length below it, or: {REMEDY}"
        )


# A tiny model of the same class ----------------------------------------------------------------------------


def check_twin(policy: Policy) -> None:
    """Packed against one leaf at a time on a shrunken model: log-probs and a random-weight gradient."""
    config = text_config(policy.model.config)
    try:
        error = twin_error(make_twin(policy), policy.attention)
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as reason:
        raise ConfigError(
            f"{config.model_type}: the packing self-check could not run a small model of this class "
            f"({reason}). {REMEDY}"
        ) from reason
    log.debug("packing self-check of %s: %.1e", config.model_type, error)
    if not error <= LIMIT:
        raise ConfigError(
            f"{config.model_type}: packed and single-row log-probs differ by {error:.2g} (limit 1e-4); "
            f"layer kinds: {', '.join(sorted(layer_kinds(config)))}. {REMEDY}"
        )


def make_twin(policy: Policy) -> Any:
    """A model of the policy's class in fp32, weights N(0, 0.15), small in width and depth.

    One layer of each kind stays, and windows, chunks and RoPE's original length shrink below the depth of
    the test trees: an unshrunken window would hide a missing one.
    """
    config = copy.deepcopy(text_config(policy.model.config))
    _shrink(config)
    torch_state = torch.random.get_rng_state()
    try:
        torch.manual_seed(0)
        twin = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32
        )
        with torch.no_grad():
            for weight in twin.parameters():
                if weight.ndim > 1:
                    weight.normal_(0.0, 0.15)
    finally:
        torch.random.set_rng_state(torch_state)
    return twin


def _shrink(config: Any) -> None:
    """Cuts width, depth, vocabulary, experts and lengths of a text config in place."""
    heads = getattr(config, "num_attention_heads", None) or 4
    groups = max(1, heads // (getattr(config, "num_key_value_heads", None) or heads))
    sizes = {
        "vocab_size": 64,
        "hidden_size": 64,
        "n_embd": 64,
        "intermediate_size": 96,
        "n_inner": 96,
        "ffn_dim": 96,
        "num_attention_heads": 2 * groups if groups < 4 else 4,
        "n_head": 4,
        "num_key_value_heads": 2 if groups < 4 else 1,
        "head_dim": 16,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "n_routed_experts": 4,
        "num_local_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "attention_chunk_size": WINDOW,
        "max_position_embeddings": 256,
        "n_positions": 256,
    }
    if getattr(config, "qk_rope_head_dim", None):
        sizes |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
        sizes |= {"qk_head_dim": 16, "head_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 16}
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    elif getattr(config, "head_dim", None) is None:
        sizes["hidden_size"] = 16 * sizes["num_attention_heads"]
    for key, size in sizes.items():
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, size)
    _shrink_layers(config)
    for parameters in _rope_parameters(config):
        if parameters.get("original_max_position_embeddings"):
            parameters["original_max_position_embeddings"] = WINDOW
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(config, key, None) is not None:
            setattr(config, key, 0)


def _shrink_layers(config: Any) -> None:
    """Two layers of each kind (the config's order kept), or four of the only kind."""
    kinds = list(getattr(config, "layer_types", None) or ())
    kept = [i for i, kind in enumerate(kinds) if kinds[:i].count(kind) < 2]
    count = len(kept) if kinds else 4
    if kinds:
        config.layer_types = [kinds[i] for i in kept]
    for key in ("num_hidden_layers", "n_layer"):
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, count)
    if isinstance(getattr(config, "max_window_layers", None), int):
        config.max_window_layers = 0
    for key in ("mlp_layer_types", "no_rope_layers"):
        values = getattr(config, key, None)
        if isinstance(values, list):
            setattr(config, key, [values[i] for i in kept] if kinds else values[:count])


def twin_error(model: Any, attention: str) -> float:
    """The larger of max |d logp| in nats and the relative gradient error, packed against single rows.

    Runs every variant that training may take under `attention`.
    """
    policy = wrap_model(model, name="twin", device=torch.device("cpu"), attention=attention)
    vocabulary = int(text_config(model.config).vocab_size)
    trees = [_test_tree(seed, vocabulary) for seed in (0, 1)]
    weights = np.random.default_rng(0).normal(size=sum(len(tree.tokens) for tree in trees))
    single, wanted = _single_rows(policy, trees, weights)
    worst = 0.0
    for variant in _variants(policy):
        policy.attention = variant
        packed, gradient = _packed(policy, trees, weights)
        worst = max(worst, float((packed - single).abs().max()))
        worst = max(worst, float((gradient - wanted).abs().max() / wanted.abs().max()))
        if not np.isfinite(worst):
            return float("inf")
    return worst


def _variants(policy: Policy) -> list[Variant]:
    """Variants that training may take. On CPU flex has no backward; dense stands for the same test."""
    attention, device = policy.attention, policy.device
    if attention == "auto":
        few: list[Variant] = ["blocks"] if policy.fused else []
        return [*few, "dense", "flex" if device.type == "cuda" else "runs"]
    if attention == "runs":
        return ["runs"]
    if attention == "blocks":
        return ["blocks"]
    return ["flex"] if attention == "flex" and device.type == "cuda" else ["dense"]


def _packed(policy: Policy, trees: list[Tree], weights: Any) -> tuple[Tensor, Tensor]:
    total = sum(len(tree.tokens) for tree in trees)
    batches = pack_trees(trees, max_tokens=total, row_tokens=total)
    return _logprobs_and_gradient(policy, batches, trees, weights)


def _single_rows(policy: Policy, trees: list[Tree], weights: Any) -> tuple[Tensor, Tensor]:
    """One leaf at a time through the model's own logits, so that its head is checked too."""
    single = Policy(policy.model, None, policy.name, policy.device, policy.dtype, attention="dense")
    longest = max(int(tree.nodes.offset[-1] + 64) for tree in trees)
    batches = pack_trees(trees, max_tokens=longest, mode="flat")
    rows = [_row(batch, b) for batch in batches for b in range(batch.shape[0])]
    return _logprobs_and_gradient(single, rows, trees, weights)


def _row(batch: PackedBatch, b: int) -> PackedBatch:
    """Row b of a flat batch without its padding."""
    slots = int((batch.source[b] >= 0).sum())
    columns = {name: getattr(batch, name)[b : b + 1, :slots] for name in batch.__slots__}
    columns["prev"] = np.where(columns["prev"] < 0, -1, columns["prev"] - b * batch.shape[1])
    return PackedBatch(**columns)


def _logprobs_and_gradient(
    policy: Policy, batches: list[PackedBatch], trees: list[Tree], weights: Any
) -> tuple[Tensor, Tensor]:
    starts = np.cumsum([0, *(len(tree.tokens) for tree in trees)])
    values = []
    for batch in batches:
        lp, _ = token_logprobs(policy, batch, grad=True)
        weight = np.zeros(batch.shape, np.float32)
        own = batch.own
        weight[own] = weights[starts[batch.tree[own]] + batch.source[own]]
        (lp * torch.from_numpy(weight)).sum().backward()  # type: ignore[no-untyped-call]
        values.append(lp.detach().double().numpy())
    model = policy.model
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    columns = np.concatenate(scatter_to_trees(batches, values, trees))
    return torch.from_numpy(columns[~np.isnan(columns)]), gradient


def _test_tree(seed: int, vocabulary: int) -> Tree:
    """Forks at the prompt and in the middle, a span of one token, leaves of unequal depth."""
    rng = np.random.default_rng(seed)

    def tokens(count: int) -> np.ndarray[Any, Any]:
        return rng.integers(1, vocabulary, count, dtype=np.int32)

    tree = Tree(tokens(6), seed=seed, max_completion_length=256)

    def grow(node: int, count: int, finish: Finish = Finish.STOP) -> int:
        empty = np.zeros(count, np.float32)
        span = Span(tokens(count), empty, empty, 0, finish)
        return tree.append(tree.request(node, 1), 0, span)

    first, second = grow(ROOT, 9, Finish.CUT), grow(ROOT, 1, Finish.CUT)
    grow(first, 12)
    middle = grow(first, 4, Finish.CUT)
    grow(middle, 3)
    grow(middle, 10)
    grow(second, 15)
    grow(second, 7)
    return tree


# The loaded weights ----------------------------------------------------------------------------------------


def check_weights(policy: Policy) -> None:
    """Mean |d logp| of packed against flat rows, at most 10 times that of flat batched against single."""
    vocabulary = int(text_config(policy.model.config).vocab_size)
    trees = [_test_tree(seed, vocabulary) for seed in (2, 3)]
    total = sum(len(tree.tokens) for tree in trees)
    flat = pack_trees(trees, max_tokens=4 * total, mode="flat")
    single = [_row(batch, b) for batch in flat for b in range(batch.shape[0])]
    packed = pack_trees(trees, max_tokens=2 * total, row_tokens=total, bucket=policy.bucket)
    own = replace(policy, attention="dense")
    alone, batched = _columns(own, single, trees), _columns(own, flat, trees)
    if not len(alone):
        raise SamplerError(
            f"{policy.name}: the model's log-probs are NaN: its weights are broken; set policy.model to an "
            "earlier checkpoint"
        )
    noise = max(float(np.abs(batched - alone).mean()), FLOOR)
    for variant in _variants(policy):
        tree = _columns(replace(policy, attention=variant), packed, trees)
        error = float(np.abs(tree - alone).mean())
        log.debug("packing self-check of %s: mean %.1e, noise %.1e", policy.name, error, noise)
        if not error <= NOISE_FACTOR * noise:
            raise ConfigError(
                f"{policy.name}: with attention {variant} in {policy.dtype} on {policy.device}, packed and "
                f"flat log-probs differ by {error:.2g} nats on average; batching alone makes {noise:.2g} "
                f"(limit 10 times that). {REMEDY}"
            )


def _columns(policy: Policy, batches: list[PackedBatch], trees: list[Tree]) -> Any:
    values = [token_logprobs(policy, batch)[0].double().cpu().numpy() for batch in batches]
    columns = np.concatenate(scatter_to_trees(batches, values, trees))
    return columns[~np.isnan(columns)]
