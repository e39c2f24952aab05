"""Everything about a stored tree as JSON values: what the JSON file holds and what the HTML page reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treerl.inspect.library import Opened
from treerl.inspect.model import as_json
from treerl.inspect.shade import Credit, shade_of
from treerl.search.tree import ROOT

FORMAT = "treerl tree 1"
DIGITS = 5
"""Significant digits of figures a token."""


def tree_values(opened: Opened, credits: Sequence[Credit] = ()) -> dict[str, Any]:
    """Header, tree and spans. Columns of tokens are lists as long as the span; null where unknown."""
    values = as_json(opened.view)
    means = {credit.estimator: credit.shade(opened.tree).values for credit in credits}
    for node in values["nodes"]:
        row = node["row"]
        node["advantage"] = {name: mean[row] for name, mean in means.items()}
        node["columns"] = _columns(opened, row, credits)
        node["draw"] = _draw(opened, row)
    found: dict[str, Any] = _finite({"format": FORMAT, "header": header(opened), **values})
    return found


def header(opened: Opened) -> dict[str, Any]:
    """Where the tree comes from: run, step, model, method, seeds, versions.

    Seeds of 63 bits are strings of digits: many readers of JSON keep 53 bits of a number.
    """
    info, recipe, made_by = opened.stored.info, opened.recipe, opened.run.config.get("made_by", {})
    section = {name: recipe.get(name, {}) for name in ("policy", "search", "advantage", "verifier")}
    return {
        "tree": info.id,
        "run": info.run,
        "run_id": info.run_id,
        "step": info.step,
        "number": info.number,
        "problem": info.problem.key,
        "created_us": info.created_us,
        "model": section["policy"].get("model"),
        "search": section["search"].get("kind"),
        "estimator": section["advantage"].get("estimator"),
        "seed": recipe.get("seed"),
        "tree_seed": str(opened.tree.seed),
        "max_completion_length": opened.tree.max_completion_length,
        "made_by": dict(made_by),
        "git_commit": opened.run.git_commit,
    }


def _columns(opened: Opened, row: int, credits: Sequence[Credit]) -> dict[str, list[Any]]:
    node, tokens = opened.view.nodes[row], opened.tree.tokens
    span = slice(node.start, node.stop)
    columns: dict[str, list[Any]] = {
        "text": opened.span_texts(row),
        "id": tokens.token[span].tolist(),
    }
    if row != ROOT:
        columns["entropy"] = _rounded(tokens.entropy[span])
        columns["logprob"] = _rounded(tokens.logprob[span])
    for credit in credits:
        columns[f"advantage {credit.estimator}"] = _rounded(credit.tokens[span])
    return columns


def _draw(opened: Opened, row: int) -> dict[str, Any]:
    """Who drew the span, and what all verifiers say of the draw's end."""
    draw = int(opened.tree.nodes.draw[row])
    origin = opened.origins.get(draw)
    out: dict[str, Any] = {}
    if origin is not None:
        out = asdict(origin) | {"seed": str(origin.seed)}
    is_end = not opened.view.nodes[row].children
    out["judgements"] = [asdict(j) for j in opened.judgements.get(draw, ())] if is_end else []
    return out


def _rounded(values: NDArray[Any]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in np.asarray(values, float).tolist()]


def _finite(value: Any) -> Any:
    """JSON has no NaN: null instead, at any depth."""
    match value:
        case float():
            return value if np.isfinite(value) else None
        case Mapping():
            return {str(key): _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


def shades_json(opened: Opened, credits: Sequence[Credit]) -> list[dict[str, Any]]:
    """What colour can carry on the page: name, legend, scale, and the value of each span by row."""
    names: list[tuple[str, Credit | None]] = [(name, None) for name in ("q", "visits", "entropy")]
    names += [("advantage", credit) for credit in credits] + [("age", None)]
    out = []
    for name, credit in names:
        shade = shade_of(name, opened.view, opened.tree, credit)
        scale = shade.scale
        out.append(
            {
                "name": name if credit is None else f"{name} {credit.estimator}",
                "legend": shade.legend,
                "signed": scale.middle is not None,
                "whole": name in ("visits", "age"),
                "low": scale.low,
                "high": scale.high,
                "middle": scale.middle,
                "values": {str(row): value for row, value in shade.values.items()},
            }
        )
    finite: list[dict[str, Any]] = _finite(out)
    return finite


def to_json(opened: Opened, credits: Sequence[Credit] = ()) -> str:
    """The JSON file: one object, readable by any program."""
    return json.dumps(tree_values(opened, credits), ensure_ascii=False, default=str) + "\n"
