"""`treerl export`: a stored tree as a file that needs no treerl to be looked at."""

from pathlib import Path
from typing import Annotated

import typer

from treerl.cli.common import DEFAULT_URL, AsJson, Url, console, emit, guard

export_app = typer.Typer()


@export_app.command()
def export(
    tree: Annotated[int, typer.Argument(help="Tree id, as `treerl inspect --trees` lists them")],
    file: Annotated[
        Path, typer.Argument(help="Its ending names the format: .svg .html .graphml .dot .json")
    ],
    url: Url = DEFAULT_URL,
    colour: Annotated[
        str, typer.Option(help="Colour by q, visits, entropy, advantage or age")
    ] = "q",
    estimator: Annotated[
        str, typer.Option(help="Estimator of the advantage; default the run's own")
    ] = "",
    paper: Annotated[str, typer.Option(help="Background of an SVG: light, dark or none")] = "light",
    right: Annotated[bool, typer.Option("--right", help="SVG: only paths to right leaves")] = False,
    whole: Annotated[bool, typer.Option("--all", help="SVG: leave no branch out")] = False,
    weights: Annotated[
        Path | None,
        typer.Option(help="Policy for log-prob estimators; default the run's checkpoint"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a tree as a figure (SVG), a page for a browser (HTML), a graph (GraphML, DOT) or JSON."""
    with guard():
        from treerl.engine.export import Wish, export_tree

        wish = Wish(colour, estimator, paper, whole, right)
        done = export_tree(url, tree, file, wish, weights)
        if as_json:
            emit(done)
            return
        out = console()
        for note in done["notes"]:
            out.print(note, highlight=False, style="dim", soft_wrap=True, markup=False)
        out.print(f"{file}: tree {tree}, {done['bytes']:,} bytes", highlight=False, soft_wrap=True)
