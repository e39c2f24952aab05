"""`treerl inspect`: the forest of a cache, one tree, one span; printed, as JSON, or opened in the terminal."""

import importlib.util
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from treerl.engine.policies import Policies
from treerl.errors import ConfigError
from treerl.inspect.compare import Comparison, compare, render_comparison
from treerl.inspect.detail import render_detail
from treerl.inspect.forest import (
    REACH,
    Item,
    arrange,
    forest_line,
    forest_titles,
    of_tree,
    problem_items,
)
from treerl.inspect.heat import HEATS, heat_of
from treerl.inspect.library import ESTIMATORS, Library, Opened
from treerl.inspect.model import as_json
from treerl.inspect.render import render_tree
from treerl.inspect.shade import SHADES, Shade, shade_of
from treerl.inspect.siblings import best_sibling, continuation, render_family, render_pair
from treerl.inspect.state import TreeState
from treerl.replay.browse import tree_entropies
from treerl.replay.entry import now_us
from treerl.replay.store import Store


@dataclass(frozen=True, slots=True)
class Look:
    """How a tree is shown. estimator: "" is the run's own. compare: two, or none; whole: nothing left out."""

    colour: str = "q"
    estimator: str = ""
    compare: tuple[str, ...] = ()
    whole: bool = False
    only_right: bool = False


@contextmanager
def open_library(url: str, weights: Path | None = None) -> Iterator[tuple[Library, Policies]]:
    """The cache at `url` with what loads models for it. Raises StoreError if there is no cache."""
    policies = Policies(weights)
    with Store.open(url, create=False) as store:
        yield Library(store, policies.decoder, policies.score), policies


# Lists -----------------------------------------------------------------------------------------------------


def list_problems(
    url: str, *, run: str | None, limit: int, where: str, sort: str, console: Console | None
) -> list[dict[str, Any]]:
    """The problems whose trees are newest, with what to look for."""
    with open_library(url) as (library, _):
        items = problem_items(library, library.run_id(run), _reach(limit, where, sort))
    return _list(items, url, limit=limit, where=where, sort=sort, console=console, of_trees=False)


def list_trees(
    url: str,
    *,
    run: str | None,
    limit: int,
    console: Console | None,
    where: str = "",
    sort: str = "newest",
) -> list[dict[str, Any]]:
    """The latest trees, with what to look for."""
    with open_library(url) as (library, _):
        reach = _reach(limit, where, sort)
        infos = library.store.trees(run_id=library.run_id(run), limit=reach)
        entropy = tree_entropies(library.store, [info.id for info in infos])
    items = [of_tree(info, entropy.get(info.id)) for info in infos]
    return _list(items, url, limit=limit, where=where, sort=sort, console=console, of_trees=True)


def _reach(limit: int, where: str, sort: str) -> int:
    return limit if not where and sort == "newest" else max(limit, REACH)


def _list(
    read: Sequence[Item],
    url: str,
    *,
    limit: int,
    where: str,
    sort: str,
    console: Console | None,
    of_trees: bool,
) -> list[dict[str, Any]]:
    kept = arrange(read, where=where, sort=sort)
    items = kept[:limit]
    if console is not None and not read:
        console.print(
            f"no trees in {url} yet: `treerl search quickstart` grows some", soft_wrap=True
        )
    elif console is not None:
        what = "trees" if of_trees else "problems"
        console.print(forest_titles(console.width, of_trees=of_trees))
        now = now_us()
        for item in items:
            console.print(forest_line(item, console.width, now_us=now, of_trees=of_trees))
        if where:
            _say(console, f"{len(kept)} of the newest {len(read)} {what} are let through")
        if len(items) < len(kept) or len(read) == limit:
            _say(console, f"the first {len(items)} {what}; --limit shows more")
        _say(
            console, f"open one: treerl inspect TREE --url {url}; or all of it: -i instead of TREE"
        )
    return [_item_json(item, of_trees) for item in items]


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, style="dim", soft_wrap=True)


def _item_json(item: Item, of_trees: bool) -> dict[str, Any]:
    when = datetime.fromtimestamp(item.created_us / 1e6, UTC).isoformat(timespec="seconds")
    common = {
        "tree": item.newest,
        "question": item.question,
        "truth": item.truth,
        "right": item.right,
        "leaves": item.leaves,
        "pass_rate": item.rate,
        "entropy": item.entropy,
        "when": when,
    }
    if not of_trees:
        return common | {"trees": item.trees}
    return common | {
        "run": item.run,
        "step": item.step,
        "spans": item.spans,
        "tokens": item.tokens,
        "cached": item.cached,
    }


# One tree --------------------------------------------------------------------------------------------------


def show_tree(
    url: str, tree_id: int, *, look: Look, weights: Path | None, console: Console | None
) -> dict[str, Any]:
    """One tree as aligned lines, or as JSON values; with two estimators side by side if asked."""
    _check(look)
    with open_library(url, weights) as (library, policies):
        opened = library.open(tree_id)
        shade, beside, found = _shades(library, opened, look)
        if console is not None:
            for note in policies.notes:
                _say(console, note)
            _print_tree(opened, look, console, shade=shade, beside=beside, found=found, url=url)
    result = {"tree": tree_id} | as_json(opened.view)
    own = (look.estimator or opened.estimator,) if look.colour == "advantage" else ()
    names = look.compare or own
    for name in names:
        means = library.credit(opened, name).shade(opened.tree).values
        for node in result["nodes"]:
            node.setdefault("advantage", {})[name] = means[node["row"]]
    if found is not None:
        result["compare"] = {
            "correlation": found.correlation,
            "opposed": found.opposed,
            "only_one": found.only_one,
            "spans": found.spans,
        }
    return result


