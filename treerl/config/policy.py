"""`[policy]` and `[sampler]`: the model that is trained, and how continuations are drawn."""

from typing import Annotated, Literal

from pydantic import Field

from treerl.config.section import NonNegative, Positive, Section


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
