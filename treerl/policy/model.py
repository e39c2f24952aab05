"""Loading the policy: any Hugging Face causal LM, a GGUF file, or the embedded model; nothing trains here."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from treerl.errors import ConfigError
from treerl.policy.attention import NAME, register
from treerl.policy.fused import can_fuse
from treerl.policy.head import Head
from treerl.policy.lora import (
    ADAPTER_CONFIG,
    add_adapter,
    has_adapter,
    merge_adapter,
    require_peft,
)

if TYPE_CHECKING:
    from treerl.config import PolicySettings

EMBEDDED = Path(__file__).resolve().parent.parent / "assets" / "chain-0.4m"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(slots=True)
class Policy:
    """A loaded model with its tokenizer. `model` is a transformers causal LM in eval mode without dropout.

    name: the `policy.model` setting. attention: the `policy.attention` setting.
    head: how its logits follow from the last hidden state; None where only the model itself knows.
    fused: whether treerl.policy.fused can run it.
    """

    model: Any
    tokenizer: Any
    name: str
    device: torch.device
    dtype: torch.dtype
    attention: str = "auto"
    head: Head | None = None
    fused: bool = False

    @property
    def row_tokens(self) -> int:
        """`row_tokens` for pack_trees: full rows where attention is compiled or fused, else one tree a row."""
        return sys.maxsize if self.bucket or self.fused else 0

    @property
    def bucket(self) -> bool:
        """`bucket` for pack_trees: static shapes where attention is compiled."""
        return self.device.type == "cuda" and self.attention in ("auto", "flex")

    @property
    def max_length(self) -> int | None:
        """Tokens a path may have (the model's context); None: unknown."""
        limit = getattr(text_config(self.model.config), "max_position_embeddings", None)
        return int(limit) if limit else None


def load_policy(settings: "PolicySettings") -> Policy:
    """Loads model and tokenizer as `settings` says. Raises ConfigError with key, value and remedy."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    source, options = _locate(settings.model)
    try:
        model = _load_weights(source, dtype, options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if "gguf_file" in options:
            _set_end_token(tokenizer, model.config.eos_token_id)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"policy.model = {settings.model!r} cannot be loaded: {error}\n"
            'Give "embedded", a folder with config.json and weights, a .gguf file, or a hub name.'
        ) from error
    _fit_adapter(model, settings, from_gguf="gguf_file" in options)
    return wrap_model(
        model,
        tokenizer,
        name=settings.model,
        device=device,
        attention=settings.attention,
        gradient_checkpointing=settings.gradient_checkpointing,
    )


def _fit_adapter(model: Any, settings: "PolicySettings", *, from_gguf: bool) -> None:
    """Gives the model the adapter that `policy.lora` asks for; without it, one that came along is merged."""
    if settings.lora is None:
        if has_adapter(model):
            merge_adapter(model)
        return
    if from_gguf:
        raise ConfigError(
            f"policy.lora on policy.model = {settings.model!r}: an adapter's checkpoint names its base model, "
            "and a GGUF file has no such name. Save the model as a folder first (`treerl sft` does)"
        )
    add_adapter(model, settings.lora)


def _load_weights(source: str, dtype: torch.dtype, options: Mapping[str, Any]) -> Any:
    """The model with plain weights, GGUF or not.

    Newer transformers would leave GGUF weights in their blocks where they can, and call the model quantized
    in any case, which they then refuse to save.
    """
    if "gguf_file" in options and hasattr(transformers, "GgufConfig"):
        options = {**options, "quantization_config": transformers.GgufConfig(dequantize=True)}
    model: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, attn_implementation=NAME, **options
    )
    if "gguf_file" in options and getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    return model


def _set_end_token(tokenizer: Any, end: int | None) -> None:
    """The model's end token as the tokenizer's: transformers 5.16 takes a GGUF file's begin token for it."""
    if isinstance(end, int):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)


def load_tokenizer(model: str) -> Any:
    """The tokenizer alone of a `policy.model` setting, for those who only read."""
    source, options = _locate(model)
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"the tokenizer of {model!r} cannot be loaded: {error}") from error


def wrap_model(
    model: Any,
    tokenizer: Any = None,
    *,
    name: str,
    device: torch.device | None = None,
    attention: str = "auto",
    gradient_checkpointing: bool = False,
) -> Policy:
    """A Policy around a model at hand: moves it to `device` and switches its attention to treerl's."""
    register()
    device = device or next(model.parameters()).device
    model.to(device)
    if model.config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)
    model.eval()
    if gradient_checkpointing:
        enable_checkpointing(model)
    dtype = next(model.parameters()).dtype
    return Policy(
        model, tokenizer, name, device, dtype, attention, find_head(model), can_fuse(model)
    )


def enable_checkpointing(model: Any) -> None:
    """Prepares gradient checkpointing per layer; it works inside `checkpointing`."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@contextlib.contextmanager
def checkpointing(policy: Policy) -> Iterator[None]:
    """Forwards inside keep only each layer's input for the backward, where that was enabled.

    Transformers checkpoints layers in train mode only, and drops their cache then. So the flag is raised
    on these layers alone and for this forward alone: dropout stays off, and samplers keep their cache.
    """
    layers = [m for m in policy.model.modules() if getattr(m, "gradient_checkpointing", False)]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def text_config(config: Any) -> Any:
    """The language part of a config (the config itself unless multimodal)."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def find_head(model: Any) -> Head | None:
    """The output projection with its scale and soft cap; None where the model has no plain one."""
    layer = model.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear) or not hasattr(model, model.base_model_prefix):
        return None
    config = text_config(model.config)
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight, layer.bias, scale, None if softcap is None else float(softcap))


def choose_device(setting: str) -> torch.device:
    """policy.device as a torch device. Raises ConfigError."""
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(setting)
    except RuntimeError:
        raise ConfigError(
            f'policy.device = {setting!r} is no device: "auto", "cpu", "cuda", "cuda:1"'
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f'policy.device = {setting!r}: torch sees no GPU; set it to "auto"')
    return device


def choose_dtype(setting: str, device: torch.device) -> torch.dtype:
    """policy.dtype as a torch dtype; auto: bfloat16 on a GPU that has it, else float32."""
    if setting == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return DTYPES[setting]


def _locate(model: str) -> tuple[str, Mapping[str, Any]]:
    """Where from_pretrained finds `model`, and what else it must be told."""
    if model == "embedded":
        if not (EMBEDDED / "config.json").is_file():
            raise ConfigError(
                f'policy.model = "embedded": {EMBEDDED} is missing; reinstall treerl, or run '
                "scripts/make_embedded_policy.py"
            )
        return str(EMBEDDED), {}
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        return _locate_gguf(path)
    if path.is_dir():
        if (path / ADAPTER_CONFIG).is_file():
            require_peft()
        elif not (path / "config.json").is_file():
            raise ConfigError(f"policy.model = {model!r}: the folder has no config.json")
        return str(path), {}
    if model.startswith((".", "/", "~")):
        raise ConfigError(f"policy.model = {model!r}: no such folder")
    return model, {}


def _locate_gguf(path: Path) -> tuple[str, Mapping[str, Any]]:
    if not path.is_file():
        raise ConfigError(f'policy.model = "{path}": no such file')
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f'policy.model = "{path}": reading GGUF needs {" and ".join(missing)}: '
            "pip install 'treerl[gguf]'"
        )
    return str(path.parent), {"gguf_file": path.name}
