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
    rollout_is: Literal["none", "token", "sequence"] = "token"
    """Detached importance weights trainer / sampler: one a token, or one a leaf (product over its tokens)."""
    rollout_is_mode: Literal["truncate", "mask"] = "truncate"
    """A weight over the threshold is cut to it, or its token (leaf) leaves the update and its denominator."""
    rollout_is_threshold: Annotated[float, Field(gt=0)] | str = 2.0
    """Largest weight; with `mask` also a band, "0.5_5.0" (IcePop): outside it the token (leaf) leaves."""
    replay_is: Literal["truncate", "ratio", "none"] = "truncate"
    """Correction of tokens from the replay cache by the log-probs stored with them. truncate: detached weights
    policy / drawer, one a token, cut at `replay_is_threshold`; the clip band lies around the policy at the
    start of the update. ratio: the clipped ratio itself is taken to the drawer (SPO), so the band lies around
    a policy of long ago. none: no correction (DeepSearch's release), for comparison."""
    replay_is_threshold: Annotated[float, Field(gt=0)] = 2.0
    """Largest weight of a cached token."""

    @property
    def rollout_is_band(self) -> tuple[float, float]:
        """Smallest and largest importance weight; the smallest is 0 unless a band is set."""
        if isinstance(self.rollout_is_threshold, str):
            low, _, high = self.rollout_is_threshold.partition("_")
            return float(low), float(high)
        return 0.0, self.rollout_is_threshold

    @property
    def weighs_in_loss(self) -> bool:
        """Weights that multiply each token's surrogate; all others are part of the masses (treerl.credit)."""
        return self.rollout_is == "token" and self.rollout_is_mode == "truncate"

    @model_validator(mode="after")
    def _dual_clip(self) -> Self:
        if self.clip_ratio_c is not None and self.clip_ratio_c <= 1 + self.clip_ratio_high:
            raise ValueError("clip_ratio_c must be above 1 + clip_ratio_high")
        return self

    @model_validator(mode="after")
    def _band(self) -> Self:
        given = self.rollout_is_threshold
        try:
            low, high = self.rollout_is_band
        except ValueError:
            low, high = 0.0, 0.0
        if not 0 <= low < high:
            raise ValueError(
                f'rollout_is_threshold = {given!r} is neither a number nor a band "low_high"'
            )
        if self.rollout_is_mode == "mask" and not low <= 1 <= high:
            raise ValueError(
                f"rollout_is_threshold = {given!r} leaves out the weight 1 of samples that are on-policy: "
                "1 must lie within it"
            )
        if self.rollout_is_mode == "truncate" and isinstance(given, str):
            raise ValueError(
                f'rollout_is_threshold = "{given}" is a band, which masks: set rollout_is_mode = "mask", '
                "or give one number"
            )
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
    check_handover: bool = True
    """After each update, prove that the sampler serves the new weights with nothing cached; stop otherwise."""
    pack: Literal["tree", "flat"] = "tree"
    """tree: each tree token once. flat: one row a leaf (for comparison; another result is a bug)."""
