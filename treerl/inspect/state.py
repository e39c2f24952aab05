"""What the tree screen shows and where its cursor may go; no terminal here.

`TreeState` owns the choices of a person who looks at one tree (folds, colour, estimators, heat, search) and
answers with lines, shades and rows. What cannot be had (an estimator without a policy) leaves the choice as
it was and says why in `note`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from treerl.errors import StoreError, TreerlError
from treerl.inspect.compare import compare, render_comparison
from treerl.inspect.detail import render_detail
from treerl.inspect.export_svg import tree_svg
from treerl.inspect.heat import HEATS, heat_of
from treerl.inspect.library import ESTIMATORS, Library, Opened
from treerl.inspect.outline import Line, Rules, outline
from treerl.inspect.render import Layout, layout_of, render_brief, render_scale
from treerl.inspect.shade import SHADES, Shade, shade_of, shade_q
from treerl.inspect.siblings import best_sibling, render_family, render_pair
from treerl.search.tree import ROOT

ELIDED = {"max_children": 12, "min_share": 0.01}
"""Rules of `x`: of each span's children the 12 most visited, and none below 1 % of the visits."""


@dataclass(slots=True)
class TreeState:
    """One opened tree and how it is looked at. second: the estimator beside `estimator`, or None.

    notes: what a person should know of the tree as a whole."""

    library: Library
    opened: Opened
    colour: str = "q"
    estimator: str = "tree_value"
    second: str | None = None
    heat: str = "entropy"
    only_right: bool = False
    elide: bool = False
    ids: bool = False
    pane: str = "span"
    found: str = ""
    note: str = ""
    notes: Sequence[str] = ()
    folded: set[int] = field(default_factory=set)
    unfolded: set[int] = field(default_factory=set)
    lines: list[Line] = field(default_factory=list)
    shade: Shade | None = None
    beside: tuple[Shade, ...] = ()
    _place: dict[int, int] = field(default_factory=dict)
    _layout: Layout | None = None

    def __post_init__(self) -> None:
        self.refold()

    def refold(self) -> None:
        """Makes the lines anew."""
        rules: dict[str, Any] = ELIDED if self.elide else {}
        chosen = Rules(self.folded, self.unfolded, self.only_right, **rules)
        self.lines = outline(self.opened.view, chosen)
        self._place = {
            line.row: index for index, line in enumerate(self.lines) if not line.is_elision
        }

    def layout(self, width: int) -> Layout:
        """The columns at a width; made once, since every line asks."""
        known = self._layout
        if known is None or known.width != width:
            known = self._layout = layout_of(self.opened.view, width, self.shade, self.beside)
        return known

    # Colours ----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Computes what the chosen colour, estimators and heat need; may load a policy. Sets `note`."""
        self.note = "; ".join(self.notes)
        view, tree = self.opened.view, self.opened.tree
        try:
            paid = self.second is not None or self.colour == "advantage"
            credit = self.library.credit(self.opened, self.estimator) if paid else None
            if self.second is not None and credit is not None:
                other = self.library.credit(self.opened, self.second)
                self.shade, self.beside = credit.shade(tree), (other.shade(tree),)
            else:
                self.shade, self.beside = shade_of(self.colour, view, tree, credit), ()
        except TreerlError as error:
            self.note = f"{self.second or self.estimator}: {error}"
            self.shade, self.beside = self.shade or shade_q(view), ()
        self._layout = None

    def heat_shade(self) -> tuple[Shade | None, str]:
        """The heat of the detail pane, or None and why not."""
        try:
            return heat_of(self.heat, self.library, self.opened, self.estimator), ""
        except TreerlError as error:
            return None, f"no {self.heat}: {error}"

    def header(self, width: int) -> RenderableType:
        """Which tree, its figures, its scale; how the two estimators compare; what could not be had."""
        view = self.opened.view
        head: list[RenderableType] = [
            render_brief(view, self.layout(width), self.opened.name, self.opened.place, width=width)
        ]
        if self.second is not None and self.beside:
            pair = [self.library.credit(self.opened, n) for n in (self.estimator, self.second)]
            head.append(render_scale(self.beside[0]))
            found = compare(self.opened, pair[0], pair[1])
            head.append(render_comparison(self.opened, found, width=width, most=2))
        if self.note:
            head.append(Text(self.note, style="bold italic", no_wrap=True, overflow="ellipsis"))
        return Group(*head)

    def paint_by(self, number: int) -> None:
        """Colour carries the `number`-th of SHADES, counted from 1; one estimator at a time again."""
        self.colour, self.second = SHADES[number - 1], None

    def turn_estimator(self, step: int) -> None:
        """Goes on to the next or previous estimator, and shows what it pays."""
        self.estimator = _turned(self.estimator, step)
        self.colour = "advantage"

    def turn_second(self, step: int) -> None:
        """Begins to compare, goes on to the next second estimator, or (step 0) compares no more."""
        if step == 0:
            self.second = None
            return
        self.second = _turned(self.second or self.estimator, step)
        if self.second == self.estimator:
            self.second = _turned(self.second, step)

    def turn_heat(self) -> None:
        """Goes on to the next heat."""
        self.heat = HEATS[(HEATS.index(self.heat) + 1) % len(HEATS)]

    def details(self, index: int, width: int) -> RenderableType:
        """What the pane says of a line: the span in full, beside its best sibling, or among all siblings."""
        line, opened = self.lines[index], self.opened
        if line.is_elision:
            return Text("branches that are not shown: enter shows them", style="dim")
        other = best_sibling(opened, line.row)
        if self.pane == "family":
            return render_family(opened, line.row, width=width)
        if self.pane == "pair" and other is not None:
            return render_pair(opened, line.row, other)
        heat, why = self.heat_shade()
        return render_detail(opened, line.row, heat=heat, why=why, width=width, ids=self.ids)

    def turn_pane(self, which: str) -> None:
        """Shows `which` in the pane, or the span again."""
        self.pane = "span" if self.pane == which else which

    def toggle_ids(self) -> None:
        """Token ids too, or no more."""
        self.ids = not self.ids

    # Folds ------------------------------------------------------------------------------------------------

    def toggle(self, index: int) -> int:
        """Opens an elision, folds or unfolds a span; returns the line to be at."""
        line = self.lines[index]
        if line.is_elision:
            self.unfolded.add(line.row)
            first = line.hidden[0]
            self.refold()
            return self._place[first]
        if self.opened.view.nodes[line.row].children and line.row != ROOT:
            self.folded ^= {line.row}
            self.refold()
        return self._place[line.row]

    def inward(self, index: int) -> int:
        """Unfolds, or goes to the first line below."""
        line = self.lines[index]
        if line.folded or line.is_elision:
            return self.toggle(index)
        has_more = bool(self.opened.view.nodes[line.row].children)
        return index + 1 if has_more and index + 1 < len(self.lines) else index

    def outward(self, index: int) -> int:
        """Goes to the parent; folds first where something below is shown."""
        line = self.lines[index]
        if line.is_elision:
            return self._place[line.row]
        if line.row != ROOT and self.opened.view.nodes[line.row].children and not line.folded:
            return self.toggle(index)
        return self._place[self.opened.view.nodes[line.row].parent] if line.row != ROOT else index

    def toggle_right(self, index: int) -> int:
        """Folds everything but the paths to right leaves, or shows all again; returns the line to be at."""
        row = self.lines[index].row
        self.only_right = not self.only_right
        self.unfolded.clear()
        self.folded.clear()
        self.refold()
        return self.nearest(row)

    def toggle_small(self, index: int) -> int:
        """Leaves small branches out, or shows them again; returns the line to be at."""
        row = self.lines[index].row
        self.elide = not self.elide
        self.unfolded.clear()
        self.refold()
        return self.nearest(row)

    def nearest(self, row: int) -> int:
        """The line of a span, or of the nearest span above it that has one."""
        while row not in self._place:
            row = self.opened.view.nodes[row].parent
        return self._place[row]

    def reveal(self, row: int) -> int:
        """Unfolds what hides a span; returns its line."""
        if row not in self._place:
            above = self.opened.view.path(row)[:-1]
            self.folded.difference_update(above)
            self.unfolded.update(above)
            self.refold()
        return self._place[row]

    # Jumps ------------------------------------------------------------------------------------------------

    def jump(self, index: int, step: int, wanted: Callable[[int], bool]) -> int | None:
        """The line of the next (step 1) or previous (-1) span wanted, round the end; None: there is none."""
        order = list(self.opened.view.nodes)
        at = order.index(self.lines[index].row)
        for offset in range(1, len(order) + 1):
            row = order[(at + step * offset) % len(order)]
            if wanted(row):
                return self.reveal(row)
        return None

    def right_leaf(self, index: int, step: int) -> int | None:
        """The next or previous right leaf."""
        right = set(self.opened.view.right_leaves)
        return self.jump(index, step, right.__contains__)

    def search(self, index: int, step: int) -> int | None:
        """The next or previous span whose text or answer has what is searched for, letter case aside."""
        nodes, low = self.opened.view.nodes, self.found.casefold()

        def wanted(row: int) -> bool:
            node = nodes[row]
            return low in node.text.casefold() or low in (node.answer or "").casefold()

        return self.jump(index, step, wanted) if low else None

    def search_for(self, index: int, text: str) -> int | None:
        """The next span that has `text`, the one at the cursor last; nothing stays marked if there is none."""
        self.found = text
        to = self.search(index, 1)
        self.found = text if to is not None else ""
        return to

    def sibling(self, index: int, step: int) -> int:
        """The next or previous sibling that is shown; stays at the ends."""
        row = self.lines[index].row
        if row == ROOT or self.lines[index].is_elision:
            return index
        family = self.opened.view.nodes[self.opened.view.nodes[row].parent].children
        shown = [child for child in family if child in self._place]
        at = min(len(shown) - 1, max(0, shown.index(row) + step))
        return self._place[shown[at]]

    def save(self, folder: Path) -> Path:
        """Writes the tree as a figure, coloured as it is now, under a name that is free; returns its path."""
        opened = self.opened
        figure = tree_svg(
            opened.view,
            self.shade or shade_q(opened.view),
            title=opened.title,
            only_right=self.only_right,
        )
        file = folder / f"tree-{opened.stored.info.id}.svg"
        for number in count(2):
            if not file.exists():
                break
            file = folder / f"tree-{opened.stored.info.id}-{number}.svg"
        try:
            file.write_text(figure, encoding="utf-8")
        except OSError as error:
            raise StoreError(f"cannot write {file}: {error.strerror}") from error
        return file

    def path_text(self, row: int) -> str:
        """Prompt and completion up to the end of a span."""
        opened = self.opened
        return opened.view.question + opened.decode(opened.tree.completion_tokens(row).tolist())


def _turned(estimator: str, step: int) -> str:
    return ESTIMATORS[(ESTIMATORS.index(estimator) + step) % len(ESTIMATORS)]
