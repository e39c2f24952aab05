"""`treerl export`: a stored tree as a file for a paper, for a browser, or for another program."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treerl.engine.show import open_library
from treerl.errors import ConfigError, StoreError, TreerlError
from treerl.inspect.export_graph import to_dot, to_graphml
from treerl.inspect.export_html import to_html
from treerl.inspect.export_svg import PAPERS, tree_svg
from treerl.inspect.export_values import to_json
from treerl.inspect.library import Library, Opened
from treerl.inspect.shade import SHADES, Credit, shade_of


@dataclass(frozen=True, slots=True)
class Wish:
    """How a tree is to be exported. estimator: "" is the run's own."""

    colour: str = "q"
    estimator: str = ""
    paper: str = "light"
    whole: bool = False
    only_right: bool = False


def export_tree(
    url: str, tree_id: int, file: Path, wish: Wish, weights: Path | None
) -> dict[str, Any]:
    """Writes `file`, whole or not at all, in the format that its ending names; says what was written."""
    write = FORMATS.get(file.suffix.lower())
    if write is None:
        raise ConfigError(f"{file}: choose an ending of {', '.join(FORMATS)}")
    if wish.colour not in SHADES:
        raise ConfigError(f"--colour {wish.colour}: choose one of {', '.join(SHADES)}")
    if wish.paper not in PAPERS:
        raise ConfigError(f"--paper {wish.paper}: choose one of {', '.join(PAPERS)}")
    with open_library(url, weights) as (library, policies):
        opened = library.open(tree_id)
        credit, notes = _credit(library, opened, wish)
        text = write(opened, credit, wish)
        notes += policies.notes
    _save(file, text)
    return {
        "file": str(file),
        "tree": tree_id,
        "bytes": len(text.encode()),
        "estimator": credit.estimator if credit else None,
        "notes": notes,
    }


def _credit(library: Library, opened: Opened, wish: Wish) -> tuple[Credit | None, list[str]]:
    """What the estimator pays; None with the reason where the run's own cannot be had and none was named."""
    own = opened.recipe.get("advantage", {}).get("estimator", "tree_value")
    try:
        return library.credit(opened, wish.estimator or own), []
    except TreerlError as error:
        if wish.estimator or wish.colour == "advantage":
            raise
        return None, [f"without advantages: {error}"]


def _svg(opened: Opened, credit: Credit | None, wish: Wish) -> str:
    return tree_svg(
        opened.view,
        shade_of(wish.colour, opened.view, opened.tree, credit),
        title=opened.title,
        paper=PAPERS[wish.paper],
        whole=wish.whole,
        only_right=wish.only_right,
    )


def _listed(credit: Credit | None) -> list[Credit]:
    return [] if credit is None else [credit]


FORMATS: dict[str, Callable[[Opened, Credit | None, Wish], str]] = {
    ".svg": _svg,
    ".html": lambda opened, credit, wish: to_html(opened, _listed(credit), colour=wish.colour),
    ".graphml": lambda opened, credit, wish: to_graphml(opened, _listed(credit)),
    ".dot": lambda opened, credit, wish: to_dot(opened, _listed(credit)),
    ".json": lambda opened, credit, wish: to_json(opened, _listed(credit)),
}


def _save(file: Path, text: str) -> None:
    draft = file.with_name(file.name + ".tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise StoreError(f"cannot write {file}: {error.strerror}") from error
