"""Evaluation of a session's policy on its held-out problems, sampled and greedy; `treerl eval`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from treerl.config import Recipe
from treerl.engine.display import Display
from treerl.engine.guard import GuardedSampler
from treerl.engine.session import Session
from treerl.errors import ConfigError
from treerl.evaluate import Evaluation, evaluate
from treerl.inspect.render import render_mapping


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A sampled evaluation and, if asked for, the greedy one of the same problems."""

    sampled: Evaluation
    greedy: Evaluation | None

    def metrics(self, ks: tuple[int, ...]) -> dict[str, float]:
        """Flat metrics, `eval/...`."""
        out = self.sampled.metrics(ks)
        if self.greedy is not None:
            out["eval/greedy"] = float(self.greedy.accuracy.mean())
        if self.sampled.dropped_prompts:
            out["eval/dropped_prompts"] = self.sampled.dropped_prompts
        for name, count in self.sampled.outcomes.items():
            if name != "scored":
                out[f"eval/verify_{name}"] = count
        return out


def evaluate_session(
    session: Session, progress: Callable[[str, int, int], None] = lambda name, done, total: None
) -> Evaluated:
    """Evaluates the live weights; the seed is the recipe's, so results of one recipe compare."""
    settings = session.recipe.eval
    problems = session.task.heldout[: settings.problems]
    if not problems:
        raise ConfigError("there are no held-out problems: set task.heldout or task.heldout_path")
    prompts = session.prompts(problems)
    if all(prompt is None for prompt in prompts):
        raise session.no_prompt_fits(f"the {len(problems)} held-out problems")

    def run(temperature: float, num_samples: int, name: str) -> Evaluation:
        with GuardedSampler(session.eval_sampler(temperature), session.recipe) as sampler:
            return evaluate(
                problems,
                prompts,
                sampler,
                session.pool.verify,
                session.decode_text,
                num_samples=num_samples,
                max_completion_length=session.recipe.sampler.max_completion_length,
                seed=settings.seed,
                progress=lambda done, total: progress(name, done, total),
                patience_s=session.recipe.sampler.request_timeout_s,
            )

    sampled = run(settings.temperature, settings.num_samples, "evaluating")
    greedy = run(0.0, 1, "evaluating greedily") if settings.greedy else None
    return Evaluated(sampled, greedy)


def evaluate_run(
    recipe: Recipe, *, weights: Path | None, console: Console, quiet: bool
) -> dict[str, Any]:
    """`treerl eval`: evaluates a model on the recipe's held-out problems and prints the figures."""
    if weights is not None and not weights.exists():
        raise ConfigError(f"--weights {weights}: no such folder or file")
    with Session(recipe, with_store=False, weights=weights) as session:
        with Display(console, quiet=quiet) as display:
            display.say(f"problems: {session.task.mapping}")
            found = evaluate_session(session, display.advance)
        result: dict[str, Any] = {
            "model": str(weights) if weights else recipe.policy.model,
            "temperature": recipe.eval.temperature,
            "samples_per_problem": recipe.eval.num_samples,
            "seed": recipe.eval.seed,
            "device": str(session.policy.device),
            **{name.removeprefix("eval/"): v for name, v in found.metrics(recipe.eval.k).items()},
        }
    if not quiet:
        console.print(render_mapping("", result))
    return result
