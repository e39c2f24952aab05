"""What a plain Llama is: the one architecture that treerl can also run by a forward of its own, in few kernels.

Sampling and training each have their own such forward; everything else runs through the model itself.
"""

from typing import Any

from torch import nn
from transformers import LlamaForCausalLM

_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}


def is_plain_llama(model: Any) -> bool:
    """Whether `model` is exactly a `LlamaForCausalLM`: no biases, adapters, hooks or positions that adapt."""
    if type(model) is not LlamaForCausalLM:
        return False
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    # An adapter wraps a layer and holds Linears itself: the layers must be where the weights are read.
    plain = all(type(m) is nn.Linear and m.bias is None for m in linears) and not any(
        hasattr(m, "base_layer") for m in model.modules()
    )
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return (
        plain
        and not hooked
        and config.hidden_act == "silu"
        and rope.get("rope_type", "default") in _STATIC_ROPE
    )
