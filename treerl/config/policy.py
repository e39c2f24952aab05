"""`[policy]` and `[sampler]`: the model that is trained, and how continuations are drawn."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

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
    attention: Literal["auto", "dense", "runs", "flex", "blocks"] = "auto"
    """How packed trees attend; auto chooses by model, device and length of the pack. blocks: a small plain
    Llama on CPU alone, run in few kernels; fastest there for short paths."""
    lora: LoraSettings | None = None
    """Train adapters instead of the whole model; None: the whole model."""
    gradient_checkpointing: bool = False
    threads: Positive | None = None
    """CPU threads of torch; None leaves torch's choice."""


class SamplerSettings(Section):
    """How continuations are drawn: what every sampler has."""

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
    max_in_flight: Positive | None = None
    """Continuations handed over at a time; a tree is opened while there are fewer. None: twice as many as
    are drawn together."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds a continuation may take, waiting included; then it is given up and its tree ends."""


class TransformersSettings(SamplerSettings):
    """The policy itself draws, in this process."""

    kind: Literal["transformers"] = "transformers"


class EngineSettings(Section):
    """vLLM's engine, which runs in this process."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: that of the policy. Another one makes sampler and trainer differ by rounding: see
    loss.rollout_is."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """Share of the GPU's memory for weights and cache of the engine; the trainer needs the rest."""
    kv_cache_gib: Annotated[float, Field(gt=0.0)] | None = None
    """Size of the cache of keys and values; None: what gpu_memory_utilization leaves, 1 GiB on a CPU."""
    block_size: Positive | None = None
    """Tokens of a cache block, the unit in which branches share prefixes; None: the smallest the device
    takes, 16 on a GPU and 32 on a CPU."""
    lora: Literal["auto", "adapter", "merged"] = "auto"
    """A LoRA policy is served as an adapter beside the base weights, or merged into full ones; auto: merged on
    a CPU, where an adapter makes each token several times as expensive, else adapter."""
    sleep: Literal[0, 1, 2] = 0
    """While the policy is updated, the engine on a GPU gives back memory: 1 the cache, its weights wait in main
    memory; 2 both, and the hand-over sends all weights anew. 0: nothing."""
    enforce_eager: bool | None = None
    """No compiled graphs; None: eager on a CPU, where compiling takes a minute and gains little."""


class VllmSettings(SamplerSettings):
    """vLLM draws, on its own copy of the weights."""

    kind: Literal["vllm"] = "vllm"
    vllm: EngineSettings = EngineSettings()

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        check_vllm_temperature("sampler.temperature", self.temperature)
        return self


def check_vllm_temperature(key: str, temperature: float) -> None:
    """vLLM raises temperatures below 0.01 in silence and refuses those above 2. Raises ValueError."""
    if temperature != 0 and not 0.01 <= temperature <= 2:
        raise ValueError(
            f'{key} = {temperature}: vLLM takes 0 or 0.01 to 2; set it so, or sampler.kind = "transformers"'
        )


def _sampler_kind(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("kind", "transformers"))
    return str(getattr(value, "kind", "transformers"))


AnySampler = Annotated[
    Annotated[TransformersSettings, Tag("transformers")] | Annotated[VllmSettings, Tag("vllm")],
    Discriminator(
        _sampler_kind,
        custom_error_type="sampler_kind",
        custom_error_message='sampler.kind must be "transformers" or "vllm"',
    ),
]
