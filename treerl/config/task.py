"""`[task]`: where problems come from, and how one becomes prompt tokens."""

from typing import Annotated, Any, Literal

from pydantic import Field

from treerl.config.section import NonNegative, Positive, Section


class PromptSettings(Section):
    """How a problem becomes prompt tokens."""

    template: str = "{question}"
    """Text with `{question}`; the raw prompt, or the user's turn when `chat` is on."""
    chat: bool = False
    """Use the tokenizer's chat template."""
    system: str | None = None
    """System message of the chat template."""


class ChainTask(Section):
    """The built-in task: chains of equalities, made from a seed (treerl.tasks.chain)."""

    kind: Literal["chain"] = "chain"
    seed: int = 0
    """Names the stream of training problems."""
    min_operators: Positive = 5
    max_operators: Positive = 7
    heldout: Positive = 256
    """Held-out problems, the same for every seed."""
    prompt: PromptSettings = PromptSettings()


class FileTask(Section):
    """Problems from a JSONL, JSON, CSV or Parquet file."""

    kind: Literal["file"] = "file"
    path: str
    """Training problems."""
    heldout_path: str | None = None
    """Problems for evaluation; without it, the last `heldout` lines of `path` are kept apart."""
    heldout: NonNegative = 0
    """Lines of `path` kept apart for evaluation when `heldout_path` is not given."""
    question: str | None = None
    """Column of the question; detected from the known data sets when not given."""
    answer: str | None = None
    """Column of the answer."""
    judge: Literal["math", "exact", "number", "choice"] = "math"
    """Kind of judgement of these problems."""
    skip_malformed: bool = False
    """Count and skip malformed lines instead of stopping at the first."""
    limit: Positive | None = None
    """Use the first lines only."""
    seed: int = 0
    """Names the order of the problems."""
    prompt: PromptSettings = PromptSettings()


class DatasetTask(Section):
    """Problems from a Hugging Face data set (needs the `datasets` package)."""

    kind: Literal["dataset"] = "dataset"
    name: str
    subset: str | None = None
    split: str = "train"
    heldout_split: str | None = "test"
    question: str | None = None
    answer: str | None = None
    judge: Literal["math", "exact", "number", "choice"] = "math"
    limit: Positive | None = None
    seed: int = 0
    prompt: PromptSettings = PromptSettings()


class GymTask(Section):
    """A procedural task of reasoning-gym, scored strictly."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    name: str
    """Name of the task, such as basic_arithmetic."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the task."""
    heldout: Positive = 128
    seed: int = 0
    prompt: PromptSettings = PromptSettings()


TaskSettings = Annotated[ChainTask | FileTask | DatasetTask | GymTask, Field(discriminator="kind")]
