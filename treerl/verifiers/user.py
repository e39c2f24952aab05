"""Reward functions of users, unmodified, by the names of their parameters.

Two published shapes are accepted: TRL's (a batch: prompts, completions, completion_ids, columns of the
data set as keywords, a float or None each, sync or async) and verl's (one sample: data_source,
solution_str, ground_truth, extra_info, a float or a dict with "score"). None is `skipped`, an exception
or a reward that is no finite number is `error`; neither is ever 0. `trainer_state` is None: a function
that needs it says so by failing. Called in a worker process (`workers.py`), where what it prints goes to
stderr.
"""

import asyncio
import importlib
import importlib.util
import inspect
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from treerl.errors import ConfigError
from treerl.problem import Problem
from treerl.verifiers.verdict import Completion, Verdict

SHAPES = (
    "TRL: f(prompts, completions, completion_ids, **columns) -> list[float | None]; "
    "verl: f(data_source, solution_str, ground_truth, extra_info=None) -> float | dict"
)
_TRUTH_NAMES = ("answer", "solution", "ground_truth", "truth", "label")


@dataclass(frozen=True, slots=True)
class UserReward:
    """A loaded function. `shape` "batch" is called once with everything, "item" once a completion."""

    function: Callable[..., Any]
    shape: Literal["batch", "item"]
    names: frozenset[str]
    takes_any: bool

    def judge(
        self, problems: Sequence[Problem], completions: Sequence[Completion]
    ) -> list[Verdict]:
        """Verdicts in order; never raises for what the function does wrong."""
        started = time.perf_counter()
        if self.shape == "item":
            return [self._judge_one(*pair) for pair in zip(problems, completions, strict=True)]
        verdicts = _guarded(lambda: self._judge_batch(problems, completions), len(problems))
        seconds = (time.perf_counter() - started) / max(1, len(problems))
        return [replace(verdict, seconds=seconds) for verdict in verdicts]

    def _judge_one(self, problem: Problem, completion: Completion) -> Verdict:
        started = time.perf_counter()
        columns = problem.columns
        nested = columns.get("reward_model")
        truth = nested.get("ground_truth") if isinstance(nested, Mapping) else None
        arguments = {
            "data_source": columns.get("data_source", problem.kind),
            "solution_str": completion.text,
            "ground_truth": columns.get("ground_truth", problem.truth) if truth is None else truth,
            "extra_info": columns.get("extra_info"),
        }
        verdict = _guarded(lambda: [_verdict(self._call(arguments))], 1)[0]
        return replace(verdict, seconds=time.perf_counter() - started)

    def _judge_batch(
        self, problems: Sequence[Problem], completions: Sequence[Completion]
    ) -> list[Verdict]:
        extras: list[dict[str, Any]] = [{} for _ in problems]
        metrics: dict[str, float] = {}

        def log_extra(column: str, values: Sequence[Any]) -> None:
            for extra, value in zip(extras, values, strict=True):
                extra[column] = _plain(value)

        def log_metric(name: str, value: float) -> None:
            metrics[name] = float(value)

        arguments: dict[str, Any] = {}
        arguments |= _batch_columns(problems, None if self.takes_any else self.names)
        arguments |= _chat_or_text(problems, completions)
        arguments |= {
            "completion_ids": [list(completion.token_ids) for completion in completions],
            "trainer_state": None,
            "log_extra": log_extra,
            "log_metric": log_metric,
        }
        rewards = self._call(arguments)
        rewards = rewards.tolist() if hasattr(rewards, "tolist") else rewards
        if not isinstance(rewards, Sequence) or len(rewards) != len(problems):
            raise TypeError(f"expected a list of {len(problems)} rewards, got {_describe(rewards)}")
        found = [_verdict(reward) for reward in rewards]
        return [
            replace(
                verdict,
                detail={**verdict.detail, **_named("extra", extra), **_named("metrics", metrics)},
            )
            for verdict, extra in zip(found, extras, strict=True)
        ]

    def _call(self, arguments: Mapping[str, Any]) -> Any:
        known = {
            key: value for key, value in arguments.items() if self.takes_any or key in self.names
        }
        result = self.function(**known)
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


