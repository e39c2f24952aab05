"""A tree as a figure: spans as bars over an axis of tokens, branches below each other, leaves with their marks.

Plain SVG 1.1 with shapes for marks and system fonts, so that it looks the same in a paper, a README and a
browser. What would make the figure too tall is counted in a line of its own.
"""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

import numpy as np
from rich.cells import cell_len

from treerl.inspect.model import INNER, RIGHT, TRUNCATED, UNJUDGED, WRONG, NodeView, TreeView
from treerl.inspect.outline import Line, Rules, outline
from treerl.inspect.render import plural
from treerl.inspect.shade import Shade
from treerl.inspect.text import fit, visible
from treerl.search.tree import ROOT

MOST_ROWS = 60
"""Rows of a figure, unless the whole tree is asked for."""
WIDTH = 960
"""Pixels, at least as far as bars reach; answers and the header keep within it too."""
MARGIN, GAP, ROW, BAR, CELL, SMALL = 20, 16, 34, 17, 6.63, 5.42
"""Pixels: border, before each span, between leaves, height of a bar, a character of 11 and of 9 pixels."""
FONT = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, 'Liberation Mono', monospace"


@dataclass(frozen=True, slots=True)
class Paper:
    """Colours of everything that is not data."""

    back: str
    ink: str
    quiet: str
    line: str
    bar: str
    right: str
    wrong: str


LIGHT = Paper("#ffffff", "#1c1e21", "#6b7280", "#b6bcc6", "#eef0f3", "#1a7f4b", "#b3402a")
DARK = Paper("#14171c", "#e7e9ec", "#9aa3b0", "#4a515c", "#2a2f37", "#4cc38a", "#f0866e")
CLEAR = Paper("none", *(getattr(LIGHT, name) for name in Paper.__slots__[1:]))
PAPERS = {"light": LIGHT, "dark": DARK, "none": CLEAR}


@dataclass(slots=True)
class _Place:
    """Where a line of the outline stands. x, end: of its bar; y: the middle."""

    line: Line
    parent: int
    x: float
    end: float
    y: float = 0.0
    below: list["_Place"] = field(default_factory=list)


def tree_svg(
    view: TreeView,
    shade: Shade,
    *,
    title: str,
    paper: Paper = LIGHT,
    whole: bool = False,
    only_right: bool = False,
) -> str:
    """The figure. title: which tree, in one line; shade: what colour carries."""
    lines = shown_lines(view, whole=whole, only_right=only_right)
    head = _head(view, title)
    top = MARGIN + 15 * len(head) + 22
    pixels = _pixels_a_token(view, lines)
    places, bottom = _places(view, lines, pixels, top)
    legend, end = _legend(shade, bottom + 12, paper)
    reaches = [_reach(view, place, shade) for place in places]
    reaches += [MARGIN + cell_len(text) * (CELL + 0.6) for text, _ in head]
    width = max(*reaches, end) + MARGIN
    parts = [_text(MARGIN, MARGIN + 12 + 15 * i, *pair, paper) for i, pair in enumerate(head)]
    parts += [_link(view, above, place, paper) for above in places for place in above.below]
    for place in places:
        parts.append(_elision(view, place, paper) if place.line.is_elision else "")
        if not place.line.is_elision:
            parts += _span(view, place, shade, paper)
    parts += legend
    return _document(width, bottom + 56, parts, paper, f"{title}: {view.question}")


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


def _head(view: TreeView, title: str) -> list[tuple[str, str]]:
    """Lines above the tree as (text, class)."""
    root = view.nodes[ROOT]
    wrapped = textwrap.wrap(" ".join(visible(view.question or root.text).split("⏎")), 120)
    question = wrapped[:4] + (["…"] if len(wrapped) > 4 else [])
    figures = [f"truth {fit(visible(view.truth), 60)}"] if view.truth else []
    figures += [
        f"{root.right_leaves} of {root.leaves} right",
        f"{len(view.nodes):,d} spans",
        f"{view.n_generated:,d} tokens drawn",
    ]
    return [
        *((text, "question") for text in question),
        (" · ".join(figures), "plain"),
        (visible(title), "quiet"),
    ]


# Places ----------------------------------------------------------------------------------------------------


def _pixels_a_token(view: TreeView, lines: Sequence[Line]) -> float:
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


def _places(
    view: TreeView, lines: Sequence[Line], pixels: float, top: float
) -> tuple[list[_Place], float]:
    """All lines with their coordinates, parents first, and the lower edge."""
    places: list[_Place] = []
    by_row: dict[int, _Place] = {}
    y = top
    for line in lines:
        if line.is_elision:
            start = by_row[line.row].end + GAP
            place = _Place(line, line.row, start, start, y)
        elif line.row == ROOT:
            place = _Place(line, -1, MARGIN, MARGIN + 6, y)
        else:
            node = view.nodes[line.row]
            start = by_row[node.parent].end + GAP
            place = _Place(line, node.parent, start, start + max(4.0, node.n_tokens * pixels), y)
        if place.parent >= 0:
            by_row[place.parent].below.append(place)
        if not line.is_elision:
            by_row[line.row] = place
        places.append(place)
    for place in places:  # depth-first: ends come in the order of their rows
        if not place.below:
            place.y = y + ROW / 2
            y += ROW
    for place in reversed(places):
        if place.below:
            place.y = (place.below[0].y + place.below[-1].y) / 2
    return places, y


