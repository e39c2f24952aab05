"""Rich renderables of a search: the tree as aligned lines, and plain tables. Pure: data in, rich out.

Every colour stands beside a figure or a mark, so that pipes, NO_COLOR and colour-blind eyes lose nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from treerl.inspect.model import INNER, RIGHT, TRUNCATED, UNJUDGED, WRONG, NodeView, TreeView
from treerl.inspect.outline import Line, Rules, outline
from treerl.inspect.shade import ENTROPY_TOP, RISING_BLOCKS, Scale, Shade, shade_q, signed, strip_of
from treerl.inspect.text import fit, visible
from treerl.search.tree import ROOT

BAR_CELLS = 8
SPARK_CELLS = 8
STRIP_CELLS = 8
BLOCKS = " " + RISING_BLOCKS
MARK_STYLES = {
    RIGHT: "bold green",
    WRONG: "red",
    TRUNCATED: "yellow",
    UNJUDGED: "dim",
    INNER: "cyan",
}
"""Colours of marks where colour carries nothing else (live views)."""
EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns the lines of one tree have at a width: the same for all lines.

    shade: what colour carries. columns: shades with a column of their own. row, visits: cells of theirs.
    """

    width: int
    row: int
    visits: int
    shade: Shade
    columns: tuple[Shade, ...]
    bar: bool
    spark: bool
    strips: bool

    @property
    def left(self) -> int:
        """Cells before the guides."""
        cells = self.row + 1 + 5 + 1 + self.visits + 1
        cells += (BAR_CELLS + 1 if self.bar else 0) + (SPARK_CELLS + 1 if self.spark else 0)
        return cells + sum(self.column(shade) + 1 for shade in self.columns)

    def column(self, shade: Shade) -> int:
        """Cells of a shade's own column."""
        return max(len(shade.title), 6 + (STRIP_CELLS + 1 if self.has_strip(shade) else 0))

    def has_strip(self, shade: Shade) -> bool:
        """Whether the column shows the tokens' values too."""
        return self.strips and shade.tokens is not None


def layout_of(
    view: TreeView, width: int, shade: Shade | None = None, beside: Sequence[Shade] = ()
) -> Layout:
    """The columns that fit: row, q and visits always, then the shade's figure, entropy, and a bar of visits."""
    shade = shade or shade_q(view)
    own = () if shade.title in ("q", "n") else (shade,)
    columns = (*own, *beside)
    strips = width >= 60 + 16 * len(columns)
    taken = 16 * len(columns) if strips else 8 * len(columns)
    return Layout(
        width=width,
        row=max(3, len(str(max(view.nodes)))),
        visits=max(2, len(str(view.nodes[ROOT].visits))),
        shade=shade,
        columns=columns,
        bar=width - taken >= 90,
        spark=width - taken >= 72 and shade.title != "entropy",
        strips=strips,
    )


def render_tree(
    view: TreeView,
    *,
    max_children: int | None = 12,
    width: int = 100,
    shade: Shade | None = None,
    beside: Sequence[Shade] = (),
    only_right: bool = False,
) -> RenderableType:
    """The whole tree: header, titles of the columns, a line a span.

    Children beyond `max_children` of a span, fewest visits first, and with `only_right` branches without a
    right leaf, are counted in a line of their own.
    """
    layout = layout_of(view, width, shade, beside)
    rules = Rules(max_children=max_children, only_right=only_right)
    lines = [render_line(view, line, layout) for line in outline(view, rules)]
    return Group(render_header(view, layout), render_titles(layout), *lines)


# Header ----------------------------------------------------------------------------------------------------


