"""Architectures that cannot be packed are refused by config and by a shrunken twin; others pass."""

import pytest
import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    BloomConfig,
    Cohere2Config,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tests.support_policy import random_tree, reference, tiny_llama
from treerl.errors import ConfigError
from treerl.policy import attention as attention_module
from treerl.policy import selfcheck
from treerl.policy.forward import token_logprobs
from treerl.policy.model import wrap_model
from treerl.policy.pack import pack_trees, scatter_to_trees
from treerl.policy.selfcheck import check_config, check_packing, make_twin, twin_error

SIZES = {
    "vocab_size": 70,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FULL = {
    "llama": LlamaConfig(**SIZES),
    "llama_yarn": LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 2.0,
            "rope_theta": 1e4,
            "original_max_position_embeddings": 64,
        },
    ),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **EXPERTS),
    "mistral_full": MistralConfig(**SIZES, sliding_window=None),
    "granite": GraniteConfig(**SIZES, logits_scaling=4.0),
    "gpt2": GPT2Config(vocab_size=70, n_embd=64, n_layer=2, n_head=4),
}
WINDOWED = {
    "mistral": MistralConfig(**SIZES, sliding_window=4096),
    "gemma2": Gemma2Config(**SIZES, head_dim=16),
    "cohere2": Cohere2Config(**SIZES, logit_scale=0.2),
    "llama4": Llama4TextConfig(**SIZES, head_dim=16, intermediate_size_mlp=64, num_local_experts=2),
    "gpt_oss": GptOssConfig(**SIZES, head_dim=16, num_local_experts=4),
}
REFUSED = {
    "lfm2": Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
    "mamba": MambaConfig(vocab_size=70, hidden_size=64, num_hidden_layers=2),
    "bloom": BloomConfig(vocab_size=70, hidden_size=64, n_layer=2, n_head=4),
    "dynamic": LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    ),
}
# transformers' slow paths announce themselves; the architectures are here to be refused.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def load(config, attention="auto"):
    return wrap_model(Auto.from_config(config), name="model", attention=attention)


@pytest.mark.parametrize("name", FULL)
def test_full_attention_passes_with_every_variant(name):
    check_packing(load(FULL[name]))


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_pass_dense_and_are_refused_otherwise(name):
    check_packing(load(WINDOWED[name], "dense"))
    with pytest.raises(ConfigError, match=r'policy\.attention = "dense"'):
        check_packing(load(WINDOWED[name], "runs"))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_config(name):
    with pytest.raises(ConfigError, match=r'update\.pack = "flat"'):
        check_config(load(REFUSED[name]))


@pytest.mark.parametrize("name", ["lfm2", "bloom"])
def test_refused_by_the_twin_alone(name):
    policy = load(REFUSED[name])
    assert twin_error(make_twin(policy), "dense") > 0.1


def test_refusal_names_numbers_layers_and_remedy(monkeypatch):
    monkeypatch.setattr(selfcheck, "check_config", lambda policy, max_path=None: None)
    message = (
        r"lfm2: packed and single-row log-probs differ by .* \(limit 1e-4\); layer kinds: conv, "
    )
    with pytest.raises(ConfigError, match=message):
        check_packing(load(REFUSED["lfm2"]))


def test_window_is_shrunk_below_the_trees():
    """Ignoring a window of 4096 is invisible on small trees: the twin's window must bite."""
    twin = make_twin(load(WINDOWED["mistral"]))
    assert twin.config.sliding_window == selfcheck.WINDOW
    gemma = make_twin(load(WINDOWED["gemma2"]))
    assert set(gemma.config.layer_types) == {"sliding_attention", "full_attention"}


def test_ignoring_the_window_is_caught(monkeypatch):
    whole = attention_module.dense_mask

    def no_window(tree, *, window, chunk, dtype):
        return whole(tree, window=None, chunk=None, dtype=dtype)

    monkeypatch.setattr(attention_module, "dense_mask", no_window)
    assert twin_error(make_twin(load(WINDOWED["mistral"])), "dense") > 0.1
    assert twin_error(make_twin(load(WINDOWED["llama4"])), "dense") > 0.1


def test_loaded_weights_gate_catches_a_sibling_leak(monkeypatch):
    policy = tiny_llama()
    selfcheck.check_weights(policy)

    def leaking(tree, *, window, chunk, dtype):
        slots = tree.end.shape[1]
        return torch.full((slots, slots), float("-inf"), dtype=dtype).triu(1)[None, None]

    monkeypatch.setattr(attention_module, "dense_mask", leaking)
    with pytest.raises(ConfigError, match="on average"):
        selfcheck.check_weights(policy)


def test_longrope_only_on_one_side():
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 128,
    }
    policy = load(LlamaConfig(**SIZES, rope_parameters=rope))
    check_config(policy, max_path=100)
    with pytest.raises(ConfigError, match="longrope"):
        check_config(policy, max_path=200)


def test_dropout_in_training_is_refused():
    policy = load(LlamaConfig(**SIZES, attention_dropout=0.1))
    check_config(policy)
    policy.model.train()
    with pytest.raises(ConfigError, match=r"dropout 0\.1"):
        check_config(policy)


@pytest.mark.parametrize("name", ["lfm2", "mamba", "bloom", "mistral", "llama4"])
def test_flat_mode_works_for_any_architecture(name):
    policy = load({**REFUSED, **WINDOWED}[name])
    tree = random_tree(3)
    batches = pack_trees([tree], max_tokens=400, mode="flat")
    values = [token_logprobs(policy, batch)[0].numpy() for batch in batches]
    (lp,) = scatter_to_trees(batches, values, [tree])
    with torch.no_grad():
        results, paths = reference(policy, tree)
    for wanted, path in zip(results, paths, strict=True):
        trained = tree.tokens.mask[path[1:]]
        error = abs(lp[path[1:]] - wanted[0].numpy())[trained].max()
        assert error < 1e-5


def test_make_twin_leaves_the_random_state_alone():
    policy = tiny_llama()
    before = torch.random.get_rng_state()
    make_twin(policy)
    assert torch.equal(before, torch.random.get_rng_state())
