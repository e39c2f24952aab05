"""Siblings side by side: what two continuations share and where they part, by tokens."""

from collections.abc import Iterator
from difflib import SequenceMatcher

from rich.text import Text

from treerl.inspect.library import Opened
from treerl.inspect.shade import signed
from treerl.inspect.text import fit, token_texts, visible


def best_sibling(opened: Opened, row: int) -> int | None:
    """The sibling of highest q (of those, most visits, then first); None for an only child or the root."""
    nodes = opened.view.nodes
    parent = nodes[row].parent
    if parent not in nodes:
        return None
    others = [child for child in nodes[parent].children if child != row]
    return min(others, key=lambda child: _rank(opened, child), default=None)


def best_end(opened: Opened, row: int) -> int:
    """The end of the best continuation of a span: down by q, then visits, then arrival."""
    while children := opened.view.nodes[row].children:
        row = min(children, key=lambda child: _rank(opened, child))
    return row


def _rank(opened: Opened, row: int) -> tuple[float, int]:
    node = opened.view.nodes[row]
    return (1e9 if node.q is None else -node.q), -node.visits


def render_pair(opened: Opened, row: int, other: int) -> Text:
    """Both continuations to their best ends: what is equal dim, what differs in ⟦ ⟧, with q and n of both."""
    ours, theirs = continuation(opened, row), continuation(opened, other)
    blocks = [
        (tag == "equal", slice(a, b), slice(c, d))
        for tag, a, b, c, d in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    ]
    shared = blocks[0][1].stop if blocks and blocks[0][0] else 0
    same = "no token" if not shared else f"{shared} tokens" if shared > 1 else "1 token"
    text = Text()
    text.append(f"the two begin with {same} in common\n\n", style="dim")
    for which, tokens, side in ((row, ours, 1), (other, theirs, 2)):
        pieces = token_texts(opened.decode, tokens)
        text.append_text(_title(opened, which)).append("\n")
        for block in blocks:
            part = visible("".join(pieces[block[side]]))
            if block[0]:
                text.append(part, style="dim")
            elif part:
                text.append(f"⟦{part}⟧", style="bold")
        text.append("\n\n")
    text.rstrip()
    return text


def render_family(opened: Opened, row: int, *, width: int) -> Text:
    """All siblings of a span, a line each: mark, q, n, then what follows the tokens that all of them share."""
    nodes = opened.view.nodes
    parent = nodes[row].parent
    family = nodes[parent].children if parent in nodes else [row]
    tokens = {child: continuation(opened, child) for child in family}
    shared = _shared_prefix([tokens[child] for child in family]) if len(family) > 1 else 0
    text = Text()
    if shared:
        common = visible("".join(token_texts(opened.decode, tokens[row][:shared])))
        text.append(f"all begin with {fit(common, width - 16)}\n", style="dim")
    for child in family:
        title = _title(opened, child)
        rest = visible("".join(token_texts(opened.decode, tokens[child])[shared:]))
        title.append("  ")
        title.append(fit(rest, max(8, width - title.cell_len)), "bold" if child == row else "")
        text.append_text(title).append("\n")
    text.rstrip()
    return text


def _title(opened: Opened, row: int) -> Text:
    node = opened.view.nodes[row]
    end = opened.view.nodes[best_end(opened, row)]
    answer = f" → {visible(end.answer)}" if end.answer is not None else ""
    text = Text(f"{node.mark} span {row:<3d} q {signed(node.q)} n {node.visits}")
    text.append(f"{end.mark if end is not node else ''}{answer}", style="bold")
    return text


def continuation(opened: Opened, row: int) -> list[int]:
    """Tokens from the start of the span to its best end."""
    tokens = opened.tree.path_tokens(best_end(opened, row))
    rest: list[int] = tokens[int(opened.tree.nodes.offset[row]) :].tolist()
    return rest


def _shared_prefix(rows: list[list[int]]) -> int:
    return sum(1 for _ in _equal_columns(rows))


def _equal_columns(rows: list[list[int]]) -> Iterator[int]:
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            return
        yield column[0]
