"""`Recipe`: a whole run, and the settings that exclude each other across sections."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from treerl.config.credit import AdvantageSettings
from treerl.config.curriculum import CurriculumSettings, DriveCurriculum, TaskOrder
from treerl.config.policy import (
    AnySampler,
    PolicySettings,
    TransformersSettings,
    check_vllm_temperature,
)
from treerl.config.replay import ReplaySettings
from treerl.config.run import EvalSettings, RunSettings
from treerl.config.search import CureSearch, SearchSettings
from treerl.config.section import Positive, Section
from treerl.config.task import ChainTask, TaskSettings
from treerl.config.update import LossSettings, UpdateSettings
from treerl.config.verifier import VerifierSettings


class Recipe(Section):
    """A whole run."""

    seed: int = 0
    max_steps: Positive = 100
    """Optimizer steps of the run: one search, one update each."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Stop after this much search and training time (evaluation not counted)."""
    deterministic: bool = True
    """Verdicts are taken in a fixed order before the sampler goes on, so that a run repeats to the bit on one
    device; false: the sampler never waits for a verdict, and rounding may depend on timing."""
    run: RunSettings = RunSettings()
    task: TaskSettings = ChainTask()
    curriculum: CurriculumSettings = TaskOrder()
    policy: PolicySettings = PolicySettings()
    sampler: AnySampler = TransformersSettings()
    search: SearchSettings = CureSearch()
    verifier: VerifierSettings = VerifierSettings()
    replay: ReplaySettings = ReplaySettings()
    advantage: AdvantageSettings = AdvantageSettings()
    loss: LossSettings = LossSettings()
    update: UpdateSettings = UpdateSettings()
    eval: EvalSettings = EvalSettings()

    @model_validator(mode="after")
    def _compatible(self) -> Self:
        if self.sampler.top_p < 1 or self.sampler.top_k > 0:
            self._refuse_truncated()
        if self.loss.rollout_is != "none" and self.update.old_logprobs == "sampler":
            raise ValueError(
                'update.old_logprobs = "sampler" makes loss.rollout_is count the mismatch twice: '
                'set loss.rollout_is = "none", or old_logprobs = "recompute"'
            )
        if self.sampler.kind == "vllm":
            check_vllm_temperature("eval.temperature", self.eval.temperature)
        if self.replay.max_cached >= self.search.num_generations:
            raise ValueError(
                f"replay.max_cached = {self.replay.max_cached} must be below "
                f"search.num_generations = {self.search.num_generations}: fresh samples must remain"
            )
        if isinstance(self.curriculum, DriveCurriculum) and self.advantage.zero_variance == "drop":
            raise ValueError(
                'curriculum.kind = "drive" keeps the problems that are never solved, and '
                'advantage.zero_variance = "drop" drops them again: set zero_variance = "keep"'
            )
        return self

    def _refuse_truncated(self) -> None:
        """top_p and top_k: the sampler's log-prob is that of the renormalised nucleus, the trainer's is not."""
        if self.loss.rollout_is != "none":
            raise ValueError(
                "loss.rollout_is needs sampler.top_p = 1 and sampler.top_k = 0: log-probs of a truncated "
                "distribution give weights that tell the mass cut off, not the mismatch; "
                'set loss.rollout_is = "none", or truncate nothing'
            )
        if self.update.old_logprobs == "sampler":
            raise ValueError(
                'update.old_logprobs = "sampler" needs sampler.top_p = 1 and sampler.top_k = 0: log-probs of a '
                "truncated distribution make every ratio wrong by the mass cut off; set old_logprobs = "
                '"recompute", or truncate nothing'
            )
        if self.replay.trains_on_cached and self.loss.replay_is != "none":
            raise ValueError(
                f'loss.replay_is = "{self.loss.replay_is}" needs sampler.top_p = 1 and sampler.top_k = 0: '
                "stored log-probs of a truncated distribution give weights that tell the mass cut off; set "
                'loss.replay_is = "none" (no correction), use no cached rows, or truncate nothing'
            )
