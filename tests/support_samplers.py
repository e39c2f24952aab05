"""Tiny random models of several architectures for tests of the transformers sampler."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from treerl.config import SamplerSettings
from treerl.samplers.transformers import TransformersSampler

STOP, PAD, VOCABULARY, CONTEXT = 1, 0, 17, 128
_SPECIAL = {"bos_token_id": 2, "eos_token_id": STOP, "pad_token_id": PAD}
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    **_SPECIAL,
}


def llama(**changes: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(**{**_SHAPE, "num_key_value_heads": 1, **changes}))


def gpt2(**changes: Any) -> Any:
    shape = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
    options = {"vocab_size": VOCABULARY, "initializer_range": 0.3, **_SPECIAL, **shape, **changes}
    return GPT2LMHeadModel(GPT2Config(**options))


def mistral() -> Any:
    return MistralForCausalLM(MistralConfig(**_SHAPE, num_key_value_heads=2, sliding_window=5))


def gemma2() -> Any:
    kinds = ["sliding_attention", "full_attention"]
    windows = {"sliding_window": 5, "layer_types": kinds, "attn_logit_softcapping": 2.0}
    config = Gemma2Config(**_SHAPE, num_key_value_heads=2, head_dim=8, **windows)
    return Gemma2ForCausalLM(config)


def seeded(make: Callable[[], Any]) -> Callable[[], Any]:
    def build() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return make().eval()

    return build


MODELS: dict[str, Callable[[], Any]] = {
    "llama": seeded(llama),
    "grouped": seeded(lambda: Qwen2ForCausalLM(Qwen2Config(**_SHAPE, num_key_value_heads=2))),
    "gpt2": seeded(gpt2),
    "windowed": seeded(mistral),
    "capped": seeded(gemma2),
    "eager": seeded(lambda: llama(attn_implementation="eager")),
}


def make_sampler(
    model: Any, settings: SamplerSettings | None = None, **options: Any
) -> TransformersSampler:
    return TransformersSampler(
        model,
        settings=settings or SamplerSettings(),
        stop_token_ids=[STOP],
        pad_token_id=PAD,
        device="cpu",
        **options,
    )
