"""`Problem`: one question with a verifiable answer. Shared by tasks, verifiers and the replay cache."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from treerl.canon import digest_hex


@dataclass(frozen=True)
class Problem:
    """A question, what counts as its answer, and the kind of judgement that decides.

    `kind` names the judgement family ("math", "choice", "chain", "reasoning_gym/basic_arithmetic", ...).
    `columns` are further columns of the data set, JSON values; they reach reward functions of users and
    are no part of the identity.
    """

    question: str
    truth: str
    kind: str
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def key(self) -> str:
        """Content key: digest of question, truth and kind."""
        return digest_hex("problem", self.question, self.truth, self.kind)