def load(target: str) -> UserReward:
    """Imports `path/file.py:function` or `package.module:function`. Raises ConfigError."""
    function = _resolve(target)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"verifier.target {target}: no signature to read. Accepted: {SHAPES}"
        ) from error
    names = frozenset(parameter.name for parameter in parameters)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if {"solution_str", "ground_truth"} <= names:
        return UserReward(function, "item", names, takes_any)
    if "completions" in names and "prompt_ids" not in names:
        return UserReward(function, "batch", names, takes_any)
    raise ConfigError(
        f"verifier.target {target} takes ({', '.join(sorted(names))}), which is no signature that is "
        f"known here. Accepted: {SHAPES}"
    )


def split_target(target: str) -> tuple[str, str]:
    """File or module, and the function's name. Raises ConfigError, also for a file that is not there."""
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise ConfigError(
            f'verifier.target = {target!r}: write "file.py:function" or "module:function"'
        )
    if place.endswith(".py") and not Path(place).is_file():
        raise ConfigError(f"verifier.target: no file {place}")
    return place, name


def _resolve(target: str) -> Callable[..., Any]:
    place, name = split_target(target)
    try:
        module = (
            _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        )
    except Exception as error:  # whatever the user's module raises while it is imported
        raise ConfigError(f"verifier.target {target}: {_describe_error(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"verifier.target {target}: {place} has no function {name!r}")
    found: Callable[..., Any] = function
    return found


def _load_file(path: Path) -> Any:
    path = path.resolve()
    sys.path.insert(0, str(path.parent))  # files beside it, as when it is run as a script
    name = f"treerl_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _guarded(call: Callable[[], list[Verdict]], count: int) -> list[Verdict]:
    try:
        return call()
    except Exception as error:  # noqa: BLE001  a boundary: the user's error is data here
        return [Verdict("error", detail={"reason": _describe_error(error)})] * count


def _batch_columns(
    problems: Sequence[Problem], names: frozenset[str] | None
) -> dict[str, list[Any]]:
    """Columns of the data set, a list each; the truth under the usual names where a column lacks."""
    keys = dict.fromkeys(key for problem in problems for key in problem.columns)
    columns = {key: [problem.columns.get(key) for problem in problems] for key in keys}
    for name in _TRUTH_NAMES:
        if name not in columns and (names is None or name in names):
            columns[name] = [problem.truth for problem in problems]
    return columns


def _chat_or_text(
    problems: Sequence[Problem], completions: Sequence[Completion]
) -> dict[str, list[Any]]:
    """Message lists where the data set's prompts are, else texts."""
    prompts = [problem.columns.get("prompt") for problem in problems]
    texts = [completion.text for completion in completions]
    if prompts and all(isinstance(prompt, list) for prompt in prompts):
        return {
            "prompts": prompts,
            "completions": [[{"role": "assistant", "content": text}] for text in texts],
        }
    plain = [
        prompt if isinstance(prompt, str) else completion.prompt or problem.question
        for prompt, completion, problem in zip(prompts, completions, problems, strict=True)
    ]
    return {"prompts": plain, "completions": texts}


def _verdict(result: Any) -> Verdict:
    detail: dict[str, Any] = {}
    if isinstance(result, Mapping):
        detail = {str(key): _plain(value) for key, value in result.items() if key != "score"}
        if "score" not in result:
            raise TypeError(f"the dict returned has no 'score', only {sorted(map(str, result))}")
        result = result["score"]
    if result is None:
        return Verdict("skipped", detail=detail)
    reward = float(result)
    if not math.isfinite(reward):
        return Verdict("error", detail={**detail, "reason": f"reward {reward} is not finite"})
    return Verdict("scored", reward, detail=detail)


def _named(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dict(values)} if values else {}


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str | None) else str(value)[:200]


def _describe(value: Any) -> str:
    size = f" of length {len(value)}" if isinstance(value, Sequence) else ""
    return f"{type(value).__name__}{size}"


def _describe_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


async def _awaited(result: Any) -> Any:
    return await result
