"""The command line. Commands import what they need when they run: `treerl --help` loads no torch.

Every command has --json for machines and ends with 0 (ok), 1 (failed or interrupted) or 2 (misuse).
"""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler

from treerl import __version__
from treerl.errors import ConfigError, DataError, TreerlError

if TYPE_CHECKING:
    from treerl.config import Recipe

app = typer.Typer(
    name="treerl",
    help="Tree search, replay and process rewards for RL with verifiable rewards.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
replay_app = typer.Typer(help="Look into the replay cache.", no_args_is_help=True)
recipe_app = typer.Typer(help="List, show and check recipes.", no_args_is_help=True)
app.add_typer(replay_app, name="replay")
app.add_typer(recipe_app, name="recipe")

Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="key=value over the recipe, value in TOML")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts")]
RecipeName = Annotated[str, typer.Argument(help="A .toml file or the name of a shipped recipe")]
Url = Annotated[str, typer.Option("--url", "-u", help="Database of the replay cache")]
DEFAULT_URL = "sqlite:///runs/replay.db"


def console(*, stderr: bool = False) -> Console:
    """A console of its own for each command: width and colour follow the stream."""
    return Console(stderr=stderr, soft_wrap=False)


@contextmanager
def _guard() -> Iterator[None]:
    """Turns treerl's errors into one line and an exit code; everything else is a bug and shows a trace."""
    try:
        yield
    except (ConfigError, DataError) as error:
        _fail(str(error), 2)
    except TreerlError as error:
        _fail(str(error), 1, getattr(error, "__notes__", ()))
    except KeyboardInterrupt:
        _fail("interrupted", 1)