def render_header(view: TreeView, layout: Layout, *, most: int = 12) -> Text:
    """Question (at most `most` lines) and truth, figures of the tree, marks, and the scale of the colour."""
    root = view.nodes[ROOT]
    text = Text()
    question = (view.question or root.text).strip("\n").split("\n")
    for part in question[:most]:
        text.append(visible(part) + "\n", style="bold")
    if len(question) > most:
        text.append(f"… {len(question) - most} more lines of the question\n", style="dim")
    text.append(" · ".join(_figures(view)) + "\n")
    marks = f"{RIGHT} right  {WRONG} wrong  {TRUNCATED} cut off  {INNER} inner  {UNJUDGED} unjudged"
    text.append(marks, style="dim")
    text.append("\n")
    text.append_text(render_scale(layout.shade))
    if not layout.shade.title.startswith("entropy"):
        text.append(f"   {RISING_BLOCKS} entropy 0 to {ENTROPY_TOP:g} nats", style="dim")
    for other in layout.columns:
        if other is not layout.shade:
            text.append("\n")
            text.append_text(render_scale(other))
    return text


def render_brief(view: TreeView, layout: Layout, name: str, of: str, *, width: int) -> Text:
    """The header of the app: tree `name`, its figures, the run and step it is `of`; question; scale."""
    question = view.question or view.nodes[ROOT].text
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(fit(" · ".join([name, *_figures(view), of]), width - 2) + "\n")
    text.append(fit(visible(question), width - 2) + "\n", style="bold")
    text.append_text(render_scale(layout.shade))
    return text


def _figures(view: TreeView) -> list[str]:
    """The figures of a tree in words."""
    root = view.nodes[ROOT]
    cached = sum(node.cached and not node.children for node in view.nodes.values())
    figures = [
        f"{root.right_leaves}/{root.leaves} right",
        f"truth {visible(view.truth)}" if view.truth else "no truth given",
        f"{len(view.nodes):,d} spans",
        f"{view.n_generated:,d} tokens drawn",
    ]
    figures += [f"{cached} cached {plural(cached, 'leaf', 'leaves')}"] if cached else []
    ended = view.meta.get("exit", "done")
    figures += [f"ended: {ended}"] if ended != "done" else []
    return figures


def render_scale(shade: Shade) -> Text:
    """The scale in words, and its colours at five of its values."""
    text = Text("colour: ", style="dim")
    text.append(shade.legend, style="dim")
    text.append("  ")
    scale = shade.scale
    last = ""
    for tick in scale.ticks():
        # A scale of whole figures may have fewer than five.
        if (words := shade.write(tick)) != last:
            text.append(f" {words} ", style=scale.style(tick) or "default")
        last = words
    return text


def render_titles(layout: Layout) -> Text:
    """The titles of the columns, as the lines below have them."""
    cells = [f"{'row':>{layout.row}}", f"{'q':>5}", f"{'n':>{layout.visits}}"]
    cells += [f"{'share':<{BAR_CELLS}}"] if layout.bar else []
    cells += [f"{'entropy':<{SPARK_CELLS}}"] if layout.spark else []
    for shade in layout.columns:
        cells.append(f"{fit(shade.title, layout.column(shade)):<{layout.column(shade)}}")
    cells.append("span")
    return Text(fit(" ".join(cells), layout.width).ljust(layout.width), style="dim underline")


# Lines -----------------------------------------------------------------------------------------------------


