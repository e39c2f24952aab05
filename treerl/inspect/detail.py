"""One span in full: its path with cut points, its tokens as heat, its verdicts, where its tokens come from.

The heat is a colour behind each token and a block below it, so that it reads without colour too; the highest
tokens follow as figures.
"""

import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from treerl.inspect.library import Opened
from treerl.inspect.model import NodeView
from treerl.inspect.render import plural, render_scale
from treerl.inspect.shade import Shade, block_of
from treerl.inspect.text import fit, visible
from treerl.replay.browse import Judgement
from treerl.search.tree import ROOT

CUT = "┊"
NEXT_LINE = "⏎"
VERSION_CELLS = 24
ORIGINS = {
    "prompt": "the prompt",
    "sample": "sampled from the prompt or a chosen point",
    "extend": "goes on with the span above",
    "entropy": "a branch at a token of high entropy",
    "window": "a branch at a window of high entropy",
    "frontier": "a branch at the best frontier point",
    "random": "a branch at a random token",
    "cache": "taken from the cache",
}


def render_detail(
    opened: Opened, row: int, *, heat: Shade | None, why: str = "", width: int, ids: bool = False
) -> RenderableType:
    """All about the span `row`. heat: what the tokens show; None with `why` where it cannot be had."""
    node = opened.view.nodes[row]
    parts: list[RenderableType] = [_head(opened, node)]
    parts.append(_facts_table(opened, node))
    parts.append(Text())
    if heat is None:
        parts.append(Text(why, style="italic"))
    else:
        parts.append(render_scale(heat))
        parts.append(render_heat(opened, row, heat, width=width))
        parts.append(render_highest(opened, row, heat))
    if ids:
        tokens = opened.tree.tokens.token[node.start : node.stop].tolist()
        parts.append(Text("ids: " + " ".join(map(str, tokens)), style="dim"))
    return Group(*parts)


# Facts -----------------------------------------------------------------------------------------------------


def _head(opened: Opened, node: NodeView) -> Text:
    depth = len(opened.view.path(node.row)) - 1
    text = Text(f"{node.mark} span {node.row}", style="bold")
    words = [f"q {'-' if node.q is None else f'{node.q:+.2f}'}", f"n {node.visits:,d}"]
    words += [f"{node.n_tokens} {plural(node.n_tokens, 'token')}", f"depth {depth}"]
    words += [f"{node.right_leaves}/{node.leaves} right below"] if node.children else []
    text.append("  " + " · ".join(words), style="not bold")
    return text


def _facts_table(opened: Opened, node: NodeView) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in _facts(opened, node):
        table.add_row(name, Text(words))
    return table


def _facts(opened: Opened, node: NodeView) -> Iterator[tuple[str, str]]:
    """What is known of a span, as names and words."""
    siblings = "" if node.row == ROOT else _siblings(opened, node)
    by_token = ", its point chosen by the sampled token" if node.chosen_by_token else ""
    yield "opened", f"{ORIGINS.get(node.origin, node.origin)}{by_token}{siblings}"
    if node.children:
        count = len(node.children)
        cut = f"{CUT} cut point, {count} branches go on" if count > 1 else "one span goes on"
        yield "ends", cut
    elif node.row != ROOT:
        how = {"stop": "by a stop token", "length": "at the length limit"}.get(node.finish, "open")
        trained = "" if node.selected else "; not a training row"
        yield "ends", f"{how}{trained}"
    yield from _verdicts(opened, node)
    yield from _provenance(opened, node)


def _siblings(opened: Opened, node: NodeView) -> str:
    family = opened.view.nodes[node.parent].children
    if len(family) == 1:
        return f" (below span {node.parent})"
    return f" (branch {family.index(node.row) + 1} of {len(family)} below span {node.parent})"


def _verdicts(opened: Opened, node: NodeView) -> Iterator[tuple[str, str]]:
    """The verdict the search got, then what other verifiers or versions say of the same solution."""
    if node.outcome is None:
        if not node.children and node.row != ROOT:
            yield "verdict", "none"
        return
    yield "verdict", _verdict(node.outcome, node.reward, node.answer, node.detail)
    stored = opened.judgements.get(int(opened.tree.nodes.draw[node.row]), ())
    own = (node.outcome, node.reward, node.answer)
    by = next((j for j in stored if (j.outcome, j.reward, j.answer) == own), None)
    name = "a verifier that says otherwise today" if by is None else _verifier(by)
    # A cached leaf has the verdict that lay in the store: nobody judged it again.
    seconds = f" in {1000 * node.seconds:.3g} ms" if node.seconds else ""
    yield "", f"by {name}{seconds}; truth {visible(opened.view.truth) or 'unknown'}"
    for other in stored:
        if other is not by:
            words = _verdict(other.outcome, other.reward, other.answer, other.detail)
            yield "", f"{_verifier(other)}: {words}"


def _verifier(judgement: Judgement) -> str:
    return f"{judgement.verifier} {fit(judgement.version, VERSION_CELLS)}"


