"""The curriculum of a run: which problems a step trains on, as phases that are chosen once and kept.

The plan (when phases begin) follows from the recipe; what a phase chose is a row in the store, so that a
resumed run goes on with it, and a checkpoint from before a phase takes the phase up instead of sampling for
it again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import assert_never

from treerl.canon import derive_seed
from treerl.config import (
    CurriculumSettings,
    DriveCurriculum,
    RoundsCurriculum,
    TaskOrder,
    VarianceCurriculum,
)
from treerl.engine.session import Session
from treerl.errors import ConfigError
from treerl.evaluate import evaluate
from treerl.problem import Problem
from treerl.replay.keys import VerifierRef
from treerl.replay.phases import Phase, phases, problems_of, put_phase
from treerl.replay.rates import Rate, rate_history
from treerl.replay.store import Store
from treerl.tasks.curriculum import hard, hardest, most_varied
from treerl.tasks.load import TaskData, epochs


def plan(settings: CurriculumSettings) -> list[int]:
    """The steps at which phases begin; none where the task's own order is kept."""
    match settings:
        case TaskOrder():
            return []
        case RoundsCurriculum():
            return [number * settings.steps_per_round for number in range(settings.rounds)]
        case DriveCurriculum():
            ends = accumulate(settings.steps[:-1], initial=settings.warm_steps)
            return [*([0] if settings.warm_steps else []), *ends]
        case VarianceCurriculum():
            return [0]
        case _:
            assert_never(settings)


def candidates(task: TaskData, count: int) -> list[Problem]:
    """The first `count` different training problems: of the finite set, or of the stream of step 0."""
    if task.train is not None:
        found = {problem.key: problem for problem in task.train}
    else:
        found = {problem.key: problem for problem in task.problems_for_step(0, count)}
    return list(found.values())[:count]


