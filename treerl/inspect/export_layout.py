"""Where the parts of a tree's figure stand: spans over an axis of tokens, ends below each other.

What would make the figure too tall is counted in a line of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len

from treerl.inspect.model import TreeView
from treerl.inspect.outline import Line, Rules, outline
from treerl.inspect.text import visible
from treerl.search.tree import ROOT

MOST_ROWS = 60
"""Rows of a figure, unless the whole tree is asked for."""
WIDTH = 960
"""Pixels, at least as far as bars reach; answers and the header keep within it too."""
MARGIN, GAP, ROW, ELISION, BAR, CELL, SMALL = 20, 16, 34, 22, 17, 6.63, 5.42
"""Pixels: border, before each span, rows of leaves and of elisions, bars, a character of 11 and of 9 px."""


@dataclass(slots=True)
class Place:
    """Where a line of the outline stands. x, end: of its bar; y: the middle."""

    line: Line
    parent: int
    x: float
    end: float
    y: float = 0.0
    below: list["Place"] = field(default_factory=list)


def shown_lines(view: TreeView, *, whole: bool, only_right: bool) -> list[Line]:
    """The outline, its rules tightened until it has at most `MOST_ROWS` ends."""
    lines = outline(view, Rules(only_right=only_right))
    for most, share in [(n, 0.0) for n in (12, 8, 6, 4, 3)] + [
        (3, share) for share in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 1.1)
    ]:
        if whole or _ends(view, lines) <= MOST_ROWS:
            break
        rules = Rules(only_right=only_right, max_children=most, min_share=share)
        lines = outline(view, rules)
    return lines


def _ends(view: TreeView, lines: Sequence[Line]) -> int:
    return sum(line.is_elision or not view.nodes[line.row].children for line in lines)


def pixels_a_token(view: TreeView, lines: Sequence[Line]) -> float:
    """As wide as the texts need, as narrow as the figure's width demands."""
    shown = [view.nodes[line.row] for line in lines if not line.is_elision and line.row != ROOT]
    tokens = sum(node.n_tokens for node in shown) or 1
    wanted = CELL * sum(cell_len(visible(node.text)) for node in shown) / tokens
    depth: dict[int, int] = {ROOT: 0}
    most = 1.0
    for node in shown:
        depth[node.row] = depth[node.parent] + node.n_tokens
        most = max(most, depth[node.row])
    levels = max((len(view.path(node.row)) for node in shown), default=1)
    room = WIDTH - 2 * MARGIN - GAP * min(levels, 24) - 110
    return min(max(wanted, CELL) * 1.04, max(0.5, room / most))


def places_of(
    view: TreeView, lines: Sequence[Line], pixels: float, top: float
) -> tuple[list[Place], float]:
    """All lines with their coordinates, parents first, and the lower edge."""
    places: list[Place] = []
    by_row: dict[int, Place] = {}
    y = top
    for line in lines:
        if line.is_elision:
            start = by_row[line.row].end + GAP
            place = Place(line, line.row, start, start, y)
        elif line.row == ROOT:
            place = Place(line, -1, MARGIN, MARGIN + 6, y)
        else:
            node = view.nodes[line.row]
            start = by_row[node.parent].end + GAP
            place = Place(line, node.parent, start, start + max(4.0, node.n_tokens * pixels), y)
        if place.parent >= 0:
            by_row[place.parent].below.append(place)
        if not line.is_elision:
            by_row[line.row] = place
        places.append(place)
    for place in places:  # depth-first: ends come in the order of their rows
        if not place.below:
            beside = place.parent >= 0 and len(by_row[place.parent].below) > 1
            height = ELISION if place.line.is_elision and beside else ROW
            place.y = y + height / 2
            y += height
    for place in reversed(places):
        if place.below:
            place.y = (place.below[0].y + place.below[-1].y) / 2
    return places, y