def _verdict(
    outcome: str,
    reward: float | None,
    answer: str | None,
    detail: Mapping[str, object],
) -> str:
    if outcome != "scored" or reward is None:
        words = outcome
    else:
        words = {1.0: "right", 0.0: "wrong"}.get(reward, "partly right") + f", reward {reward:g}"
    parsed = "no answer found" if answer is None else f"parsed {visible(answer)!r}"
    extra = f"; {visible(json.dumps(dict(detail), ensure_ascii=False))}" if detail else ""
    return f"{words}, {parsed}{extra}"


def _provenance(opened: Opened, node: NodeView) -> Iterator[tuple[str, str]]:
    origin = opened.origins.get(int(opened.tree.nodes.draw[node.row]))
    info = opened.stored.info
    if origin is None:
        yield "from", f"run {info.run}, step {info.step}, seed {opened.tree.seed}"
        return
    age = ""
    if node.age and not origin.cached:
        age = f", {node.age} {plural(node.age, 'version')} behind the newest here"
    digest = f" ({origin.digest[:8]})" if origin.digest else ""
    yield "policy", f"{origin.policy or 'unknown,'}{digest} version {origin.version}{age}"
    params = ", ".join(f"{name} {value}" for name, value in sorted(origin.sampler.items()))
    yield "sampler", params or "unknown"
    if origin.cached:
        where = f"tree {origin.source_tree} of run {origin.source_run}"
        yield "from", f"the cache: {where if origin.source_tree else 'a run since deleted'}"
    else:
        yield "from", f"run {info.run}, step {info.step}, draw seed {origin.seed}"


# Heat ------------------------------------------------------------------------------------------------------


def render_heat(opened: Opened, row: int, heat: Shade, *, width: int) -> Text:
    """The path to the end of the span: dim up to it, then its tokens with colour behind and blocks below.

    `┊` stands where the search branched. Newlines break the line.
    """
    text = Text()
    for above in opened.view.path(row)[:-1]:
        node = opened.view.nodes[above]
        text.append(visible(node.text).replace(NEXT_LINE, NEXT_LINE + "\n"), style="dim")
        text.append(CUT if node.is_cut_point else "", style="bold")
    text.append("\n" if len(text) else "")
    node = opened.view.nodes[row]
    end = CUT if node.is_cut_point else ""
    values = _values(heat, node)
    lines = heat_lines(opened.span_texts(row), values, heat, width=width, end=end)
    return text.append_text(lines)


def _values(heat: Shade, node: NodeView) -> np.ndarray:
    assert heat.tokens is not None
    return np.asarray(heat.tokens[node.start : node.stop], np.float64)


def heat_lines(
    texts: Sequence[str], values: np.ndarray, heat: Shade, *, width: int, end: str = ""
) -> Text:
    """Tokens in lines of `width` cells, each line followed by one of blocks. values: float[n], NaN unknown."""
    out = Text()
    words, blocks = Text(), Text()

    def flush() -> None:
        nonlocal words, blocks
        if len(words):
            out.append_text(words).append("\n").append_text(blocks).append("\n")
        words, blocks = Text(), Text()

    for piece, value in zip(texts, values.tolist(), strict=True):
        shown = visible(piece) or "∅"
        cells = min(width, cell_len(shown))
        if words.cell_len + cells > width:
            flush()
        words.append(shown, style=heat.scale.style(value) or "default")
        blocks.append(block_of(heat.scale, value) + " " * (cells - 1), style="dim")
        if shown.endswith(NEXT_LINE):
            flush()
    words.append(end, style="bold")
    blocks.append(" " * len(end))
    flush()
    out.rstrip()
    return out


def render_highest(opened: Opened, row: int, heat: Shade, *, most: int = 5) -> RenderableType:
    """The tokens of largest magnitude as figures, and how many are unknown."""
    node = opened.view.nodes[row]
    values = _values(heat, node)
    texts = opened.span_texts(row)
    known = np.isfinite(values)
    if not known.any():
        return Text(f"no {heat.title} of these tokens: {_unknown(heat)}", style="italic")
    strength = np.where(known, np.abs(values - (heat.scale.middle or 0.0)), -1.0)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("place", justify="right")
    table.add_column("token")
    table.add_column(heat.title, justify="right")
    for index in np.argsort(-strength, kind="stable")[:most].tolist():
        if known[index]:
            value = f"{values[index]:+.3f}" if heat.scale.middle == 0 else f"{values[index]:.3f}"
            table.add_row(str(index), Text(repr(texts[index])), value)
    if known.all():
        return table
    missing = int((~known).sum())
    note = f"{missing} of {len(values)} tokens have none: {_unknown(heat)}"
    return Group(table, Text(note, style="italic"))


def _unknown(heat: Shade) -> str:
    if heat.title in ("entropy", "logprob"):
        return "the prompt, or the sampler gave none"
    return "they are in no training row"
