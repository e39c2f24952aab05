"""Opens the sampler that a recipe asks for, over the policy's live weights.

transformers draws with the policy itself; vLLM has a copy of the weights, which it loads from a folder written
here and dropped again. Later weights are handed over, see treerl.engine.handover.
"""

import copy
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import assert_never

import torch
import transformers
from safetensors.torch import save_file

from treerl.config import AnySampler, SamplerSettings, TransformersSettings, VllmSettings
from treerl.engine.handover import weights_of
from treerl.policy.lora import adapter_config, base_weights, full_weights, has_adapter
from treerl.policy.model import Policy
from treerl.samplers.transformers import TransformersSampler
from treerl.samplers.vllm import VllmSampler
from treerl.samplers.vllm_engine import VllmEngine
from treerl.samplers.vllm_installed import installed_vllm

LiveSampler = TransformersSampler | VllmSampler


class SamplerSource:
    """Makes samplers of one kind over one policy; at most one engine serves them all."""

    def __init__(self, policy: Policy, settings: AnySampler, opened: ExitStack) -> None:
        self._policy = policy
        self.engine: VllmEngine | None = None
        match settings:
            case TransformersSettings():
                pass
            case VllmSettings():
                self.engine = opened.enter_context(_open_engine(policy, settings))
                if adapter_rank(policy, settings) is not None:
                    self.engine.receive(weights_of(policy), 0)
            case _:
                assert_never(settings)

    @property
    def identity(self) -> dict[str, str]:
        """What draws, for the provenance of its draws: engine with version, dtype of the weights."""
        if self.engine is None:
            return {
                "engine": f"transformers@{transformers.__version__}",
                "dtype": str(self._policy.dtype),
            }
        vllm = installed_vllm()
        assert vllm is not None
        return {
            "engine": f"{vllm.name}@{vllm.version}",
            "dtype": str(self.engine.weights.dtype),
        }

    def make(self, settings: SamplerSettings) -> LiveSampler:
        """A sampler with these settings; the kind stays that of the source."""
        stops = stop_tokens(self._policy)
        if self.engine is not None:
            return VllmSampler(
                self.engine,
                settings=settings,
                stop_token_ids=stops,
                vocabulary=self._policy.model.config.get_text_config().vocab_size,
            )
        return TransformersSampler(
            self._policy.model,
            settings=settings,
            stop_token_ids=stops,
            pad_token_id=self._policy.tokenizer.pad_token_id or 0,
            device=self._policy.device,
        )


def _open_engine(policy: Policy, settings: VllmSettings) -> VllmEngine:
    """vLLM's engine on the policy's weights."""
    longest = settings.max_prompt_length + settings.max_completion_length
    if policy.max_length is not None:
        longest = min(longest, policy.max_length)
    rank = adapter_rank(policy, settings)
    with tempfile.TemporaryDirectory(prefix="treerl-") as folder:
        write_model(policy, Path(folder), merged=rank is None)
        return VllmEngine(
            folder,
            settings.vllm,
            max_length=longest,
            max_batch=settings.max_batch,
            dtype=torch.float32 if policy.dtype == torch.float64 else policy.dtype,
            lora_rank=rank,
        )


def adapter_rank(policy: Policy, settings: VllmSettings) -> int | None:
    """Rank of the adapter that vLLM serves as one; None where it serves full weights."""
    if not has_adapter(policy.model) or settings.vllm.lora == "merged":
        return None
    if settings.vllm.lora == "auto" and policy.device.type == "cpu":
        return None
    return int(adapter_config(policy.model)["r"])


def write_model(policy: Policy, folder: Path, *, merged: bool = True) -> None:
    """config.json and safetensors for engines that load from disk: the policy as it is, an adapter merged, or
    the weights it stands on."""
    config = copy.deepcopy(policy.model.config)
    config.architectures = [type(policy.model).__name__]
    config.save_pretrained(folder)
    weights = full_weights(policy.model) if merged else base_weights(policy.model)
    tensors = {name: tensor.contiguous() for name, tensor in weights}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def stop_tokens(policy: Policy) -> tuple[int, ...]:
    """EOS ids of the model's generation settings and of its tokenizer."""
    configured = policy.model.generation_config.eos_token_id
    found = set(configured if isinstance(configured, list) else [configured])
    found.add(policy.tokenizer.eos_token_id)
    return tuple(sorted(int(token) for token in found if token is not None))
