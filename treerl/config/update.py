"""`[loss]` and `[update]`: the surrogate, its regularisers, and the optimizer."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from treerl.config.section import NonNegative, Positive, Section


class LossSettings(Section):
    """The surrogate and its regularisers (treerl.policy.losses)."""

    clip_ratio_low: Annotated[float, Field(ge=0)] = 0.2
    clip_ratio_high: Annotated[float, Field(ge=0)] = 0.28
    clip_ratio_c: Annotated[float, Field(gt=1)] | None = 10.0
    """Dual clip: cap of the ratio where the advantage is negative; None: no cap."""
    loss_agg_mode: Literal[
        "token-mean",
        "seq-mean-token-mean",
        "seq-mean-token-sum",
        "seq-mean-token-sum-norm",
    ] = "token-mean"
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL to the policy the run started from; 0: no reference is kept."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k2"
    entropy_coef: float = 0.0
    rollout_is: Literal["none", "token"] = "none"
    """Truncated importance weights between sampler and trainer (per token)."""
    rollout_is_threshold: Annotated[float, Field(gt=0)] = 2.0

    @model_validator(mode="after")
    def _dual_clip(self) -> Self:
        if self.clip_ratio_c is not None and self.clip_ratio_c <= 1 + self.clip_ratio_high:
            raise ValueError("clip_ratio_c must be above 1 + clip_ratio_high")
        return self


class UpdateSettings(Section):
    """The optimizer (AdamW)."""

    lr: Annotated[float, Field(gt=0)] = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: NonNegative = 0
    """Optimizer steps over which lr rises linearly."""
    lr_schedule: Literal["constant", "linear"] = "constant"
    """After the warm-up: constant, or falling linearly to 0 at the end of `max_steps`."""
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    num_iterations: Positive = 1
    """Passes over a step's trees."""
    mini_batches: Positive = 1
    """Optimizer steps a pass; trees are dealt out whole."""
    max_tokens_per_microbatch: Positive = 8192
    """Tokens of a forward and backward pass; a path must fit."""
    old_logprobs: Literal["recompute", "sampler"] = "recompute"
    """lp_old of the ratio: a forward pass of the trainer where one is needed, or what the sampler recorded
    (saves the pass; right where sampler and trainer agree to rounding, as in fp32 in one process)."""
    pack: Literal["tree", "flat"] = "tree"
    """tree: each tree token once. flat: one row a leaf (for comparison; another result is a bug)."""
