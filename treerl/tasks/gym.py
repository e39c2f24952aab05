"""Problems of reasoning-gym's procedural tasks, deterministic by seed.

`truth` is the entry as treerl.verifiers.reasoning_gym encodes it: all that a worker needs to score an answer
strictly. Training problems never equal a held-out one: the held-out set is fixed by the task's name and
settings and left out by content.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from treerl.canon import canonical_json, derive_seed
from treerl.errors import ConfigError, DataError
from treerl.problem import Problem
from treerl.verifiers.reasoning_gym import decode, encode, reward

_HASH_DEPENDENT = frozenset(
    {
        "isomorphic_strings",
        "list_functions",
        "polynomial_multiplication",
        "ransom_note",
        "word_ladder",
    }
)
"""Tasks that iterate over sets of strings: other problems in every process unless string hashes are fixed."""

_ATTEMPTS = 20
"""Fresh batches drawn before a task is said to have too few distinct problems."""


def kind(name: str) -> str:
    """The `Problem.kind` of a task."""
    return f"reasoning_gym/{name}"


def draw(
    name: str,
    count: int,
    *seed: str | int,
    settings: Mapping[str, Any] | None = None,
    exclude: frozenset[str] = frozenset(),
    distinct: bool = False,
) -> list[Problem]:
    """`count` problems, a pure function of the arguments; none whose question is in `exclude`.

    Raises ConfigError for an unknown task or settings it refuses, DataError for a task that has too few
    other problems.
    """
    settings = settings or {}
    problems: list[Problem] = []
    seen = set(exclude)
    for attempt in range(_ATTEMPTS):
        parts = (name, canonical_json(settings), *seed, attempt)
        # 31 bits: some tasks hand the seed to generators that take no more.
        entries = _entries(name, settings, derive_seed("reasoning_gym", *parts) >> 32, 2 * count)
        for entry in entries:
            if entry["question"] in seen:
                continue
            if distinct:
                seen.add(entry["question"])
            problems.append(_problem(name, entry))
            if len(problems) == count:
                return problems
    raise DataError(
        f"reasoning-gym task {name}: only {len(problems)} of {count} problems found that are not held "
        "out; lower task.heldout or widen task.settings"
    )


def _entries(
    name: str, settings: Mapping[str, Any], seed: int, size: int
) -> Iterator[dict[str, Any]]:
    from reasoning_gym import factory  # takes a second to import

    if name not in factory.DATASETS:
        raise ConfigError(f"task.name = {name!r}: reasoning-gym has no such task")
    if name in _HASH_DEPENDENT and os.environ.get("PYTHONHASHSEED", "random") == "random":
        raise ConfigError(
            f"reasoning-gym task {name} makes other problems in every process, so that a run could not be "
            "resumed: set PYTHONHASHSEED=0 in the environment, or choose another task"
        )
    owned = settings.keys() & {"seed", "size"}
    if owned:
        raise ConfigError(
            f"task.settings may not hold {' or '.join(sorted(owned))}: the order of problems is named by "
            "task.seed, and there are as many as the run needs"
        )
    try:
        dataset = factory.create_dataset(name, **{**settings, "seed": seed, "size": size})
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"task.settings of reasoning-gym task {name}: {error}") from None
    try:
        for index in range(size):
            yield dataset[index]
    except IndexError:  # a task that ran out of problems early
        return


def _problem(name: str, entry: dict[str, Any]) -> Problem:
    return Problem(entry["question"], encode(entry), kind(name))


def require_rescorable(name: str, problem: Problem) -> None:
    """Raises DataError if the strict judge does not accept the answer that came with the problem.

    The judge sees the entry only, not the task's settings: settings that change how an answer is written
    would make every answer wrong.
    """
    answer = decode(problem.truth)["answer"]
    if isinstance(answer, str) and reward(problem.truth, answer, task=name) != 1.0:
        raise DataError(
            f"reasoning-gym task {name}: its judge does not accept the task's own answer "
            f"{answer[:60]!r}; choose other task.settings or another task"
        )
