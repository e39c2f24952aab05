"""Which lines a tree has: spans depth-first with their guides, and what was left out, counted.

An only child stands straight below its parent, so that chains of chunks need no depth. Nothing is dropped
silently: branches that a rule leaves out are one line that says how many, by which rule, and how many right
leaves they hold. Pure; the printed tree and the app show the same lines.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from treerl.inspect.model import TreeView
from treerl.search.tree import ROOT


@dataclass(frozen=True, slots=True)
class Rules:
    """What is left out. folded: rows shown without what is below them. opened: rows all of whose children

    are shown, whatever the rules. only_right: branches without a right leaf are left out. max_children: of a
    span's children those of fewest visits beyond so many; min_share: those below this share of all visits.
    """

    folded: Collection[int] = frozenset()
    opened: Collection[int] = frozenset()
    only_right: bool = False
    max_children: int | None = None
    min_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """A span (`row`), or the children of `row` that a rule left out (`hidden`, `reason`).

    guide: what is drawn before the mark. folded: what is below the span is not shown.
    """

    row: int
    guide: str
    hidden: tuple[int, ...] = ()
    reason: str = ""
    folded: bool = False

    @property
    def is_elision(self) -> bool:
        """The line stands for branches that are not shown."""
        return bool(self.hidden)

    def counts(self, view: TreeView) -> tuple[int, int, int]:
        """Spans, ended leaves and right leaves that a fold or an elision hides."""
        nodes = view.nodes
        rows = self.hidden or (self.row,)
        return (
            sum(nodes[row].spans + self.is_elision for row in rows),
            sum(nodes[row].leaves for row in rows),
            sum(nodes[row].right_leaves for row in rows),
        )


def outline(view: TreeView, rules: Rules) -> list[Line]:
    """The lines of a tree, top to bottom."""
    lines: list[Line] = []
    # (line without its guide resolved, guide of the line, guide of what is below it)
    stack: list[tuple[Line, str]] = [(Line(ROOT, ""), "")]
    while stack:
        line, below = stack.pop()
        lines.append(line)
        if line.is_elision or line.folded:
            continue
        entries = list(_entries(view, line.row, rules))
        for index in range(len(entries) - 1, -1, -1):
            stack.append(_place(entries[index], below, index == len(entries) - 1, len(entries)))
    return lines


def _place(entry: Line, above: str, last: bool, count: int) -> tuple[Line, str]:
    """The entry with its guide, and the guide of the lines below it."""
    if count == 1:
        guide, below = above, above
    else:
        guide, below = above + ("└─" if last else "├─"), above + ("  " if last else "│ ")
    return Line(entry.row, guide, entry.hidden, entry.reason, entry.folded), below


def _entries(view: TreeView, row: int, rules: Rules) -> Iterator[Line]:
    """The shown children of a span in order of arrival, then one line a rule for those left out."""
    children = view.nodes[row].children
    left_out: dict[str, list[int]] = {}
    if row not in rules.opened:
        for child in children:
            if (reason := _reason(view, child, rules)) is not None:
                left_out.setdefault(reason, []).append(child)
        out = {child for group in left_out.values() for child in group}
        most = rules.max_children
        rest = [child for child in children if child not in out]
        if most is not None and len(rest) > most:
            ranked = sorted(rest, key=lambda c: (not view.nodes[c].best, -view.nodes[c].visits))
            beyond = set(ranked[most:])
            left_out[f"beyond the {most} most visited"] = [c for c in rest if c in beyond]
    out = {child for group in left_out.values() for child in group}
    for child in children:
        if child not in out:
            folded = child in rules.folded and bool(view.nodes[child].children)
            yield Line(child, "", folded=folded)
    for reason, group in left_out.items():
        yield Line(row, "", tuple(group), reason)


def _reason(view: TreeView, child: int, rules: Rules) -> str | None:
    node = view.nodes[child]
    if node.best:
        return None
    if rules.only_right and node.right_leaves == 0:
        return "without a right leaf"
    if node.share < rules.min_share:
        return f"below {100 * rules.min_share:g} % of visits"
    return None
