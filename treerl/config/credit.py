"""`[advantage]`: how a judged tree becomes advantages."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from treerl.config.section import Positive, Section


class AdvantageSettings(Section):
    """How a judged tree becomes advantages (treerl.credit)."""

    estimator: Literal[
        "grpo",
        "dr_grpo",
        "rloo",
        "tree_value",
        "sibling_rloo",
        "deepsearch",
        "prl",
        "frpo",
        "implicit_prm",
        "implicit_value",
    ] = "tree_value"
    scale_rewards: Literal["group", "batch", "none"] | None = None
    """Divide by the std of the group (GRPO), the batch, or not; None: the estimator's own."""
    std_ddof: Literal[0, 1] = 1
    node_weight: Literal["n", "sqrt_n", "one"] | None = None
    """c(u), weight of a shared token; None: n for leaf-row estimators, one for node estimators."""
    reward_low: float = 0.0
    """Reward 0 maps to this (DeepSearch and CURE: -1)."""
    zero_variance: Literal["drop", "keep"] = "drop"
    """Trees whose verdicts are all equal leave the batch before batch statistics, or stay."""
    cached_baseline: Literal["in", "out"] = "in"
    """Whether cached rows are in the means and spreads that rows are compared with (DeepSearch, R^3), or are
    only compared with those of fresh ones: then fresh rows learn as if the cache were empty."""
    rms_scale: bool = False
    """Divide all advantages by their root mean square over the batch's trained tokens (keeps the sign)."""
    faithful: bool = False
    """deepsearch: tanh node scores minus the mean leaf score as released; breaks both invariants."""
    beta: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the dense part: 1/eta of PRL, beta of FRPO and of implicit rewards."""
    step_tokens: Positive = 1
    """prl: tokens of a step; a step also ends at each node's end."""

    @model_validator(mode="after")
    def _one_normaliser(self) -> Self:
        if self.rms_scale and self.scale_rewards in ("group", "batch"):
            raise ValueError(
                f"rms_scale = true and scale_rewards = {self.scale_rewards!r} are two normalisers: "
                "set one of them"
            )
        if self.faithful and self.cached_baseline == "out":
            raise ValueError(
                'cached_baseline = "out" does not go with faithful = true: the released scores are '
                "compared with the mean of all leaves; set one of them"
            )
        return self
