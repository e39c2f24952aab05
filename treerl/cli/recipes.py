"""`treerl recipe`: list, show, check and copy recipes. Nothing heavy is loaded."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from treerl.cli.common import AsJson, Overrides, RecipeName, console, emit, guard
from treerl.errors import ConfigError

recipe_app = typer.Typer(help="List, show and check recipes.", no_args_is_help=True)


@recipe_app.command("ls")
def recipe_ls(as_json: AsJson = False) -> None:
    """List the shipped recipes."""
    with guard():
        from treerl.inspect.render import render_rows
        from treerl.recipe import shipped_recipes

        rows = [(name, _first_comment(path)) for name, path in shipped_recipes().items()]
        if as_json:
            emit([{"name": name, "about": about} for name, about in rows])
        else:
            console().print(render_rows("", ("recipe", "about"), rows))


@recipe_app.command("show")
def recipe_show(
    name: RecipeName,
    resolved: Annotated[bool, typer.Option(help="Every setting with its default")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a recipe; --resolved with every default filled in."""
    with guard():
        from treerl.recipe import load_recipe, recipe_path

        if as_json or resolved:
            emit(load_recipe(name).model_dump(mode="json"))
        else:
            sys.stdout.write(recipe_path(name).read_text(encoding="utf-8"))


@recipe_app.command("check")
def recipe_check(name: RecipeName, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Validate a recipe without loading anything heavy."""
    with guard():
        from treerl.recipe import load_recipe

        recipe = load_recipe(name, overrides or [])
        if as_json:
            emit({"ok": True, "name": recipe.run.name})
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
    with guard():
        from treerl.recipe import recipe_path

        if target.exists() and not force:
            raise ConfigError(f"{target} exists; --force overwrites it")
        text = recipe_path(name).read_text(encoding="utf-8")
        try:
            target.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{target} cannot be written: {error.strerror}") from None
        if as_json:
            emit({"written": str(target)})


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