def _reach(view: TreeView, place: _Place, shade: Shade) -> float:
    if place.line.is_elision:
        return place.x + SMALL * cell_len(_elided(view, place.line))
    node = view.nodes[place.line.row]
    return place.end + (22 + CELL * cell_len(_answer(node, shade)) if not place.below else 0)


# Parts -----------------------------------------------------------------------------------------------------


def _span(view: TreeView, place: _Place, shade: Shade, paper: Paper) -> list[str]:
    node = view.nodes[place.line.row]
    if node.row == ROOT:
        return [f'<circle cx="{MARGIN + 3}" cy="{place.y:.1f}" r="4" fill="{paper.quiet}"/>']
    heat = shade.tokens is not None
    fill, ink = _colours("" if heat else shade.style(node.row), paper)
    x, y, width = place.x, place.y - BAR / 2, place.end - place.x
    stroke = f' stroke="{paper.right}" stroke-width="1.6"' if node.best else ""
    parts = [f"<g><title>{_tooltip(node, shade)}</title>"]
    parts.append(_rect(x, y, width, fill, f' rx="3"{stroke}'))
    if heat:
        parts += _heat(node, shade, x, y, width)
    parts.append(_words(node, x, place.y, width, "" if heat else ink, paper))
    if place.below:
        label = _label(node, shade)
        parts.append(_text(x + 1, y - 3.5, label, "label", paper))
    else:
        parts.append(_mark(node.mark, place.end + 12, place.y, paper))
        answer = _answer(node, shade)
        kind = "best" if node.best else "plain"
        parts.append(_text(place.end + 22, place.y + 3.8, answer, kind, paper))
    return [*parts, "</g>"]


def _heat(node: NodeView, shade: Shade, x: float, y: float, width: float) -> list[str]:
    """Each token in its own colour, inside the bar; unknown ones show the bar."""
    assert shade.tokens is not None
    values = np.asarray(shade.tokens[node.start : node.stop], float)
    step = width / max(1, len(values))
    parts = []
    for index, value in enumerate(values.tolist()):
        style = shade.scale.style(value)
        if style:
            parts.append(_rect(x + index * step, y, step, style.rpartition(" ")[2], ""))
    return parts


def _words(node: NodeView, x: float, y: float, width: float, ink: str, paper: Paper) -> str:
    """The first words of a span, as far as its bar reaches; over heat, where each token is a character, each

    on its own colour. ink: "" over heat, where letters get a halo instead.
    """
    text = fit(visible(node.text), int((width + 0.5) / CELL))
    if not text.strip() or (text == "…" and node.text != "…"):
        return ""
    cells = cell_len(text)
    length, start = cells * CELL, x + min(4.0, max(0.5, (width - cells * CELL) / 2))
    style = f"fill:{ink or paper.ink}"
    if not ink:
        halo = LIGHT.back if paper.back == "none" else paper.back
        style += f";stroke:{halo};stroke-width:2.2px;paint-order:stroke"
        if 0 <= node.n_tokens - cells <= 1:
            length, start = cells * width / node.n_tokens, x
    return (
        f'<text x="{start:.1f}" y="{y + 3.8:.1f}" textLength="{length:.1f}" '
        f'lengthAdjust="spacingAndGlyphs" style="{style}">{xml_text(text)}</text>'
    )


def _mark(mark: str, x: float, y: float, paper: Paper) -> str:
    diamond = f'd="M{x:.1f} {y - 6:.1f}l5.5 6l-5.5 6l-5.5 -6z"'
    match mark:
        case "◆":
            return f'<path {diamond} fill="{paper.right}"/>'
        case "◇":
            return f'<path {diamond} fill="none" stroke="{paper.wrong}" stroke-width="1.5"/>'
        case "▲":
            return f'<path d="M{x:.1f} {y - 5:.1f}l5.5 9.5h-11z" fill="{paper.wrong}"/>'
        case "●":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{paper.quiet}"/>'
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="none" stroke="{paper.quiet}" '
        'stroke-width="1.5"/>'
    )


def _link(view: TreeView, above: _Place, place: _Place, paper: Paper) -> str:
    """From the end of the parent's bar to the beginning of this one, with round corners."""
    best = not place.line.is_elision and view.nodes[place.line.row].best
    style = f'stroke="{paper.right}" stroke-width="2"' if best else f'stroke="{paper.line}"'
    dash = ' stroke-dasharray="2 3"' if place.line.is_elision else ""
    drop = place.y - above.y
    bend = min(5.0, abs(drop) / 2)
    turn = bend if drop > 0 else -bend
    middle = above.end + GAP / 2
    path = f"M{above.end:.1f} {above.y:.1f}H{middle - bend:.1f}"
    path += f"Q{middle:.1f} {above.y:.1f} {middle:.1f} {above.y + turn:.1f}V{place.y - turn:.1f}"
    path += f"Q{middle:.1f} {place.y:.1f} {middle + bend:.1f} {place.y:.1f}H{place.x:.1f}"
    return f'<path d="{path}" fill="none" {style}{dash}/>'


