"""`treerl replay rejudge`: a recipe's verifier over all stored solutions, without a model."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from rich.console import Console

from treerl.config.recipe import Recipe
from treerl.engine.progress import bar
from treerl.inspect.render import render_mapping, render_rows
from treerl.replay.keys import VerifierRef
from treerl.replay.rejudge import Comparison, compare, count_unjudged, rejudge
from treerl.replay.store import Store
from treerl.verifiers.identity import verifier_identity
from treerl.verifiers.workers import VerifierPool

EXAMPLES = 5


def verifier_ref(recipe: Recipe) -> VerifierRef:
    """The recipe's verifier as the replay cache names it."""
    name, version, config = verifier_identity(recipe.verifier)
    return VerifierRef(name, version, {"key": config})


def rejudge_cache(
    url: str, recipe: Recipe, *, dry_run: bool, console: Console | None
) -> dict[str, Any]:
    """Judges what the recipe's verifier has not judged, then tells what that changes.

    dry_run: counts what is left and judges nothing.
    """
    verifier = verifier_ref(recipe)
    with Store.open(url, create=False) as store:
        left, without_text = count_unjudged(store, verifier)
        judged = 0
        if left and not dry_run:
            with VerifierPool(recipe.verifier) as pool:
                with_tokens = recipe.verifier.kind == "import"
                pages = rejudge(store, pool, verifier, with_tokens=with_tokens)
                judged = _watch(pages, left, console)
        found = compare(store, verifier, examples=EXAMPLES)
    result: dict[str, Any] = {
        "verifier": {"name": verifier.name, "version": verifier.version},
        "judged": judged,
        "left": left - judged,
        "without_text": without_text,
        "changes": _changes(found),
    }
    if console is not None:
        _show(result, console)
    return result


def _watch(pages: Iterable[int], total: int, console: Console | None) -> int:
    """Runs the pages under a progress bar; how many solutions they had."""
    judged = 0
    with bar("judging", console) as progress:
        progress(0, total)
        for count in pages:
            judged += count
            progress(judged, total)
    return judged


def _changes(found: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "before": before,
            "after": after,
            "solutions": count,
            "examples": [dataclasses.asdict(e) for e in found.examples.get((before, after), ())],
        }
        for (before, after), count in found.counts.items()
    ]


def _show(result: dict[str, Any], console: Console) -> None:
    figures = {
        "verifier": " ".join(result["verifier"].values()),
        **{name: result[name] for name in ("judged", "left", "without_text")},
    }
    console.print(render_mapping("", {k.replace("_", " "): v for k, v in figures.items()}))
    heads = ("before", "after", "solutions")
    console.print()
    console.print(render_rows("", heads, [[c[n] for n in heads] for c in result["changes"]]))
    names = ("question", "truth", "answer_before", "answer_after", "text")
    for change in result["changes"]:
        if change["examples"]:
            console.print(
                f"\n{change['before']} -> {change['after']}, for example", highlight=False
            )
            rows = [[example[n] for n in names] for example in change["examples"]]
            console.print(render_rows("", [n.replace("_", " ") for n in names], rows))
