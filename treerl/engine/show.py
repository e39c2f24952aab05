"""`treerl inspect`: stored trees as lists, as a tree, and a span's tokens as heat."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
from rich.console import Console

from treerl.config import AdvantageSettings
from treerl.credit.assign import NEEDS_SIGNALS, advantages
from treerl.errors import ConfigError
from treerl.inspect.model import as_json, view_tree
from treerl.inspect.render import render_rows, render_span, render_tree
from treerl.policy.model import load_tokenizer
from treerl.replay.store import Store, StoredTree

HEATS = ("entropy", "logprob", "advantage")


def list_trees(
    url: str, *, run: str | None, limit: int, console: Console | None
) -> list[dict[str, Any]]:
    """The latest trees, newest last, with what to look for."""
    with Store.open(url, create=False) as store:
        infos = store.trees(run_id=_run_id(store, run), limit=limit)
    rows = [
        {
            "tree": info.id,
            "run": info.run,
            "step": info.step,
            "question": info.problem.question,
            "right": info.right,
            "leaves": info.leaves,
            "spans": info.nodes,
            "tokens": info.generated,
            "cached": info.cached,
            "when": datetime.fromtimestamp(info.created_us / 1e6, UTC).isoformat(
                timespec="seconds"
            ),
        }
        for info in infos
    ]
    if console is not None:
        names = ("tree", "run", "step", "question", "right", "leaves", "spans", "tokens", "cached")
        shown = [
            {**row, "tree": str(row["tree"]), "question": _one_line(str(row["question"]))}
            for row in rows
        ]
        console.print(render_rows("", names, [[row[name] for name in names] for row in shown]))
        console.print(f"open one: treerl inspect TREE --url {url}", highlight=False, style="dim")
    return rows


def _one_line(text: str, most: int = 40) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def show_tree(url: str, tree_id: int, *, console: Console | None) -> dict[str, Any]:
    """One tree as a rich tree, or as JSON values."""
    stored, tokenizer = _open(url, tree_id)
    view = view_tree(
        stored.tree,
        lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=True)),
        question=stored.problem.question,
        truth=stored.problem.truth,
    )
    if console is not None:
        info = stored.info
        console.print(
            f"tree {info.id} of run {info.run}, step {info.step}", highlight=False, style="dim"
        )
        console.print(render_tree(view, width=console.width))
        console.print(
            f"rows: {', '.join(str(r) for r in view.nodes)}; tokens of one: "
            f"treerl inspect {tree_id} --node ROW --heat {'|'.join(HEATS)} --url {url}",
            highlight=False,
            style="dim",
        )
    return as_json(view)


def show_node(
    url: str, tree_id: int, node: int, *, heat: str, estimator: str, console: Console | None
) -> dict[str, Any]:
    """The tokens of one span, coloured by entropy, log-prob or advantage."""
    if heat not in HEATS:
        raise ConfigError(f"--heat {heat}: choose one of {', '.join(HEATS)}")
    stored, tokenizer = _open(url, tree_id)
    tree = stored.tree
    if not 0 <= node < len(tree):
        raise ConfigError(f"--node {node}: tree {tree_id} has rows 0 to {len(tree) - 1}")
    start, stop = int(tree.nodes.start[node]), int(tree.nodes.stop[node])
    values, top = _heat(stored, heat, estimator)
    texts = [str(tokenizer.decode([t])) for t in tree.tokens.token[start:stop].tolist()]
    if console is not None:
        console.print(render_span(texts, values[start:stop], name=heat, top=top))
    shown = [None if np.isnan(v) else float(v) for v in values[start:stop]]
    return {"tree": tree_id, "node": node, "tokens": texts, heat: shown}


def _heat(stored: StoredTree, heat: str, estimator: str) -> tuple[Any, float]:
    tree = stored.tree
    match heat:
        case "entropy":
            return tree.tokens.entropy, 2.0
        case "logprob":
            return tree.tokens.logprob, 3.0
    if estimator in NEEDS_SIGNALS:
        raise ConfigError(f"--estimator {estimator} needs the policy's log-probs; choose another")
    try:
        settings = AdvantageSettings.model_validate({"estimator": estimator})
    except ValueError as error:
        raise ConfigError(f"--estimator {estimator}: unknown; see advantage.estimator") from error
    return advantages(tree, settings), 1.0


def _open(url: str, tree_id: int) -> tuple[StoredTree, Any]:
    with Store.open(url, create=False) as store:
        stored = store.load_tree(tree_id)
        config = next(run.config for run in store.runs() if run.id == stored.info.run_id)
    model = config.get("recipe", config).get("policy", {}).get("model", "embedded")
    return stored, load_tokenizer(model)


def _run_id(store: Store, name: str | None) -> str | None:
    if name is None:
        return None
    found = [run.id for run in store.runs() if name in (run.name, run.id)]
    if not found:
        raise ConfigError(f"--run {name}: no such run; `treerl replay ls runs` lists them")
    return found[-1]
