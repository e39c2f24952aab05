"""A tree in few lines, for views that are redrawn: the same marks and scales as the inspector's tree.

Every line is one `Text` that fits the width; what does not fit into the height is counted, never dropped.
"""

from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from treerl.inspect.model import RIGHT, NodeView, TreeView
from treerl.inspect.render import MARK_STYLES, plural, sparkline
from treerl.inspect.text import fit, visible
from treerl.search.tree import ROOT

GUIDES = {"through": "│  ", "branch": "├─ ", "last": "└─ ", "blank": "   "}


@dataclass(frozen=True, slots=True)
class _Placed:
    """A span with the guides in front of its line."""

    row: int
    guides: str


def tree_lines(view: TreeView, *, width: int, most: int) -> list[Text]:
    """The tree in at most `most` lines of at most `width` cells, the best path first among what is kept."""
    if most < 1:
        return []
    placed = _placed(view)
    kept = _keep(view, placed, most)
    lines = [_span_line(view.nodes[at.row], at.guides, width) for at in placed if at.row in kept]
    hidden = [view.nodes[at.row] for at in placed if at.row not in kept]
    if hidden:
        right = sum(node.mark == RIGHT for node in hidden)
        text = f"… {len(hidden)} more {plural(len(hidden), 'span')} ({right} right)"
        lines.append(Text(fit(text, width), style="dim"))
    return lines


def _placed(view: TreeView) -> list[_Placed]:
    """All spans but the root's, depth-first, with their guides."""
    out: list[_Placed] = []
    stack = [(row, "", i == 0) for i, row in enumerate(reversed(view.nodes[ROOT].children))]
    while stack:
        row, before, last = stack.pop()
        out.append(_Placed(row, before + GUIDES["last" if last else "branch"]))
        below = before + GUIDES["blank" if last else "through"]
        children = view.nodes[row].children
        stack.extend((child, below, i == 0) for i, child in enumerate(reversed(children)))
    return out


def _keep(view: TreeView, placed: list[_Placed], most: int) -> set[int]:
    """Rows to show: all if they fit, else the best path, then the most visited; parents before children."""
    if len(placed) <= most:
        return {at.row for at in placed}
    depth = {ROOT: 0}
    for at in placed:
        depth[at.row] = depth[view.nodes[at.row].parent] + 1
    ranked = sorted(
        placed,
        key=lambda at: (
            not view.nodes[at.row].best,
            -view.nodes[at.row].visits,
            depth[at.row],
        ),
    )
    return {at.row for at in ranked[: most - 1]}


def _span_line(node: NodeView, guides: str, width: int) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis").append(fit(guides, width // 2), "dim")
    figure = "  - " if node.q is None else f"{node.q:4.2f}"
    line.append(node.mark, MARK_STYLES[node.mark])
    line.append(f" {figure} n {node.visits:<3d}", "bold" if node.best else "")
    line.append(f"{sparkline(node.entropies, cells=6):6s} ", "magenta")
    if node.cached:
        line.append("cached ", "blue")
    answer = _answer(node)
    room = width - cell_len(line.plain) - cell_len(answer)
    line.append(fit(visible(node.text), max(0, room)), "bold" if node.best else "")
    line.append(fit(answer, width - cell_len(line.plain)), "dim")
    return line


def _answer(node: NodeView) -> str:
    if node.outcome is None:
        return ""
    if node.outcome != "scored":
        return f" {node.outcome}"
    return f" → {'no answer' if node.answer is None else fit(visible(node.answer), 24)}"
