"""Commands that load a model: train, search, eval, sft; and doctor."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from treerl.cli.common import (
    DEFAULT_URL,
    AsJson,
    Overrides,
    RecipeName,
    console,
    emit,
    guard,
)
from treerl.errors import ConfigError

if TYPE_CHECKING:
    from treerl.config import Recipe

run_app = typer.Typer()


@run_app.command()
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A .toml file or the name of a shipped recipe"),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            help="Go on with a run: its folder, or `latest` for the recipe's newest; "
            "the recipe stored there counts",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the resolved recipe and stop")] = False,
    as_json: AsJson = False,
) -> None:
    """Train by tree search: search, verify, store, credit, update, step by step."""
    with guard():
        resolved = _recipe_to_train(recipe, overrides or [], resume)
        if dry_run:
            emit(resolved.model_dump(mode="json"))
            return
        from treerl.engine.train import train_run

        summary = train_run(resolved, resume=resume is not None, console=console(), quiet=as_json)
        if as_json:
            emit(summary)


def _recipe_to_train(name: str | None, overrides: list[str], resume: str | None) -> "Recipe":
    """The recipe to train with: the one named, or that of the run to go on with."""
    from treerl.engine.folder import folder_to_resume, resumed_recipe
    from treerl.recipe import load_recipe

    if name is None and resume in (None, "latest"):
        raise ConfigError("give a recipe (`treerl recipe ls`), or --resume and a run's folder")
    recipe = None if name is None else load_recipe(name, overrides)
    if recipe is not None and resume == "latest":
        return resumed_recipe(folder_to_resume(recipe), overrides)
    if resume is not None:
        return resumed_recipe(Path(resume), overrides)
    assert recipe is not None
    return recipe


@run_app.command()
def search(
    recipe: Annotated[
        str | None, typer.Argument(help="A .toml file or the name of a shipped recipe")
    ] = None,
    overrides: Overrides = None,
    prompt: Annotated[str | None, typer.Option(help="One question instead of the task's")] = None,
    truth: Annotated[str | None, typer.Option(help="Its answer, if it should be judged")] = None,
    problems: Annotated[
        int, typer.Option("--problems", "-n", min=1, help="Problems of the task")
    ] = 8,
    join: Annotated[
        str | None,
        typer.Option(
            help="Go on with a search that was interrupted, or help one: its name; its recipe counts"
        ),
    ] = None,
    url: Annotated[str, typer.Option("--url", "-u", help="With --join: its database")] = (
        DEFAULT_URL
    ),
    lease: Annotated[
        float,
        typer.Option(min=1, help="Seconds until trees of a worker that fell silent go to others"),
    ] = 60.0,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show the tree of the current problem as it grows")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the resolved recipe and stop")] = False,
    as_json: AsJson = False,
) -> None:
    """Search without training: grow trees into the replay cache, alone or with other processes (--join)."""
    with guard():
        if (recipe is None) == (join is None):
            raise ConfigError("give a recipe (`treerl recipe ls`), or --join and a search's name")
        run = None
        if join is not None:
            if overrides or prompt is not None:
                raise ConfigError("--join goes on with the recipe and the problems of its search")
            from treerl.engine.search import run_to_join

            resolved, run = run_to_join(join, url)
        else:
            from treerl.recipe import load_recipe

            resolved = load_recipe(str(recipe), overrides or [])
        if dry_run:
            emit(resolved.model_dump(mode="json"))
            return
        from treerl.engine.search import Asked, search_run

        result = search_run(
            resolved,
            Asked(problems, prompt, truth, run),
            lease_s=lease,
            watch=watch,
            console=console(),
            quiet=as_json,
        )
        if as_json:
            emit(result)


@run_app.command(name="eval")
def evaluate(
    recipe: RecipeName,
    overrides: Overrides = None,
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint or model folder instead of policy.model")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate on the recipe's held-out problems: avg@k, unbiased pass@k, maj@k, greedy."""
    with guard():
        from treerl.recipe import load_recipe

        resolved = load_recipe(recipe, overrides or [])
        from treerl.engine.evaluation import evaluate_run

        result = evaluate_run(resolved, weights=weights, console=console(), quiet=as_json)
        if as_json:
            emit(result)


@run_app.command()
def sft(
    recipe: RecipeName,
    overrides: Overrides = None,
    data: Annotated[
        Path | None, typer.Option(help="File with questions and worked solutions")
    ] = None,
    from_replay: Annotated[
        bool,
        typer.Option(help="Verified solutions of the replay cache instead (rejection fine-tuning)"),
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps")] = 50,
    batch: Annotated[int, typer.Option(min=1, help="Examples a step")] = 16,
    lr: Annotated[float | None, typer.Option(help="Learning rate; default the recipe's")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the trained model")] = Path("runs/sft"),
    dry_run: Annotated[bool, typer.Option(help="Print the resolved recipe and stop")] = False,
    as_json: AsJson = False,
) -> None:
    """Supervised warm start, or rejection fine-tuning from the replay cache."""
    with guard():
        from treerl.recipe import load_recipe

        resolved = load_recipe(recipe, overrides or [])
        if (data is None) == (not from_replay):
            raise ConfigError("sft: give either --data FILE or --from-replay")
        if dry_run:
            emit(resolved.model_dump(mode="json"))
            return
        from treerl.engine.warm_start import sft_run

        result = sft_run(
            resolved,
            data=data,
            steps=steps,
            batch=batch,
            lr=lr,
            output=output,
            console=console(),
            quiet=as_json,
        )
        if as_json:
            emit(result)


@run_app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, what will be used and why not something else."""
    with guard():
        from treerl.engine.doctor import diagnose
        from treerl.inspect.render import render_mapping

        findings = diagnose()
        if as_json:
            emit(findings)
        else:
            console().print(render_mapping("", findings))