def _elided(view: TreeView, line: Line) -> str:
    spans, leaves, right = line.counts(view)
    branches = f"{len(line.hidden):,d} {plural(len(line.hidden), 'branch', 'branches')}"
    return f"… {branches} {line.reason} ({spans:,d} spans, {right:,d} of {leaves:,d} right)"


def _elision(view: TreeView, place: _Place, paper: Paper) -> str:
    return _text(place.x + 2, place.y + 3, _elided(view, place.line), "label", paper)


def _label(node: NodeView, shade: Shade) -> str:
    """Above an inner span: q and visits, and what colour carries if it is neither."""
    figures = [f"q {node.q:.2f}" if node.q is not None else "q -", f"n {node.visits:,d}"]
    figures += [f"{shade.title} {shade.figure(node.row)}"] if shade.title not in ("q", "n") else []
    return " · ".join(figures)


def _answer(node: NodeView, shade: Shade) -> str:
    if node.outcome is None:
        answer = "not judged" if node.mark == UNJUDGED else ""
    elif node.outcome != "scored":
        answer = node.outcome
    else:
        answer = "no answer" if node.answer is None else fit(visible(node.answer), 24)
        if node.reward not in (0.0, 1.0, None):
            answer += f" ({node.reward:g})"
    if shade.title not in ("q", "n"):
        answer += f"  {shade.figure(node.row)}"
    return answer


def _tooltip(node: NodeView, shade: Shade) -> str:
    words = [f"span {node.row}", f"{node.n_tokens} tokens", _label(node, shade)]
    return xml_text(f"{', '.join(words)}: {fit(visible(node.text), 400)}")


def _legend(shade: Shade, y: float, paper: Paper) -> tuple[list[str], float]:
    """What marks and colours mean, and how far to the right it reaches."""
    parts, x = [], float(MARGIN)
    for mark, name in (
        (RIGHT, "right"),
        (WRONG, "wrong"),
        (TRUNCATED, "cut off"),
        (UNJUDGED, "not judged"),
        (INNER, "prompt"),
    ):
        parts += [
            _mark(mark, x + 6, y + 12, paper),
            _text(x + 16, y + 15, name, "label", paper),
        ]
        x += 30 + SMALL * len(name)
    words = f"colour: {shade.legend}"
    parts.append(_text(x + 8, y + 15, words, "label", paper))
    x += 20 + SMALL * len(words)
    for tick in np.linspace(shade.scale.low, shade.scale.high, 5).tolist():
        fill, ink = _colours(shade.scale.style(tick), paper)
        parts.append(_rect(x, y + 4, 36, fill, ""))
        label = f'class="tick" text-anchor="middle" style="fill:{ink}"'
        parts.append(
            f'<text x="{x + 18:.1f}" y="{y + 15:.1f}" {label}>{xml_text(shade.write(tick))}</text>'
        )
        x += 36
    return parts, x


# Text and shapes -------------------------------------------------------------------------------------------


def _colours(style: str, paper: Paper) -> tuple[str, str]:
    """Fill and ink of a shade's rich style (`white on #0f4678`); the paper's own where it says nothing."""
    if not style:
        return paper.bar, paper.ink
    ink, _, fill = style.partition(" on ")
    return fill, {"black": "#111111", "white": "#ffffff"}[ink]


def _rect(x: float, y: float, width: float, fill: str, more: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" fill="{fill}"{more}/>'


def _text(x: float, y: float, text: str, kind: str, paper: Paper) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{xml_text(text)}</text>'


_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml_characters(text: str) -> str:
    """`text` with � for characters that XML cannot hold."""
    return _NOT_XML.sub("�", text)


def xml_text(text: str) -> str:
    """`text` for an XML document, markup escaped."""
    return escape(xml_characters(text), {'"': "&quot;"})


def _document(width: float, height: float, parts: list[str], paper: Paper, title: str) -> str:
    style = (
        f"text{{font:11px {FONT};fill:{paper.ink};white-space:pre}}"
        f".question{{font-weight:bold;font-size:12px}}.quiet{{fill:{paper.quiet};font-size:9px}}"
        f".label{{fill:{paper.quiet};font-size:9px}}.tick{{font-size:9px}}"
        ".best{font-weight:bold}"
    )
    if paper.back != "none":  # labels stay legible where a link crosses them
        style += f".label{{stroke:{paper.back};stroke-width:3px;paint-order:stroke}}"
    back = f'<rect width="100%" height="100%" fill="{paper.back}"/>' if paper.back != "none" else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img">\n'
        f"<title>{xml_text(fit(visible(title), 200))}</title>\n<style>{style}</style>\n{back}\n"
        + "\n".join(part for part in parts if part)
        + "\n</svg>\n"
    )
