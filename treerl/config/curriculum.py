"""`[curriculum]`: which problems a step trains on, where the task's own order is not wanted."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from treerl.config.section import Fraction, NonNegative, Positive, Section


class TaskOrder(Section):
    """The order of the task: every problem in turn."""

    kind: Literal["task"] = "task"


class Screened(Section):
    """What curricula share that sample the candidates before they choose."""

    problems: Positive = 512
    """Candidates: the first so many different problems that the task gives."""
    screen_samples: Positive = 4
    """Full responses a candidate gets before each choice, drawn and judged as in training, not trained on."""


class RoundsCurriculum(Screened):
    """Adaptive training rounds (DeepSearch, arXiv 2509.25454): each round trains on what the policy of its
    start fails, found by sampling every candidate."""

    kind: Literal["rounds"] = "rounds"
    rounds: Positive = 2
    """Rounds; the last one goes on to the end of the run."""
    steps_per_round: Positive = 100
    max_rate: Fraction = 0.25
    """A candidate is hard if at most this share of its screening samples is right."""
    min_problems: Positive = 1
    """If fewer are hard, the lowest rates fill up."""


class DriveCurriculum(Screened):
    """Hard-focus phases (DRIVE, arXiv 2511.06307): all candidates first, then fewer and fewer, the hardest
    by the pass rate of the policy at the start of each phase."""

    kind: Literal["drive"] = "drive"
    warm_steps: NonNegative = 32
    """Steps on all candidates before the first choice."""
    keep: tuple[Positive, ...] = (72, 50, 25)
    """Problems of each phase, chosen among those of the phase before it."""
    steps: tuple[Positive, ...] = (64, 32, 32)
    """Steps of each phase; the last one goes on to the end of the run."""

    @model_validator(mode="after")
    def _shrinks(self) -> Self:
        if len(self.keep) != len(self.steps) or not self.keep:
            raise ValueError(
                f"keep has {len(self.keep)} phases, steps {len(self.steps)}: give one of each a phase"
            )
        sizes = (self.problems, *self.keep)
        if any(later > earlier for earlier, later in pairwise(sizes)):
            raise ValueError(
                f"keep = {list(self.keep)} must not grow, nor be above problems = {self.problems}"
            )
        return self


class VarianceCurriculum(Section):
    """The problems whose pass rate varied most over an earlier run (One-Shot RLVR, arXiv 2504.20571)."""

    kind: Literal["variance"] = "variance"
    history_run: str
    """Name of the run in the cache whose pass rates are read; it met each problem at several steps."""
    problems: Positive = 1
    """Problems kept, those of the largest score."""
    min_epochs: Annotated[int, Field(ge=2)] = 2
    """Steps at which a problem must have been tried."""
    subtract_noise: bool = True
    """Score the variance beyond that of sampling: unbiased variance less mean p(1-p)/(n-1)."""


CurriculumSettings = Annotated[
    TaskOrder | RoundsCurriculum | DriveCurriculum | VarianceCurriculum, Field(discriminator="kind")
]
