"""One problem and one completion to a verdict: extraction, then the judgement of the problem's kind.

Pure and without limits of its own: what may hang is called in a worker process (`workers.py`). Reward
functions of users are not here (`user.py`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from treerl.errors import ConfigError, DataError
from treerl.problem import Problem
from treerl.verifiers import chain, choice, composite, exact, math, number, reasoning_gym
from treerl.verifiers.extract import EXTRACTORS, AnswerFormat
from treerl.verifiers.verdict import Completion, Verdict

DEFAULT_FORMATS: Mapping[str, AnswerFormat] = {
    "math": "boxed",
    "exact": "whole",
    "number": "hash",
    "choice": "boxed",
    "chain": "last_segment",
    "reasoning_gym": "answer_tag",
}
"""Where an answer stands by default, for each kind of judgement."""

CHEAP = frozenset({"exact", "number", "choice", "chain", "format"})
"""Judgements that are linear in a short text and cannot hang."""

_REWARDS: Mapping[str, Callable[[str, str], float]] = {
    "math": math.reward,
    "exact": exact.reward,
    "number": number.reward,
    "choice": choice.reward,
    "chain": chain.reward,
}


class Settings(Protocol):
    """What of `treerl.config.VerifierSettings` decides a verdict."""

    @property
    def kind(self) -> str:
        """auto, a kind of judgement, composite or import."""

    @property
    def answer_format(self) -> str:
        """auto or a name in `extract.EXTRACTORS`."""

    @property
    def target(self) -> str | None:
        """A user's function."""

    @property
    def parts(self) -> Sequence[composite.Part]:
        """Parts of a composite."""


@dataclass(frozen=True, slots=True)
class PlainPart:
    """A `composite.Part` that travels to a worker."""

    kind: str
    weight: float


@dataclass(frozen=True, slots=True)
class Rules:
    """`Settings` without pydantic, so that a worker process need not import the recipe."""

    kind: str
    answer_format: str = "auto"
    target: str | None = None
    parts: tuple[PlainPart, ...] = ()


def rules_of(settings: Settings) -> Rules:
    """The part of the settings that decides verdicts. Raises ConfigError for an unknown name."""
    parts = tuple(PlainPart(part.kind, part.weight) for part in settings.parts)
    rules = Rules(settings.kind, settings.answer_format, settings.target, parts)
    if rules.kind not in {"auto", "composite", "import", *DEFAULT_FORMATS}:
        raise ConfigError(f"verifier.kind = {rules.kind!r} is none of {', '.join(DEFAULT_FORMATS)}")
    if rules.answer_format != "auto" and rules.answer_format not in EXTRACTORS:
        raise ConfigError(
            f"verifier.answer_format = {rules.answer_format!r} is none of {', '.join(EXTRACTORS)}"
        )
    return rules


def kind_of(problem: Problem, settings: Settings) -> str:
    """The judgement that applies: the settings', or with auto the problem's. Raises ConfigError."""
    if settings.kind != "auto":
        return settings.kind
    kind = problem.kind.partition("/")[0]
    if kind not in DEFAULT_FORMATS:
        raise ConfigError(
            f"no judgement for problems of kind {problem.kind!r}: set verifier.kind to one of "
            f'{", ".join(DEFAULT_FORMATS)}, or to "import" with a target'
        )
    return kind


def families(problem: Problem, settings: Settings) -> frozenset[str]:
    """Which of the expensive judgements ("math", "reasoning_gym") judging this problem needs."""
    kind = kind_of(problem, settings)
    kinds = {part.kind for part in settings.parts} if kind == "composite" else {kind}
    return frozenset(kinds - CHEAP)


def judge(problem: Problem, completion: Completion, settings: Settings) -> Verdict:
    """Extracts and judges. Nothing extracted: scored 0 with answer None. Bad truth: outcome error.

    Other exceptions are the caller's to turn into an error. Raises ConfigError for an unknown kind.
    """
    started = time.perf_counter()
    kind = kind_of(problem, settings)
    answer_format = _format_of(kind, settings)
    answer = EXTRACTORS[answer_format](completion.text)
    kinds = [part.kind for part in settings.parts] if kind == "composite" else [kind]
    detail: dict[str, Any] = {"kind": kind, "format": answer_format}
    try:
        rewards = {
            name: composite.format_reward(completion.text, answer, answer_format)
            if name == "format"
            else _reward(name, problem, answer)
            for name in kinds
        }
    except DataError as error:
        detail["reason"] = str(error)
        return Verdict("error", answer=answer, detail=detail, seconds=_since(started))
    if kind == "composite":
        detail["parts"] = rewards
        reward = composite.total(settings.parts, rewards)
    else:
        reward = rewards[kind]
    return Verdict("scored", reward, answer, detail, _since(started))


def _reward(kind: str, problem: Problem, answer: str | None) -> float:
    if answer is None:
        return 0.0
    if kind != "reasoning_gym":
        return _REWARDS[kind](problem.truth, answer)
    family, _, task = problem.kind.partition("/")
    if family != "reasoning_gym" or not task:
        raise DataError(
            f"a reasoning-gym problem has kind reasoning_gym/<task>, not {problem.kind!r}"
        )
    return reasoning_gym.reward(problem.truth, answer, task=task)


def _format_of(kind: str, settings: Settings) -> AnswerFormat:
    if settings.answer_format != "auto":
        return cast(AnswerFormat, settings.answer_format)
    if kind != "composite":
        return DEFAULT_FORMATS[kind]
    judged = (part.kind for part in settings.parts if part.kind in DEFAULT_FORMATS)
    return DEFAULT_FORMATS[next(judged, "math")]


def _since(started: float) -> float:
    return time.perf_counter() - started