def _check(look: Look) -> None:
    if look.colour not in SHADES:
        raise ConfigError(f"--colour {look.colour}: choose one of {', '.join(SHADES)}")
    if look.compare and len(look.compare) != 2:
        raise ConfigError("--compare: give two estimators, as in --compare tree_value,grpo")
    for name in (*look.compare, look.estimator):
        if name and name not in ESTIMATORS:
            raise ConfigError(f"estimator {name}: choose one of {', '.join(ESTIMATORS)}")


def _shades(
    library: Library, opened: Opened, look: Look
) -> tuple[Shade, tuple[Shade, ...], Comparison | None]:
    if look.compare:
        first, second = (library.credit(opened, name) for name in look.compare)
        found = compare(opened, first, second)
        return first.shade(opened.tree), (second.shade(opened.tree),), found
    name = look.estimator or opened.estimator
    credit = library.credit(opened, name) if look.colour == "advantage" else None
    return shade_of(look.colour, opened.view, opened.tree, credit), (), None


def _print_tree(
    opened: Opened,
    look: Look,
    console: Console,
    *,
    shade: Shade,
    beside: tuple[Shade, ...],
    found: Comparison | None,
    url: str,
) -> None:
    tree = opened.stored.info.id
    _say(console, opened.title)
    lines = render_tree(
        opened.view,
        max_children=None if look.whole else 12,
        width=console.width,
        shade=shade,
        beside=beside,
        only_right=look.only_right,
    )
    console.print(lines)
    if found is not None:
        console.print(render_comparison(opened, found, width=console.width))
    if "scored" in opened.kept:
        scored = opened.kept["scored"]
        _say(console, f"log-probs under {scored.policy}; reference {scored.reference}")
    _say(console, f"one span: treerl inspect {tree} --node ROW --url {url}")


def show_node(
    url: str,
    tree_id: int,
    node: int,
    *,
    heat: str,
    estimator: str,
    weights: Path | None,
    console: Console | None,
) -> dict[str, Any]:
    """One span in full, its tokens coloured by entropy, log-prob, advantage or new/old ratio."""
    if heat not in HEATS:
        raise ConfigError(f"--heat {heat}: choose one of {', '.join(HEATS)}")
    with open_library(url, weights) as (library, policies):
        opened = _open_at(library, tree_id, node)
        shade = heat_of(heat, library, opened, estimator or opened.estimator)
    if console is not None:
        for note in policies.notes:
            _say(console, note)
        _say(console, opened.title)
        console.print(render_detail(opened, node, heat=shade, width=console.width))
        if heat == "ratio":
            _say(console, f"new: {opened.kept['scored'].policy}; old: the sampler's own log-probs")
    view = opened.view.nodes[node]
    assert shade.tokens is not None
    values = np.asarray(shade.tokens[view.start : view.stop], np.float64).tolist()
    shown = [value if np.isfinite(value) else None for value in values]
    texts = opened.span_texts(node)
    ids = opened.tree.tokens.token[view.start : view.stop].tolist()
    return {"tree": tree_id, "node": node, "tokens": texts, "ids": ids, heat: shown}


def show_siblings(
    url: str, tree_id: int, node: int, *, weights: Path | None, console: Console | None
) -> dict[str, Any]:
    """A span beside its best sibling, token by token, then all its siblings."""
    with open_library(url, weights) as (library, policies):
        opened = _open_at(library, tree_id, node)
    other = best_sibling(opened, node)
    if other is None:
        raise ConfigError(f"--node {node}: span {node} of tree {tree_id} has no sibling")
    if console is not None:
        for note in policies.notes:
            _say(console, note)
        _say(console, opened.title)
        console.print(render_pair(opened, node, other))
        console.print()
        console.print(render_family(opened, node, width=console.width))
    family = opened.view.nodes[opened.view.nodes[node].parent].children
    rows = {child: continuation(opened, child) for child in family}
    return {"tree": tree_id, "node": node, "best_sibling": other, "continuations": rows}


def _open_at(library: Library, tree_id: int, node: int) -> Opened:
    """A tree that has a span `node`."""
    opened = library.open(tree_id)
    if node not in opened.view.nodes:
        raise ConfigError(f"--node {node}: tree {tree_id} has rows 0 to {len(opened.tree) - 1}")
    return opened


# The app ---------------------------------------------------------------------------------------------------


def browse(
    url: str, tree_id: int | None, *, run: str | None, look: Look, weights: Path | None
) -> None:
    """Opens the cache, or one tree of it, in the interactive app. Raises ConfigError without textual."""
    if importlib.util.find_spec("textual") is None:
        raise ConfigError(
            "-i needs textual: pip install 'treerl[tui]'; without -i the tree is printed"
        )
    _check(look)
    from treerl.inspect.app import InspectApp

    with open_library(url, weights) as (library, policies):
        run_id = library.run_id(run)

        def read(of: Item | None) -> list[Item]:
            if of is None:
                return problem_items(library, run_id, REACH)
            assert of.problem is not None
            return [of_tree(info, entropy) for info, entropy in library.trees(of.problem, run_id)]

        def open_tree(tree_id: int) -> TreeState:
            opened = library.open(tree_id)
            first, second = look.compare or (look.estimator or opened.estimator, None)
            state = TreeState(library, opened, look.colour, first, second, notes=policies.notes)
            state.only_right = look.only_right
            state.refold()
            return state

        if tree_id is not None:
            library.store.load_tree(tree_id)  # absent: said before the screen is taken
        else:
            # The tokenizer's imports take seconds: they begin while a person reads the list.
            threading.Thread(target=library.warm, daemon=True).start()
        InspectApp(f"replay cache {url}", read, open_tree, tree_id=tree_id).run()