def _fail(message: str, code: int, notes: Sequence[str] = ()) -> NoReturn:
    out = console(stderr=True)
    out.print(f"[bold red]treerl:[/] {_escape(message)}", highlight=False, soft_wrap=True)
    for note in notes:
        out.print(_escape(note), highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def _emit(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"treerl {__version__}\n")
        raise typer.Exit


@app.callback()
def main(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what happens inside")
    ] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Sets up logging: rich lines on a terminal, plain ones elsewhere, warnings only unless --verbose."""
    level = logging.INFO if verbose else logging.WARNING
    if sys.stderr.isatty():
        handler: logging.Handler = RichHandler(console=console(stderr=True), show_path=False)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], format="%(message)s", force=True)
    logging.getLogger("treerl").setLevel(level)


@app.command()
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
    with _guard():
        resolved = _recipe_to_train(recipe, overrides or [], resume)
        if dry_run:
            _emit(resolved.model_dump(mode="json"))
            return
        from treerl.engine.train import train_run

        summary = train_run(resolved, resume=resume is not None, console=console(), quiet=as_json)
        if as_json:
            _emit(summary)


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


@app.command()
def search(
    recipe: RecipeName,
    overrides: Overrides = None,
    prompt: Annotated[str | None, typer.Option(help="One question instead of the task's")] = None,
    truth: Annotated[str | None, typer.Option(help="Its answer, if it should be judged")] = None,
    problems: Annotated[
        int, typer.Option("--problems", "-n", min=1, help="Problems of the task")
    ] = 8,
    dry_run: Annotated[bool, typer.Option(help="Print the resolved recipe and stop")] = False,
    as_json: AsJson = False,
) -> None:
    """Search without training: grow trees into the replay cache."""
    with _guard():
        from treerl.recipe import load_recipe

        resolved = load_recipe(recipe, overrides or [])
        if dry_run:
            _emit(resolved.model_dump(mode="json"))
            return
        from treerl.engine.search import search_run

        result = search_run(
            resolved,
            prompt=prompt,
            truth=truth,
            problems=problems,
            console=console(),
            quiet=as_json,
        )
        if as_json:
            _emit(result)


@app.command(name="eval")
def evaluate(
    recipe: RecipeName,
    overrides: Overrides = None,
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint or model folder instead of policy.model")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate on the recipe's held-out problems: avg@k, unbiased pass@k, maj@k, greedy."""
    with _guard():
        from treerl.recipe import load_recipe

        resolved = load_recipe(recipe, overrides or [])
        from treerl.engine.evaluation import evaluate_run

        result = evaluate_run(resolved, weights=weights, console=console(), quiet=as_json)
        if as_json:
            _emit(result)


@app.command()
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
    with _guard():
        from treerl.recipe import load_recipe

        resolved = load_recipe(recipe, overrides or [])
        if (data is None) == (not from_replay):
            raise ConfigError("sft: give either --data FILE or --from-replay")
        if dry_run:
            _emit(resolved.model_dump(mode="json"))
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
            _emit(result)


@app.command()
def inspect(
    tree: Annotated[
        int | None, typer.Argument(help="Tree id; without it, the latest trees")
    ] = None,
    url: Url = DEFAULT_URL,
    run: Annotated[str | None, typer.Option(help="Only trees of this run")] = None,
    node: Annotated[int | None, typer.Option(help="Show the tokens of this span as heat")] = None,
    heat: Annotated[str, typer.Option(help="entropy, logprob or advantage")] = "entropy",
    estimator: Annotated[str, typer.Option(help="Estimator of --heat advantage")] = "tree_value",
    limit: Annotated[int, typer.Option(min=1, help="Trees to list")] = 20,
    as_json: AsJson = False,
) -> None:
    """Open a stored search tree; without an id, list the latest."""
    with _guard():
        from treerl.engine.show import list_trees, show_node, show_tree

        out = None if as_json else console()
        result: Any
        if tree is None:
            result = list_trees(url, run=run, limit=limit, console=out)
        elif node is None:
            result = show_tree(url, tree, console=out)
        else:
            result = show_node(url, tree, node, heat=heat, estimator=estimator, console=out)
        if as_json:
            _emit(result)


@recipe_app.command("ls")
def recipe_ls(as_json: AsJson = False) -> None:
    """List the shipped recipes."""
    with _guard():
        from treerl.inspect.render import render_rows
        from treerl.recipe import shipped_recipes

        rows = [(name, _first_comment(path)) for name, path in shipped_recipes().items()]
        if as_json:
            _emit([{"name": name, "about": about} for name, about in rows])
        else:
            console().print(render_rows("", ("recipe", "about"), rows))


@recipe_app.command("show")
def recipe_show(
    name: RecipeName,
    resolved: Annotated[bool, typer.Option(help="Every setting with its default")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a recipe; --resolved with every default filled in."""
    with _guard():
        from treerl.recipe import load_recipe, recipe_path

        if as_json or resolved:
            _emit(load_recipe(name).model_dump(mode="json"))
        else:
            sys.stdout.write(recipe_path(name).read_text(encoding="utf-8"))


@recipe_app.command("check")
def recipe_check(name: RecipeName, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Validate a recipe without loading anything heavy."""
    with _guard():
        from treerl.recipe import load_recipe

        recipe = load_recipe(name, overrides or [])
        if as_json:
            _emit({"ok": True, "name": recipe.run.name})
        else:
            console().print(f"{name}: ok", highlight=False)


@recipe_app.command("copy")
def recipe_copy(
    name: RecipeName,
    target: Annotated[Path, typer.Argument(help="File to write")],
    force: Annotated[bool, typer.Option(help="Overwrite")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a recipe to a file of your own."""
    with _guard():
        from treerl.recipe import recipe_path

        if target.exists() and not force:
            raise ConfigError(f"{target} exists; --force overwrites it")
        text = recipe_path(name).read_text(encoding="utf-8")
        try:
            target.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{target} cannot be written: {error.strerror}") from None
        if as_json:
            _emit({"written": str(target)})


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is installed, what will be used and why not something else."""
    with _guard():
        from treerl.engine.doctor import diagnose
        from treerl.inspect.render import render_mapping

        findings = diagnose()
        if as_json:
            _emit(findings)
        else:
            console().print(render_mapping("", findings))


@replay_app.command("stats")
def replay_stats(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Count what the cache holds, and what each run drew from others."""
    with _guard():
        from treerl.engine.cache import stats

        result = stats(url, console=None if as_json else console())
        if as_json:
            _emit(result)


@replay_app.command("ls")
def replay_ls(
    url: Url = DEFAULT_URL,
    what: Annotated[str, typer.Argument(help="runs, trees or problems")] = "runs",
    limit: Annotated[int, typer.Option(min=1)] = 20,
    as_json: AsJson = False,
) -> None:
    """List runs, trees or problems."""
    with _guard():
        from treerl.engine.cache import listing

        result = listing(url, what, limit=limit, console=None if as_json else console())
        if as_json:
            _emit(result)


@replay_app.command("show")
def replay_show(
    key: Annotated[str, typer.Argument(help="Problem key, or its beginning")],
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show a problem and its stored solutions."""
    with _guard():
        from treerl.engine.cache import show_problem

        result = show_problem(url, key, console=None if as_json else console())
        if as_json:
            _emit(result)


@replay_app.command("export")
def replay_export(
    file: Annotated[Path, typer.Argument(help="JSON lines to write")],
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Write all solutions as JSON lines, sorted by key."""
    with _guard():
        from treerl.engine.cache import export

        count = export(url, file)
        if as_json:
            _emit({"solutions": count})
        else:
            console().print(f"{count} solutions written to {file}", highlight=False)


@replay_app.command("import")
def replay_import(
    file: Annotated[Path, typer.Argument(help="JSON lines made by export")],
    url: Url = DEFAULT_URL,
    dry_run: Annotated[bool, typer.Option(help="Read and check only")] = False,
    as_json: AsJson = False,
) -> None:
    """Merge an exported file into the cache, by key."""
    with _guard():
        from treerl.engine.cache import import_file

        result = import_file(url, file, dry_run=dry_run)
        if as_json:
            _emit(result)
        else:
            figures = ", ".join(f"{name} {value}" for name, value in result.items())
            console().print(figures, highlight=False)


@replay_app.command("check")
def replay_check(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Re-hash every key and name the rows that do not match."""
    with _guard():
        from treerl.engine.cache import check

        problems = check(url, console=None if as_json else console())
        if as_json:
            _emit({"problems": problems})
        if problems:
            raise typer.Exit(1)


@replay_app.command("upgrade")
def replay_upgrade(
    url: Annotated[str, typer.Argument()] = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Bring a cache made by an older treerl to this version's schema."""
    with _guard():
        from treerl.engine.cache import upgrade

        done = upgrade(url)
        if as_json:
            _emit({"done": done})
        else:
            console().print(done, highlight=False)