@dataclass
class Curriculum:
    """Gives the problems of each step of one run; chooses a phase when its first step comes."""

    session: Session
    store: Store
    verifier: VerifierRef
    run_id: str
    position: int

    def __post_init__(self) -> None:
        self.settings = self.session.recipe.curriculum
        self.starts = plan(self.settings)
        self._phases = phases(self.store, self.run_id) if self.starts else {}
        self._known: dict[str, Problem] = {}

    def problems(self, step: int, count: int) -> list[Problem]:
        """`count` training problems for `step`; each phase goes through its set in epochs."""
        if not self.starts:
            return self.session.task.problems_for_step(step, count)
        phase = self.phase(step)
        chosen = self._resolved(phase.problems)
        order = epochs(chosen, derive_seed(self.session.recipe.seed, "phase", phase.number))
        return order(step - self.starts[phase.number], count)

    def phase(self, step: int) -> Phase:
        """The phase of a step, chosen now if it was not."""
        number = sum(start <= step for start in self.starts) - 1
        if number not in self._phases:
            self._phases[number] = chosen = self._choose(number)
            put_phase(self.store, self.run_id, chosen)
        return self._phases[number]

    def metrics(self, step: int) -> dict[str, float]:
        """Number and size of the phase; at its first step what its choice saw and cost."""
        if not self.starts:
            return {}
        phase = self.phase(step)
        row: dict[str, float] = {
            "curriculum/phase": phase.number,
            "curriculum/problems": len(phase.problems),
        }
        if step == phase.step and phase.rates:
            right = sum(right for right, _ in phase.rates.values())
            tried = sum(count for _, count in phase.rates.values())
            row |= {
                "curriculum/candidates": len(phase.rates),
                "curriculum/candidate_rate": right / tried,
                "curriculum/screen_tokens": phase.generated_tokens,
            }
        return row

    def tokens_at(self, step: int) -> int:
        """Generated tokens that choosing the phase which begins at `step` cost, now or when it was chosen."""
        if step not in self.starts:
            return 0
        return self.phase(step).generated_tokens

    # Choices ---------------------------------------------------------------------------------------------

    def _choose(self, number: int) -> Phase:
        settings, start = self.settings, self.starts[number]
        match settings:
            case RoundsCurriculum():
                rates, tokens = self._screen(self._candidates(settings.problems), number)
                kept = hard(rates, max_rate=settings.max_rate, at_least=settings.min_problems)
            case DriveCurriculum():
                place = number - (1 if settings.warm_steps else 0)
                if place < 0:
                    found = self._candidates(settings.problems)
                    return Phase(number, start, settings.kind, tuple(p.key for p in found), {})
                rates, tokens = self._screen(self._before(number, settings), number)
                kept = hardest(rates, settings.keep[place])
            case VarianceCurriculum():
                return self._most_varied(settings)
            case TaskOrder():
                raise AssertionError("the task's own order has no phases")
            case _:
                assert_never(settings)
        seen = {key: (rate.right, rate.count) for key, rate in rates.items()}
        return Phase(number, start, settings.kind, tuple(kept), seen, tokens)

    def _before(self, number: int, settings: DriveCurriculum) -> list[Problem]:
        """What phase `number` chooses among: the phase before it, or all candidates."""
        if number == 0:
            return self._candidates(settings.problems)
        return self._resolved(self.phase(self.starts[number - 1]).problems)

    def _candidates(self, count: int) -> list[Problem]:
        found = candidates(self.session.task, count)
        self._known |= {problem.key: problem for problem in found}
        return found

    def _screen(self, problems: Sequence[Problem], number: int) -> tuple[dict[str, Rate], int]:
        """Pass rates of the policy as it is, of fresh responses, and the tokens these took."""
        recipe = self.session.recipe
        prompts = self.session.prompts(problems)
        if all(prompt is None for prompt in prompts):
            raise self.session.no_prompt_fits(f"the {len(problems)} candidates of the curriculum")
        pairs = [p for p in zip(problems, prompts, strict=True) if p[1] is not None]
        assert not isinstance(self.settings, TaskOrder | VarianceCurriculum)
        found = evaluate(
            [problem for problem, _ in pairs],
            [prompt for _, prompt in pairs],
            self.session.samplers.make(recipe.sampler),
            self.session.pool.verify,
            self.session.decode_text,
            num_samples=self.settings.screen_samples,
            max_completion_length=recipe.sampler.max_completion_length,
            seed=derive_seed(recipe.seed, "screen", number),
        )
        count = self.settings.screen_samples
        rates = {
            problem.key: Rate(int(right), count)
            for (problem, _), right in zip(pairs, found.right.sum(axis=1), strict=True)
        }
        return rates, found.generated_tokens

    def _most_varied(self, settings: VarianceCurriculum) -> Phase:
        run = next((run for run in self.store.runs() if run.name == settings.history_run), None)
        if run is None:
            raise ConfigError(
                f"curriculum.history_run = {settings.history_run!r}: the cache has no such run; "
                "`treerl replay ls runs` lists them"
            )
        histories = rate_history(self.store, run.id, verifier=self.verifier, position=self.position)
        heldout = {problem.key for problem in self.session.task.heldout}
        histories = {key: rates for key, rates in histories.items() if key not in heldout}
        kept = most_varied(
            histories,
            settings.problems,
            min_epochs=settings.min_epochs,
            subtract_noise=settings.subtract_noise,
        )
        if not kept:
            raise ConfigError(
                f"curriculum.history_run = {settings.history_run!r} tried no training problem at "
                f"{settings.min_epochs} steps: give a run over a finite set that went through it so often"
            )
        totals = {key: histories[key] for key in kept}
        seen = {k: (sum(r.right for r in h), sum(r.count for r in h)) for k, h in totals.items()}
        return Phase(0, 0, settings.kind, tuple(kept), seen)

    def _resolved(self, keys: Sequence[str]) -> list[Problem]:
        """Problems by key: from the task, else from the store."""
        missing = [key for key in keys if key not in self._known]
        if missing and not isinstance(self.settings, TaskOrder | VarianceCurriculum):
            self._candidates(self.settings.problems)
            missing = [key for key in keys if key not in self._known]
        if missing:
            self._known |= problems_of(self.store, missing)
        lost = [key for key in keys if key not in self._known]
        if lost:
            raise ConfigError(
                f"{len(lost)} problems that this run's curriculum chose are not in the task any more, such as "
                f"{lost[0]}: give back the data it began with, or start a new run"
            )
        return [self._known[key] for key in keys]
