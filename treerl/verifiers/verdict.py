"""`Completion` in, `Verdict` out: the types every judgement speaks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from treerl.problem import Problem

Outcome = Literal["scored", "skipped", "timeout", "error"]


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished answer: the whole response text (all spans of the path), and how it ended.

    `finish` is "stop" or "length"; `token_ids` are those of the response, without the prompt.
    """

    text: str
    finish: str = "stop"
    prompt: str = ""
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one completion. Only `scored` carries a reward.

    `answer` is what was extracted (None: nothing found); `detail` is a small JSON object for people.
    """

    outcome: Outcome
    reward: float | None = None
    answer: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if (self.outcome == "scored") != (self.reward is not None):
            raise ValueError(f"outcome {self.outcome!r} with reward {self.reward!r}")


Verify = Callable[[Sequence[Problem], Sequence[Completion]], list[Verdict]]
"""A batch of problems and completions to verdicts, in order."""
