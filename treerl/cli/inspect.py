"""`treerl inspect`: look into the stored search trees, printed or in the interactive app."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from treerl.cli.common import DEFAULT_URL, AsJson, Url, console, emit, guard
from treerl.errors import ConfigError

inspect_app = typer.Typer()


@inspect_app.command()
def inspect(
    tree: Annotated[
        int | None, typer.Argument(help="Tree id; without it, the problems with the newest trees")
    ] = None,
    url: Url = DEFAULT_URL,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Open it in the terminal: ? shows the keys")
    ] = False,
    run: Annotated[str | None, typer.Option(help="Only trees of this run")] = None,
    trees: Annotated[bool, typer.Option("--trees", help="List trees, not problems")] = False,
    where: Annotated[
        str, typer.Option(help="Filter of the list: rate<0.5, trees>1, entropy>=0.2, step=3, words")
    ] = "",
    sort: Annotated[
        str, typer.Option(help="Of the list: newest, pass rate, trees, entropy or question")
    ] = "newest",
    limit: Annotated[int, typer.Option(min=1, help="Lines of the list")] = 20,
    node: Annotated[int | None, typer.Option(help="Show this span in full")] = None,
    heat: Annotated[
        str, typer.Option(help="Its tokens by entropy, logprob, advantage or ratio (new/old)")
    ] = "entropy",
    siblings: Annotated[
        bool,
        typer.Option("--siblings", help="Show the span of --node beside its siblings, by tokens"),
    ] = False,
    colour: Annotated[
        str, typer.Option(help="Colour the tree by q, visits, entropy, advantage or age")
    ] = "q",
    estimator: Annotated[
        str, typer.Option(help="Estimator of the advantage; default the run's own")
    ] = "",
    compare: Annotated[str, typer.Option(help="Two estimators side by side: tree_value,grpo")] = "",
    weights: Annotated[
        Path | None,
        typer.Option(help="Policy for ratios and log-probs; default the run's checkpoint"),
    ] = None,
    right: Annotated[bool, typer.Option("--right", help="Only paths to right leaves")] = False,
    whole: Annotated[bool, typer.Option("--all", help="Leave no branch out")] = False,
    width: Annotated[int | None, typer.Option(min=40, help="Cells of a line")] = None,
    as_json: AsJson = False,
) -> None:
    """Look into the stored search trees: all problems, one tree, one span."""
    with guard():
        from treerl.engine import show

        if siblings and (tree is None or node is None):
            raise ConfigError("--siblings goes with a tree and --node ROW")
        pair = tuple(name.strip() for name in compare.split(",") if name.strip())
        look = show.Look(colour, estimator, pair, whole, right)
        if interactive:
            _check_terminal(as_json)
            show.browse(url, tree, run=run, look=look, weights=weights)
            return
        out = None if as_json else _console(width)
        result: Any
        if tree is None:
            listed = show.list_trees if trees else show.list_problems
            result = listed(url, run=run, limit=limit, where=where, sort=sort, console=out)
        elif node is None:
            result = show.show_tree(url, tree, look=look, weights=weights, console=out)
        elif siblings:
            result = show.show_siblings(url, tree, node, weights=weights, console=out)
        else:
            result = show.show_node(
                url, tree, node, heat=heat, estimator=estimator, weights=weights, console=out
            )
        if as_json:
            emit(result)


def _console(width: int | None) -> Console:
    out = console()
    if width is not None:
        out.width = width
    return out


def _check_terminal(as_json: bool) -> None:
    if as_json:
        raise ConfigError("--json prints, -i opens the app: give one of them")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError(
            "-i needs a terminal for input and output; without -i the tree is printed"
        )
