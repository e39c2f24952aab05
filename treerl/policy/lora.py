"""LoRA adapters in the policy: put in, read as full weights, merged, restored. Needs peft (extra `lora`).

Adapters are injected into the model's own layers, so that the policy stays the transformers class it was: only
they take gradients, and a checkpoint holds them and the name of the base model. Samplers that serve full
weights get `full_weights`, where W + scaling * B A stands under W's own name.
"""

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treerl.config import LoraSettings
from treerl.errors import ConfigError, StoreError

ADAPTER = "default"
"""peft's name of the one adapter."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
"""What peft puts before parameter names in adapter files."""


def has_adapter(model: Any) -> bool:
    """Whether the model has adapters in its layers."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def require_peft() -> None:
    """Raises ConfigError where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("policy.lora needs peft: pip install 'treerl[lora]'")


def add_adapter(model: Any, settings: LoraSettings) -> None:
    """Injects a fresh adapter, B = 0, into `model` and freezes everything else. Raises ConfigError.

    A is drawn from a fixed seed, so that two starts of one recipe are the same policy. An adapter that came
    with the model (a checkpoint) is kept and trained on.
    """
    require_peft()
    if not has_adapter(model):
        _inject(model, settings)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    _check_targets(model)


def _inject(model: Any, settings: LoraSettings) -> None:
    from peft import LoraConfig

    if Path(model.name_or_path).exists():
        # An adapter's file names its base: a relative path would hold in this folder alone.
        model.name_or_path = str(Path(model.name_or_path).resolve())
    targets = settings.target_modules
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules="all-linear" if targets is None else list(targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            model.add_adapter(config, ADAPTER)
        except ValueError as error:
            raise ConfigError(f"policy.lora.target_modules = {targets!r}: {error}") from error


def _check_targets(model: Any) -> None:
    """Head and embeddings stay plain: the packed forward reads the head's weight."""
    for part, layer in (
        ("output head", model.get_output_embeddings()),
        ("embeddings", model.get_input_embeddings()),
    ):
        if hasattr(layer, "lora_A"):
            raise ConfigError(
                f"policy.lora.target_modules names the {part} ({type(layer).__name__}), which takes no "
                "adapter here: leave it out"
            )


def adapted_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """(name, layer) of each layer that has an adapter."""
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
            yield name, layer


@torch.no_grad()
def full_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all weights under the names of the model without adapters, each once.

    A weight with an adapter is W + scaling * B A, summed in fp32 and in W's dtype; the others are the
    model's own tensors, not copies. Tied tensors come once, as in `named_parameters`.
    """
    merged = {f"{name}.base_layer.weight": layer for name, layer in adapted_layers(model)}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        value = parameter.detach()
        if name in merged:
            value = (value.float() + _delta(merged[name])).to(value.dtype)
        yield name.replace(".base_layer.", "."), value


def base_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the weights that the adapter stands on, under the names of the model without it."""
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), parameter.detach()


def _delta(layer: Any) -> Tensor:
    """scaling * B A in fp32."""
    a, b = layer.lora_A[ADAPTER].weight.float(), layer.lora_B[ADAPTER].weight.float()
    delta: Tensor = float(layer.scaling[ADAPTER]) * (b @ a)
    return delta


@torch.no_grad()
def merge_adapter(model: Any) -> None:
    """Adds the adapter to the weights and takes it out of the model, which is then a plain one."""
    for name, layer in list(adapted_layers(model)):
        base = layer.base_layer
        base.weight.copy_((base.weight.float() + _delta(layer)).to(base.weight.dtype))
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, base)
    model._hf_peft_config_loaded = False
    model.__dict__.pop("peft_config", None)
    model.requires_grad_(True)


def adapter_config(model: Any) -> dict[str, Any]:
    """What peft writes as `adapter_config.json`."""
    config: dict[str, Any] = model.peft_config[ADAPTER].to_dict()
    targets = config["target_modules"]
    return config | {"target_modules": targets if isinstance(targets, str) else sorted(targets)}


def adapter_tensors(model: Any) -> dict[str, Tensor]:
    """The adapter's tensors under the names of peft's files."""
    return {_file_name(name): p.detach() for name, p in _adapter_parameters(model)}


@torch.no_grad()
def restore_adapter(model: Any, tensors: dict[str, Tensor]) -> None:
    """Writes the tensors of an adapter file into the model's adapter. Raises StoreError if they do not fit."""
    missing = dict(tensors)
    for name, parameter in _adapter_parameters(model):
        value = missing.pop(_file_name(name), None)
        if value is None or value.shape != parameter.shape:
            raise StoreError(f"the adapter's file has no {_file_name(name)} of this shape")
        parameter.copy_(value)
    if missing:
        raise StoreError(f"the adapter's file has {min(missing)}, which this policy has not")


def _adapter_parameters(model: Any) -> Iterator[tuple[str, Tensor]]:
    return itertools.filterfalse(lambda item: ".lora_" not in item[0], model.named_parameters())


def _file_name(name: str) -> str:
    return _PEFT_PREFIX + name.replace(f".{ADAPTER}.", ".")
