"""The command line. Commands import what they need when they run: `treerl --help` loads no torch.

Every command has --json for machines and ends with 0 (ok), 1 (failed or interrupted) or 2 (misuse).
"""

import logging
import sys
from typing import Annotated

import typer
from rich.logging import RichHandler

from treerl import __version__
from treerl.cli.common import console
from treerl.cli.export import export_app
from treerl.cli.inspect import inspect_app
from treerl.cli.recipes import recipe_app
from treerl.cli.replay import replay_app
from treerl.cli.runs import run_app

app = typer.Typer(
    name="treerl",
    help="Tree search, replay and process rewards for RL with verifiable rewards.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(run_app)
app.add_typer(inspect_app)
app.add_typer(export_app)
app.add_typer(replay_app, name="replay")
app.add_typer(recipe_app, name="recipe")


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
