"""`[eval]` and `[run]`: evaluation on held-out problems, and where a run lives."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from treerl.config.section import NonNegative, Positive, Section


class EvalSettings(Section):
    """Evaluation on held-out problems."""

    every: NonNegative = 0
    """Steps between evaluations; 0: only before and after."""
    problems: Positive = 256
    num_samples: Positive = 8
    k: tuple[Positive, ...] = (1, 8)
    """pass@k, unbiased; each at most num_samples."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    greedy: bool = True
    """Also report greedy accuracy."""
    seed: int = 1234
    """Fixed, so that evaluations of one run and of several compare."""

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.k and max(self.k) > self.num_samples:
            raise ValueError(f"k = {max(self.k)} is above num_samples = {self.num_samples}")
        return self


class RunSettings(Section):
    """Where a run lives."""

    name: str | None = None
    """Name of the run; None: recipe name and seed."""
    output_dir: str = "runs/{name}"
    checkpoint_every: NonNegative = 0
    """Steps between checkpoints; 0: only at the end."""
    keep_checkpoints: Positive = 2
