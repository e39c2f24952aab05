"""`[policy]` and `[sampler]`: the model that is trained, and how continuations are drawn."""

from typing import Annotated, Literal

from pydantic import Field

from treerl.config.section import NonNegative, Positive, Section


class LoraSettings(Section):
    """Low-rank adapters (extra `lora`): they alone are trained, and the base model stays as it is."""

    r: Positive = 16
    """Rank."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The adapter's product counts alpha / r."""
    dropout: Annotated[float, Field(ge=0, le=0)] = 0.0
    """Must be 0: its masks would differ between packed and single rows, and between sampler and trainer."""
    target_modules: tuple[str, ...] | None = None
    """Names of the layers that get an adapter, such as q_proj; None: every linear layer but the head."""


class PolicySettings(Section):
    """The model that is trained."""

    model: str = "embedded"
    """`embedded`, a local folder, a GGUF file, or a Hugging Face hub name."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """auto: bfloat16 on a GPU that has it, else float32."""
    device: str = "auto"
    """auto: cuda when there is one, else cpu."""
    attention: Literal["auto", "dense", "runs", "flex"] = "auto"
    """How packed trees attend; auto chooses by device and length of the pack."""
    lora: LoraSettings | None = None
    """Train adapters instead of the whole model; None: the whole model."""
    gradient_checkpointing: bool = False
    threads: Positive | None = None
    """CPU threads of torch; None leaves torch's choice."""


class SamplerSettings(Section):
    """How continuations are drawn."""

    kind: Literal["transformers"] = "transformers"
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: NonNegative = 0
    """0: no limit."""
    max_prompt_length: Positive = 512
    """Longer prompts are dropped and counted, never truncated."""
    max_completion_length: Positive = 512
    """Tokens a path may grow beyond the prompt."""
    max_batch: Positive = 512
    """Rows decoded together."""
