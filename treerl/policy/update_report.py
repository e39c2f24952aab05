"""`UpdateReport`: what one policy update did, and its numbers for the metrics file."""

import math
from dataclasses import dataclass, field

from treerl.policy.loss_sums import LossSums
from treerl.policy.optimizer import StepInfo


@dataclass(slots=True)
class TokenCounts:
    """Tokens of one pass over the step's trees.

    trained: unique tokens that took the loss. packed: tokens run forward and backward (prompts, and paths
    repeated between the parts of a tree, included). slots: the same with padding. flat: what separate rows of
    the same leaves would have run.
    """

    trained: int = 0
    packed: int = 0
    slots: int = 0
    flat: int = 0

    @property
    def tree_token_ratio(self) -> float:
        """flat / packed: how often each token would have been run without sharing."""
        return self.flat / self.packed if self.packed else float("nan")


@dataclass(slots=True)
class UpdateReport:
    """What `update_policy` did.

    skipped: mini-batches without any gradient (every mass 0), for which no step was taken. trees_trained:
    trees that carried a gradient. steps: gradient norm and learning rate of each step. first: diagnostics of
    the first optimizer step alone, where ratios of fresh tokens are 1. sampled_entropy: mean entropy that
    the sampler saw (temperature 1); it is `entropy` of the metrics where the loss computes none. seconds: by
    phase (pack, old, reference, forward, backward, optimizer).
    """

    trees: int = 0
    trees_trained: int = 0
    skipped: int = 0
    iterations: int = 1
    steps: list[StepInfo] = field(default_factory=list)
    sums: LossSums = field(default_factory=LossSums)
    first: LossSums = field(default_factory=LossSums)
    sampled_entropy: float = float("nan")
    tokens: TokenCounts = field(default_factory=TokenCounts)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_trained(self) -> int:
        """Tokens that took the loss, over all iterations."""
        return self.tokens.trained * self.iterations

    def metrics(self) -> dict[str, float]:
        """Numbers for the metrics file; those of the loss are absent if no step was taken."""
        values = {
            "train/optimizer_steps": float(len(self.steps)),
            "train/skipped_steps": float(self.skipped),
            "train/trees": float(self.trees_trained),
            "train/tokens_trained": float(self.tokens_trained),
            "train/tokens_packed": float(self.tokens.packed * self.iterations),
            "train/tokens_padded": float(self.tokens.slots * self.iterations),
            "train/tokens_flat": float(self.tokens.flat * self.iterations),
        }
        if self.tokens.packed:
            values["train/tree_token_ratio"] = self.tokens.tree_token_ratio
        values |= {f"time/update_{name}": value for name, value in self.seconds.items()}
        if self.steps:
            norms = [step.grad_norm for step in self.steps]
            values |= {
                "loss": self.sums.loss / len(self.steps),
                "grad_norm": sum(norms) / len(norms),
                "train/grad_norm_max": max(norms),
                "learning_rate": self.steps[-1].lr,
                "train/first_ratio_out_of_band": self.first.out_of_band / self.first.tokens,
                **self.sums.metrics(),
            }
            if not math.isnan(self.sampled_entropy):
                values.setdefault("entropy", self.sampled_entropy)
        return values
