"""`Recipe`: a whole run, and the settings that exclude each other across sections."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from treerl.config.credit import AdvantageSettings
from treerl.config.policy import PolicySettings, SamplerSettings
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
    policy: PolicySettings = PolicySettings()
    sampler: SamplerSettings = SamplerSettings()
    search: SearchSettings = CureSearch()
    verifier: VerifierSettings = VerifierSettings()
    replay: ReplaySettings = ReplaySettings()
    advantage: AdvantageSettings = AdvantageSettings()
    loss: LossSettings = LossSettings()
    update: UpdateSettings = UpdateSettings()
    eval: EvalSettings = EvalSettings()

    @model_validator(mode="after")
    def _compatible(self) -> Self:
        if self.loss.rollout_is != "none" and (self.sampler.top_p < 1 or self.sampler.top_k > 0):
            raise ValueError(
                "loss.rollout_is needs sampler.top_p = 1 and sampler.top_k = 0: log-probs of a "
                'truncated distribution are no importance weights; set loss.rollout_is = "none"'
            )
        if self.loss.rollout_is != "none" and self.update.old_logprobs == "sampler":
            raise ValueError(
                'update.old_logprobs = "sampler" makes loss.rollout_is count the mismatch twice: '
                'set loss.rollout_is = "none", or old_logprobs = "recompute"'
            )
        if self.replay.max_cached >= self.search.num_generations:
            raise ValueError(
                f"replay.max_cached = {self.replay.max_cached} must be below "
                f"search.num_generations = {self.search.num_generations}: fresh samples must remain"
            )
        return self
