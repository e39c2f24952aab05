"""From the recipe's [task] to problems: which to train on at a step, which are held out.

The problems of a step are a pure function of (settings, step, n), so that a resumed run sees what the
unbroken one would have seen. Held-out problems are kept out of training by content in every kind of task.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from treerl.canon import generator
from treerl.config import ChainTask, DatasetTask, FileTask, GymTask
from treerl.errors import DataError
from treerl.problem import Problem
from treerl.tasks import chain, gym
from treerl.tasks.files import Loaded, load_file
from treerl.tasks.hub import load_hub


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task ready to train on.

    `problems_for_step(step, n)` gives n training problems. `train` is the finite training set, None where
    problems are unlimited. `mapping` is one line for the user; `skipped` counts malformed lines, and
    `overlapping` training problems left out because they are held out too.
    """

    problems_for_step: Callable[[int, int], list[Problem]]
    heldout: tuple[Problem, ...]
    mapping: str
    train: tuple[Problem, ...] | None = None
    skipped: int = 0
    overlapping: int = 0


def load_task(settings: ChainTask | FileTask | DatasetTask | GymTask) -> TaskData:
    """Reads or sets up the task. Raises ConfigError or DataError."""
    match settings:
        case ChainTask():
            return _load_chain(settings)
        case FileTask():
            return _load_file(settings)
        case DatasetTask():
            return _load_dataset(settings)
        case GymTask():
            return _load_gym(settings)
        case _:
            assert_never(settings)


def _load_chain(settings: ChainTask) -> TaskData:
    operators = (settings.min_operators, settings.max_operators)
    chain.require_operators(operators)

    def problems_for_step(step: int, n: int) -> list[Problem]:
        return list(islice(chain.problem_stream("train", operators, settings.seed, step), n))

    heldout = tuple(islice(chain.problem_stream("heldout", operators, 0), settings.heldout))
    mapping = f"chain: made from seed {settings.seed}, {operators[0]} to {operators[1]} operators"
    return TaskData(problems_for_step, heldout, mapping)


def _load_file(settings: FileTask) -> TaskData:
    def read(path: str) -> Loaded:
        return load_file(
            Path(path).expanduser(),
            judge=settings.judge,
            question=settings.question,
            answer=settings.answer,
            skip_malformed=settings.skip_malformed,
        )

    loaded = read(settings.path)
    other = read(settings.heldout_path) if settings.heldout_path else None
    if other is None and settings.heldout >= len(loaded.problems):
        raise DataError(
            f"{settings.path}: task.heldout = {settings.heldout} leaves none of its "
            f"{len(loaded.problems)} problems for training"
        )
    train, heldout = loaded.problems, other.problems if other else ()
    if other is None and settings.heldout:
        train, heldout = train[: -settings.heldout], train[-settings.heldout :]
    return _finite(
        train[: settings.limit],
        heldout,
        seed=settings.seed,
        mapping=str(loaded.mapping),
        skipped=loaded.skipped + (other.skipped if other else 0),
    )


def _load_dataset(settings: DatasetTask) -> TaskData:
    def read(split: str) -> Loaded:
        return load_hub(
            settings.name,
            split,
            subset=settings.subset,
            judge=settings.judge,
            question=settings.question,
            answer=settings.answer,
        )

    loaded = read(settings.split)
    heldout = read(settings.heldout_split).problems if settings.heldout_split else ()
    train = loaded.problems[: settings.limit]
    return _finite(train, heldout, seed=settings.seed, mapping=str(loaded.mapping))


def _load_gym(settings: GymTask) -> TaskData:
    own = settings.settings
    heldout = tuple(
        gym.draw(settings.name, settings.heldout, "heldout", settings=own, distinct=True)
    )
    gym.require_rescorable(settings.name, heldout[0])
    questions = frozenset(problem.question for problem in heldout)

    def problems_for_step(step: int, n: int) -> list[Problem]:
        return gym.draw(
            settings.name, n, "train", settings.seed, step, settings=own, exclude=questions
        )

    mapping = f"reasoning-gym {settings.name}: made from seed {settings.seed}"
    return TaskData(problems_for_step, heldout, mapping)


def _finite(
    train: Sequence[Problem],
    heldout: Sequence[Problem],
    *,
    seed: int,
    mapping: str,
    skipped: int = 0,
) -> TaskData:
    questions = {problem.question for problem in heldout}
    kept = tuple(problem for problem in train if problem.question not in questions)
    if not kept:
        raise DataError(f"{mapping}: every training problem is also held out")
    return TaskData(
        problems_for_step=epochs(kept, seed),
        heldout=tuple(heldout),
        mapping=mapping,
        train=kept,
        skipped=skipped,
        overlapping=len(train) - len(kept),
    )


def epochs(problems: Sequence[Problem], seed: int) -> Callable[[int, int], list[Problem]]:
    """Draws without replacement, each epoch in an order of its own; step s has places s n .. s n + n - 1."""
    size = len(problems)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> NDArray[np.int64]:
        return generator("epoch", seed, epoch).permutation(size)

    def problems_for_step(step: int, n: int) -> list[Problem]:
        places = range(step * n, (step + 1) * n)
        return [problems[order(place // size)[place % size]] for place in places]

    return problems_for_step
