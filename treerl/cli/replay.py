"""`treerl replay`: look into the replay cache, export and import it, keep it sound."""

from pathlib import Path
from typing import Annotated

import typer

from treerl.cli.common import DEFAULT_URL, AsJson, Overrides, Url, console, emit, guard

replay_app = typer.Typer(help="Look into the replay cache.", no_args_is_help=True)


@replay_app.command("stats")
def replay_stats(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Count what the cache holds, and what each run drew from others."""
    with guard():
        from treerl.engine.cache import stats

        result = stats(url, console=None if as_json else console())
        if as_json:
            emit(result)


@replay_app.command("ls")
def replay_ls(
    url: Url = DEFAULT_URL,
    what: Annotated[str, typer.Argument(help="runs, trees, problems or queue")] = "runs",
    limit: Annotated[int, typer.Option(min=1)] = 20,
    as_json: AsJson = False,
) -> None:
    """List runs, trees, problems, or trees that workers have still to search."""
    with guard():
        from treerl.engine.cache import listing

        result = listing(url, what, limit=limit, console=None if as_json else console())
        if as_json:
            emit(result)


@replay_app.command("show")
def replay_show(
    key: Annotated[str, typer.Argument(help="Problem key, or its beginning")],
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show a problem and its stored solutions."""
    with guard():
        from treerl.engine.cache import show_problem

        result = show_problem(url, key, console=None if as_json else console())
        if as_json:
            emit(result)


@replay_app.command("export")
def replay_export(
    file: Annotated[Path, typer.Argument(help="File to write: .parquet, or else JSON lines")],
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Write all solutions as JSON lines or Parquet, sorted by key."""
    with guard():
        from treerl.engine.cache import export

        count = export(url, file)
        if as_json:
            emit({"solutions": count})
        else:
            console().print(f"{count} solutions written to {file}", highlight=False)


@replay_app.command("import")
def replay_import(
    file: Annotated[Path, typer.Argument(help="File made by export")],
    url: Url = DEFAULT_URL,
    dry_run: Annotated[bool, typer.Option(help="Read and check only")] = False,
    as_json: AsJson = False,
) -> None:
    """Merge an exported file into the cache, by key."""
    with guard():
        from treerl.engine.cache import import_file

        result = import_file(url, file, dry_run=dry_run)
        if as_json:
            emit(result)
        else:
            figures = ", ".join(f"{name} {value}" for name, value in result.items())
            console().print(figures, highlight=False)


@replay_app.command("check")
def replay_check(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Re-hash every key and name the rows that do not match."""
    with guard():
        from treerl.engine.cache import check

        problems = check(url, console=None if as_json else console())
        if as_json:
            emit({"problems": problems})
        if problems:
            raise typer.Exit(1)


@replay_app.command("rejudge")
def replay_rejudge(
    recipe: Annotated[str, typer.Argument(help="Recipe whose [verifier] judges")],
    url: Url = DEFAULT_URL,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option(help="Count what is left, judge nothing")] = False,
    as_json: AsJson = False,
) -> None:
    """Judge all stored solutions by another verifier, keep the old verdicts, show what changed."""
    with guard():
        from treerl.engine.rejudge import rejudge_cache
        from treerl.recipe import load_recipe

        resolved = load_recipe(recipe, overrides or [])
        shown = None if as_json else console()
        result = rejudge_cache(url, resolved, dry_run=dry_run, console=shown)
        if as_json:
            emit(result)


@replay_app.command("gc")
def replay_gc(
    url: Url = DEFAULT_URL,
    runs: Annotated[
        list[str] | None, typer.Option("--run", help="Name of a run to delete first")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Count only")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove solutions and spans that no tree uses, and runs named to go."""
    with guard():
        from treerl.engine.cache import collect

        result = collect(url, runs or [], dry_run=dry_run, console=None if as_json else console())
        if as_json:
            emit(result)


@replay_app.command("upgrade")
def replay_upgrade(
    url: Annotated[str, typer.Argument()] = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """Bring a cache made by an older treerl to this version's schema."""
    with guard():
        from treerl.engine.cache import upgrade

        done = upgrade(url)
        if as_json:
            emit({"done": done})
        else:
            console().print(done, highlight=False)
