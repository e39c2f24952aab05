"""A tree as a figure: spans as bars over an axis of tokens, branches below each other, leaves with their marks.

Plain SVG 1.1 with shapes for marks and system fonts, so that it looks the same in a paper, a README and a
browser. What would make the figure too tall is counted in a line of its own.
"""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np
from rich.cells import cell_len

from treerl.inspect.export_layout import (
    BAR,
    CELL,
    GAP,
    MARGIN,
    SMALL,
    Place,
    pixels_a_token,
    places_of,
    shown_lines,
)
from treerl.inspect.model import INNER, RIGHT, TRUNCATED, UNJUDGED, WRONG, NodeView, TreeView
from treerl.inspect.outline import Line
from treerl.inspect.render import plural
from treerl.inspect.shade import Shade
from treerl.inspect.text import fit, visible
from treerl.search.tree import ROOT

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
    pixels = pixels_a_token(view, lines)
    places, bottom = places_of(view, lines, pixels, top)
    legend, end = _legend(shade, bottom + 12, paper)
    reaches = [_reach(view, place, shade) for place in places]
    reaches += [MARGIN + cell_len(text) * (CELL + 0.6) for text, _ in head]
    width = max(*reaches, end) + MARGIN
    parts = [_text(MARGIN, MARGIN + 12 + 15 * i, *pair, paper) for i, pair in enumerate(head)]
    links = [(above, place) for above in places for place in above.below]
    links.sort(key=lambda link: _is_best(view, link[1]))
    parts += [_link(view, above, place, paper) for above, place in links]
    for place in places:
        parts.append(_elision(view, place, paper) if place.line.is_elision else "")
        if not place.line.is_elision:
            parts += _span(view, place, shade, paper)
    parts += legend
    return _document(width, bottom + 56, parts, paper, f"{title}: {view.question}")


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


def _reach(view: TreeView, place: Place, shade: Shade) -> float:
    if place.line.is_elision:
        return place.x + SMALL * cell_len(_elided(view, place.line))
    node = view.nodes[place.line.row]
    return place.end + (22 + CELL * cell_len(_answer(node, shade)) if not place.below else 0)


# Parts -----------------------------------------------------------------------------------------------------


def _span(view: TreeView, place: Place, shade: Shade, paper: Paper) -> list[str]:
    node = view.nodes[place.line.row]
    if node.row == ROOT:
        return [f'<circle cx="{MARGIN + 3}" cy="{place.y:.1f}" r="4" fill="{paper.quiet}"/>']
    runs = _runs(node, shade)
    x, y, width = place.x, place.y - BAR / 2, place.end - place.x
    stroke = f' stroke="{paper.right}" stroke-width="1.6"' if node.best else ""
    parts = [f"<g><title>{_tooltip(node, shade)}</title>"]
    fill = _colours(runs[0].style if len(runs) == 1 else "", paper)[0]
    parts.append(_rect(x, y, width, fill, f' rx="3"{stroke}'))
    step = width / max(1, node.n_tokens)
    for run in runs if len(runs) > 1 else ():
        if run.style:
            at, wide = x + run.start * step, (run.stop - run.start) * step
            parts.append(_rect(at, y, wide, _colours(run.style, paper)[0], ""))
    parts += _words(node, runs, place, paper)
    if place.below:
        label = _label_above(node, shade, place)
        parts.append(_text(x + 1, y - 3.5, label, "label", paper))
    else:
        parts.append(_mark(node.mark, place.end + 12, place.y, paper))
        answer = _answer(node, shade)
        kind = "best" if node.best else "plain"
        parts.append(_text(place.end + 22, place.y + 3.8, answer, kind, paper))
    return [*parts, "</g>"]


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring tokens of one colour: `start` to `stop` in the span."""

    start: int
    stop: int
    style: str


def _runs(node: NodeView, shade: Shade) -> list[_Run]:
    """A span in runs of one colour; one run where colour carries a figure a span."""
    if shade.tokens is None:
        return [_Run(0, node.n_tokens, shade.style(node.row))]
    values = np.asarray(shade.tokens[node.start : node.stop], float).tolist()
    out: list[_Run] = []
    for index, style in enumerate(map(shade.scale.style, values)):
        if out and out[-1].style == style:
            out[-1] = _Run(out[-1].start, index + 1, style)
        else:
            out.append(_Run(index, index + 1, style))
    return out


def _words(node: NodeView, runs: Sequence[_Run], place: Place, paper: Paper) -> list[str]:
    """The first words of a span, as far as its bar reaches. Over runs of several colours each character stands

    on its own token where a token is a character; elsewhere letters have a halo.
    """
    width = place.end - place.x
    text = fit(visible(node.text), int((width + 0.5) / CELL))
    if not text.strip() or (text == "…" and node.text != "…"):
        return []
    length = cell_len(text) * CELL
    start = place.x + min(4.0, max(0.5, (width - length) / 2))
    if len(runs) == 1:
        return [_letters(start, place.y, text, length, f"fill:{_colours(runs[0].style, paper)[1]}")]
    if len(text) == cell_len(text) and 0 <= node.n_tokens - len(text) <= 1:
        step, out = width / node.n_tokens, []
        for run in runs:
            piece = text[run.start : run.stop]
            ink = f"fill:{_colours(run.style, paper)[1]}"
            at = place.x + run.start * step
            out += [_letters(at, place.y, piece, len(piece) * step, ink)] if piece.strip() else []
        return out
    halo = LIGHT.back if paper.back == "none" else paper.back
    style = f"fill:{paper.ink};stroke:{halo};stroke-width:2.2px;paint-order:stroke"
    return [_letters(start, place.y, text, length, style)]


def _letters(x: float, y: float, text: str, length: float, style: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y + 3.8:.1f}" textLength="{length:.1f}" '
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


def _is_best(view: TreeView, place: Place) -> bool:
    return not place.line.is_elision and view.nodes[place.line.row].best


def _link(view: TreeView, above: Place, place: Place, paper: Paper) -> str:
    """From the end of the parent's bar to the beginning of this one, with round corners."""
    best = _is_best(view, place)
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
    return f"… {branches} {line.reason} ({spans:,d} {plural(spans, 'span')}, {right:,d} of {leaves:,d} right)"


def _elision(view: TreeView, place: Place, paper: Paper) -> str:
    return _text(place.x + 2, place.y + 3, _elided(view, place.line), "label", paper)


def _label(node: NodeView, shade: Shade) -> str:
    """Above an inner span: q and visits, and what colour carries if it is neither."""
    figures = [f"q {node.q:.2f}" if node.q is not None else "q -", f"n {node.visits:,d}"]
    figures += [f"{shade.title} {shade.figure(node.row)}"] if shade.title not in ("q", "n") else []
    return " · ".join(figures)


def _label_above(node: NodeView, shade: Shade, place: Place) -> str:
    """The label, or less of it where the next span's own begins."""
    whole = _label(node, shade)
    if not any(abs(other.y - place.y) < BAR for other in place.below):
        return whole
    room = (place.end - place.x + GAP - 3) / SMALL
    parts = whole.split(" · ")  # q, n, and what colour carries if it is neither
    shorter = (" · ".join(parts[::2]), parts[-1], parts[0], shade.figure(node.row))
    return next((label for label in (whole, *shorter) if len(label) <= room), "")


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
    """Fill and ink of a shade's rich style (`#ffffff on #0f4678`); the paper's own where it says nothing."""
    if not style:
        return paper.bar, paper.ink
    ink, _, fill = style.partition(" on ")
    return fill, ink


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
