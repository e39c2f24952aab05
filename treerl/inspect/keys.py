"""The help of a screen: its keys, as they are bound, and what the signs on it mean."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from textual.binding import Binding
from textual.screen import Screen

SIGNS = (
    ("◆ ◇ ▲ ○", "right, wrong, cut off at the length limit, not judged"),
    ("● ⊞", "an inner span; folded, with what is below it"),
    ("┊", "a cut point: the search branched here"),
    ("bold", "the path to the right leaf of highest mean log-prob"),
    ("q n", "mean reward backed up through a span; visits"),
    ("▁▄ ▔▀", "above zero, below zero"),
    ("∅", "a token without text of its own"),
)
MOVES = (
    ("↑ ↓ j k", "one line"),
    ("pgup pgdn", "one page"),
    ("home end g G", "first, last line"),
    ("enter", "open; on a span, its details alone on the screen"),
    ("tab", "between the lines and the details"),
)


def render_keys(screen: Screen[None]) -> RenderableType:
    """Two tables: keys in the order they are bound, then signs."""
    return Group(
        _table("keys", [*MOVES, *_keys(screen)]),
        Text(),
        _table("signs", list(SIGNS)),
    )


def _keys(screen: Screen[None]) -> list[tuple[str, str]]:
    """The keys of the screen as they are bound; keys of one action together."""
    found: dict[str, list[str]] = {}
    for binding in type(screen).BINDINGS:
        if isinstance(binding, Binding):
            shown = binding.key_display or " ".join(binding.key.split(","))
            keys = found.setdefault(binding.tooltip or binding.description, [])
            if shown not in keys:
                keys.append(shown)
    return [(" ".join(keys), words) for words, keys in found.items()]


def _table(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for row in rows:
        table.add_row(*row)
    return table
