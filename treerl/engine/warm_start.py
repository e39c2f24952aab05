"""`treerl sft`: supervised warm start from worked solutions, or from verified solutions of the cache."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from treerl.config import Recipe
from treerl.engine.display import Display
from treerl.engine.evaluation import Evaluated, evaluate_session
from treerl.engine.run import provenance
from treerl.engine.samplers import stop_tokens
from treerl.engine.session import Session
from treerl.errors import ConfigError, DataError
from treerl.inspect.render import render_mapping
from treerl.policy.sft import Example, SftProgress, SftSettings, sft
from treerl.problem import Problem
from treerl.replay.bound import ReadBound
from treerl.replay.reuse import Asked, cached_solutions
from treerl.replay.stats import problems as stored_problems
from treerl.tasks.files import load_file

SOLUTION_COLUMNS = ("solution", "completion", "answer")
"""Where worked solutions stand, the first that a data set has."""
CALCULATOR = re.compile(r"<<[^<>]*>>")
"""GSM8K's calls of a calculator, which is not there when the policy writes them."""
PER_PROBLEM = 4
"""Cached solutions of one problem that are trained on, at most."""


def sft_run(
    recipe: Recipe,
    *,
    data: Path | None,
    steps: int,
    batch: int,
    lr: float | None,
    output: Path,
    console: Console,
    quiet: bool,
) -> dict[str, Any]:
    """Trains on solutions and saves a model folder that `policy.model` takes; returns the figures."""
    if (output / "config.json").exists():
        raise ConfigError(f"--output {output} holds a model already; choose another folder")
    with (
        Session(recipe, with_store=data is None) as session,
        Display(console, quiet=quiet) as display,
    ):
        examples = from_cache(session) if data is None else from_file(session, data)
        source = "the replay cache" if data is None else str(data)
        display.say(f"{len(examples)} solutions from {source}")
        if not examples:
            raise DataError(
                f"{source} has no verified solutions for this recipe's prompts and verifier"
            )
        before = _evaluate(session, display, "before")
        settings = SftSettings(
            lr=lr or recipe.update.lr,
            epochs=-(-steps * batch // len(examples)),
            batch_size=batch,
            max_steps=steps,
            max_length=recipe.sampler.max_prompt_length + recipe.sampler.max_completion_length,
            max_tokens_per_microbatch=recipe.update.max_tokens_per_microbatch,
            warmup_steps=min(20, steps // 10),
            seed=recipe.seed,
        )
        report = sft(
            session.policy,
            examples,
            settings,
            progress=partial(_show, display),
        )
        session.policy.model.save_pretrained(output)
        session.policy.tokenizer.save_pretrained(output)
        session.handover().publish(1, [])
        after = _evaluate(session, display, "after")
    result = {
        "model": str(output),
        "examples": report.examples,
        "too_long": report.too_long,
        "steps": len(report.losses),
        "tokens": report.tokens,
        "first_loss": report.losses[0],
        "last_loss": report.losses[-1],
    }
    for label, found in (("before", before), ("after", after)):
        if found is not None:
            result |= {f"{label} {k[5:]}": v for k, v in found.metrics(recipe.eval.k).items()}
    if not quiet:
        console.print(render_mapping("", result))
    return result


def _show(display: Display, at: SftProgress) -> None:
    """The bar, and ten lines in all that stay."""
    display.advance("training", at.step, at.total, f"loss {at.loss:.3f}")
    if at.step % max(1, at.total // 10) == 0:
        display.say(f"step {at.step} of {at.total}: loss {at.loss:.3f}, {at.tokens:,} tokens")


def from_file(session: Session, path: Path) -> list[Example]:
    """Prompt and worked solution of every problem that is not held out and whose prompt fits."""
    task = session.recipe.task
    judge = getattr(task, "judge", "math")
    loaded = load_file(
        path,
        judge=judge,
        question=getattr(task, "question", None),
        answer=getattr(task, "answer", None),
        skip_malformed=False,
    )
    heldout = {problem.question for problem in session.task.heldout}
    problems = [problem for problem in loaded.problems if problem.question not in heldout]
    return _examples(session, [(problem, _solution(problem, path)) for problem in problems])


def _solution(problem: Problem, path: Path) -> str:
    for name in SOLUTION_COLUMNS:
        text = problem.columns.get(name)
        if isinstance(text, str) and text.strip():
            return CALCULATOR.sub("", text)
    raise DataError(f"{path}: no worked solution in {', '.join(SOLUTION_COLUMNS)}")


def _examples(session: Session, pairs: list[tuple[Problem, str]]) -> list[Example]:
    """Prompt and solution tokens, the end token behind them."""
    tokenizer = session.policy.tokenizer
    end = tokenizer.eos_token_id
    if end is None:
        end = stop_tokens(session.policy)[0]
    prompts = session.prompts([problem for problem, _ in pairs])
    return [
        (prompt, [*tokenizer(text, add_special_tokens=False)["input_ids"], end])
        for prompt, (_, text) in zip(prompts, pairs, strict=True)
        if prompt is not None
    ]


def from_cache(session: Session) -> list[Example]:
    """Verified right solutions of the cache, token for token as they were drawn."""
    assert session.store is not None
    problems = [found.problem for found in stored_problems(session.store)]
    heldout = {problem.key for problem in session.task.heldout}
    problems = [problem for problem in problems if problem.key not in heldout]
    asked = [
        Asked(problem, np.asarray(prompt, np.int32))
        for problem, prompt in zip(problems, session.prompts(problems), strict=True)
        if prompt is not None
    ]
    source = provenance(session, "", "")
    found = cached_solutions(
        session.store,
        asked,
        tokenizer=source.tokenizer,
        verifier=source.verifier,
        bound=ReadBound("", session.store.position()),
        max_per_problem=PER_PROBLEM,
        seed=session.recipe.seed,
    )
    return [
        (a.prompt.tolist(), solution.tokens.tolist())
        for a, solutions in zip(asked, found, strict=True)
        for solution in solutions
    ]


def _evaluate(session: Session, display: Display, label: str) -> Evaluated | None:
    if not session.task.heldout:
        return None
    found = evaluate_session(session, display.advance)
    display.say(
        f"{label}: avg@{session.recipe.eval.num_samples} {found.sampled.accuracy.mean():.3f}"
    )
    return found
