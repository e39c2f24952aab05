"""Rich renderables of a search: the tree, a span's tokens as heat, tables of trees. Pure: data in, rich out.

Every colour stands beside a figure or a mark, so that pipes, NO_COLOR and colour-blind eyes lose nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree as RichTree

from treerl.inspect.model import INNER, RIGHT, TRUNCATED, UNJUDGED, WRONG, NodeView, TreeView
from treerl.search.tree import ROOT

ENTROPY_TOP = 2.0
"""Nats at the top of every entropy scale: one fixed scale, so that certainty never looks like doubt."""
BLOCKS = " ▁▂▃▄▅▆▇█"
MARK_STYLES = {
    RIGHT: "bold green",
    WRONG: "red",
    TRUNCATED: "yellow",
    UNJUDGED: "dim",
    INNER: "cyan",
}
HEAT = ("#d0d0d0", "#f5d76e", "#f4a742", "#e8663d", "#c62f4b", "#7d1d6f")


def render_tree(view: TreeView, *, max_children: int = 12, width: int = 100) -> RenderableType:
    """The tree as text: mark, q, bar of visit share, visits, entropy, first words, answer at leaves.

    Children beyond `max_children` of a node, fewest visits first, are counted in a line of their own.
    """
    root = view.nodes[ROOT]
    top = RichTree(_root_line(view, root), guide_style="dim")
    stack: list[tuple[RichTree, int]] = [(top, ROOT)]
    while stack:
        branch, row = stack.pop()
        shown, hidden = _choose(view, view.nodes[row].children, max_children)
        for child in shown:
            node = view.nodes[child]
            guide = "bold green" if node.best else "dim"
            stack.append((branch.add(_line(node, width), guide_style=guide), child))
        if hidden:
            right = sum(view.nodes[c].right_leaves for c in hidden)
            branch.add(Text(f"… {len(hidden)} more branches ({right} right leaves)", style="dim"))
    return Group(_header(view), top)


def _header(view: TreeView) -> Text:
    line = Text(
        f"{RIGHT} right  {WRONG} wrong  {TRUNCATED} cut off  {INNER} inner  {UNJUDGED} unjudged"
    )
    line.append(f"   entropy scale 0 to {ENTROPY_TOP:g} nats", style="dim")
    if view.meta.get("exit"):
        line.append(f"   ended: {view.meta['exit']}", style="dim")
    return line


def _root_line(view: TreeView, root: NodeView) -> Text:
    line = Text(view.question or root.text, style="bold")
    line.append(f"   truth {view.truth}", style="default")
    line.append(
        f"   {root.right_leaves}/{root.leaves} right, {len(view.nodes)} spans, "
        f"{view.n_generated} tokens drawn",
        style="dim",
    )
    return line


def _line(node: NodeView, width: int) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(node.mark, style=MARK_STYLES[node.mark])
    line.append(f" q {_figure(node.q)}", style="bold" if node.best else "default")
    line.append(f" {_bar(node.share)} n {node.visits:<3d} ", style="default")
    line.append(sparkline(node.entropies, cells=8), style="magenta")
    room = max(16, width - 40)
    text = node.text.replace("\n", "⏎")
    line.append(" ")
    if node.origin == "cache":
        line.append("cached ", style="blue")
    line.append(text if len(text) <= room else text[: room - 1] + "…", "bold" if node.best else "")
    if node.outcome == "scored":
        line.append(f"  → {node.answer if node.answer is not None else 'no answer'}", "dim")
    elif node.outcome is not None:
        line.append(f"  {node.outcome}", style="yellow")
    return line


def _choose(view: TreeView, children: Sequence[int], most: int) -> tuple[list[int], list[int]]:
    if len(children) <= most:
        return list(children), []
    ranked = sorted(children, key=lambda c: (not view.nodes[c].best, -view.nodes[c].visits))
    shown = set(ranked[:most])
    return [c for c in children if c in shown], [c for c in children if c not in shown]


def _figure(value: float | None) -> str:
    return "  -  " if value is None else f"{value:+.2f}"


def _bar(share: float) -> str:
    return BLOCKS[min(8, int(np.ceil(8 * share)))]


def sparkline(values: NDArray[Any], *, cells: int) -> str:
    """Means of at most `cells` equal pieces as block characters, on the fixed entropy scale."""
    if len(values) == 0:
        return ""
    pieces = np.array_split(np.nan_to_num(values), min(cells, len(values)))
    levels = [min(8, round(8 * float(piece.mean()) / ENTROPY_TOP)) for piece in pieces]
    return "".join(BLOCKS[max(1, level)] for level in levels)


def render_span(
    texts: Sequence[str], values: NDArray[Any], *, name: str, top: float = ENTROPY_TOP
) -> RenderableType:
    """A span's tokens coloured by `values`, and the same as figures for the five highest.

    texts: text of each token. values: float[n], NaN where unknown.
    """
    heat = Text()
    for text, value in zip(texts, values, strict=True):
        level = 0 if not np.isfinite(value) else min(5, int(6 * abs(float(value)) / top))
        heat.append(text.replace("\n", "⏎\n") or "∅", style=HEAT[level])
    table = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
    table.add_column("token")
    table.add_column("place", justify="right")
    table.add_column(name, justify="right")
    order = np.argsort(-np.abs(np.nan_to_num(values)), kind="stable")[:5]
    for index in order.tolist():
        table.add_row(repr(texts[index]), str(index), f"{values[index]:.3f}")
    return Group(heat, table)


def render_rows(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table; figures are aligned to the right."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    rows = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows) and bool(rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*[Text(_cell(value)) for value in row])
    return table


def render_mapping(title: str, values: Mapping[str, object]) -> Table:
    """Names and values, one a line."""
    return render_rows(title, ("", ""), [(name, _cell(value)) for name, value in values.items()])


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
        case int():
            return f"{value:,d}"
    return str(value)