def render_line(view: TreeView, line: Line, layout: Layout, *, found: str = "") -> Text:
    """One line, at most `layout.width` cells: figures in columns, then guides, mark, first words, answer.

    found: text to show reversed where it occurs.
    """
    room = max(4, layout.width - layout.left)
    guide = fit_guide(line.guide, max(4, room * 2 // 5))
    text = Text(no_wrap=True, overflow="ellipsis")
    if line.is_elision:
        text.append(" " * layout.left)
        text.append(guide, style="dim")
        _, leaves, right = line.counts(view)
        count = len(line.hidden)
        words = f"… {count} {plural(count, 'branch', 'branches')}, {right}/{leaves} right: {line.reason}"
        text.append(fit(words, room - cell_len(guide)), style="dim italic")
        return text
    node = view.nodes[line.row]
    _append_figures(text, node, layout)
    strong = "bold" if node.best else ""
    text.append(guide, style=strong or "dim")
    text.append(node.mark, style=f"{strong} {layout.shade.style(line.row)}".strip())
    text.append(" ")
    _append_words(text, view, line, room - cell_len(guide) - 2, found)
    return text


def _append_figures(text: Text, node: NodeView, layout: Layout) -> None:
    shade = layout.shade
    strong = "bold" if node.best else ""
    text.append(f"{node.row:>{layout.row}} ", style="dim")
    text.append(f"{signed(node.q):>5}", style=_join(strong, shade, "q", node.row))
    text.append(" ")
    text.append(f"{node.visits:>{layout.visits}d}", style=_join(strong, shade, "n", node.row))
    text.append(" ")
    if layout.bar:
        text.append(bar(node.share, BAR_CELLS) + " ", style="dim")
    if layout.spark:
        text.append(f"{sparkline(node.entropies, cells=SPARK_CELLS):<{SPARK_CELLS}} ")
    for column in layout.columns:
        room = layout.column(column)
        text.append(f"{column.figure(node.row):>6}", style=column.style(node.row))
        room -= 6
        if layout.has_strip(column) and column.tokens is not None:
            text.append(" ")
            cells = strip_of(column.scale, column.tokens[node.start : node.stop], cells=STRIP_CELLS)
            for block, style in cells:
                text.append(block, style=style)
            room -= 1 + len(cells)
        text.append(" " * (room + 1))


def _join(strong: str, shade: Shade, title: str, row: int) -> str:
    return f"{strong} {shade.style(row)}".strip() if shade.title == title else strong


def _append_words(text: Text, view: TreeView, line: Line, room: int, found: str) -> None:
    node = view.nodes[line.row]
    end = _ending(node)
    if line.folded:
        spans, leaves, right = line.counts(view)
        end = f"  ⊞ {spans} {plural(spans, 'span')}, {right}/{leaves} right"
    end = fit(end, max(8, room * 2 // 3))
    words = "cached " if node.cached and not node.best else ""
    said = f"the prompt, {node.n_tokens} tokens" if node.row == ROOT else node.text.lstrip()
    shown = fit(words + visible(said), max(1, room - cell_len(end)))
    begin = len(text)
    text.append(shown, style="bold" if node.best else "")
    if words and shown.startswith(words):
        text.stylize("dim italic", begin, begin + len(words))
    if found:
        low, at = shown.casefold(), -1
        while (at := low.find(found.casefold(), at + 1)) >= 0:
            text.stylize("reverse", begin + at, begin + at + len(found))
    text.append(end, style="dim" if line.folded or node.outcome == "scored" else "italic")


def _ending(node: NodeView) -> str:
    """What stands behind the words of a leaf: the parsed answer, or why there is none."""
    if node.outcome == "scored":
        answer = "no answer" if node.answer is None else visible(node.answer)
        odd = "" if node.reward in (0.0, 1.0) else f" ({node.reward:g})"
        return f"  → {answer}{odd}"
    if node.outcome is not None:
        return f"  {node.outcome}"
    return "  open" if node.finish == "cut" and not node.children else ""


def fit_guide(guide: str, cells: int) -> str:
    """A guide cut from the left to `cells`: the last levels are those that matter."""
    return guide if len(guide) <= cells else "⋯" + guide[len(guide) - cells + 1 :]


def plural(count: int, one: str, many: str | None = None) -> str:
    """`one` or `many` (default: with an s)."""
    return one if count == 1 else many or one + "s"


def bar(share: float, cells: int) -> str:
    """A bar of `share` (0 to 1) of `cells`, in eighths; something wherever there is a visit."""
    eighths = min(8 * cells, max(int(share > 0), round(share * 8 * cells)))
    full, rest = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[rest] if rest else "")).ljust(cells)


def sparkline(values: NDArray[Any], *, cells: int) -> str:
    """Means of at most `cells` equal pieces as blocks on the fixed entropy scale; blank where unknown."""
    scale = Scale(0.0, ENTROPY_TOP)
    return "".join(block for block, _ in strip_of(scale, values, cells=cells))


# Tables ----------------------------------------------------------------------------------------------------


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
