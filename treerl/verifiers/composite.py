"""Several judgements of one completion, weighted: correctness plus format, for example.

The parts read the same extracted answer. `format` pays where the answer format occurs exactly once, so
that repeating the mark cannot earn it.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from treerl.verifiers.extract import AnswerFormat, count_occurrences


class Part(Protocol):
    """One weighted judgement; `treerl.config.FormatPart` is one."""

    @property
    def kind(self) -> str:
        """A judgement, or "format"."""

    @property
    def weight(self) -> float:
        """What its reward is multiplied with; the sum is not normalised."""


def format_reward(text: str, answer: str | None, answer_format: AnswerFormat) -> float:
    """1.0 where an answer was found and its format stands exactly once in the text, else 0.0."""
    return float(answer is not None and count_occurrences(text, answer_format) == 1)


def total(parts: Sequence[Part], rewards: Mapping[str, float]) -> float:
    """Sum over parts of weight times the reward of its kind."""
    return sum(part.weight * rewards[part.kind] for part in parts)
