"""The first screen of the inspector: problems, or the trees of one, filtered and sorted."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import BindingType
from textual.message import Message

from treerl.errors import TreerlError
from treerl.inspect.forest import REACH, RULES, SORTS, Item, arrange, forest_line, forest_titles
from treerl.inspect.screen import COMMON, InspectScreen, key
from treerl.inspect.scroller import GUTTER
from treerl.replay.entry import now_us


class ForestScreen(InspectScreen):
    """Problems, or the trees of one problem."""

    BINDINGS: ClassVar[list[BindingType]] = [
        key("slash", "filter", "filter", "/", help=f"filter by {RULES}"),
        key("o", "sort", "sort", help=f"by {', '.join(SORTS)}"),
        key("r", "reload", "read again", help="read the cache again"),
        *COMMON,
    ]

    class Wanted(Message):
        """A tree to open, or a problem with several trees to list."""

        def __init__(self, item: Item) -> None:
            super().__init__()
            self.item = item

    def __init__(self, title: str, read: Callable[[], Sequence[Item]], *, of_trees: bool) -> None:
        super().__init__(classes="plain")
        self._title, self._read, self._of_trees = title, read, of_trees
        self._all: Sequence[Item] = ()
        self._items: list[Item] = []
        self._sort, self._where, self._note = SORTS[0], "", ""
        self._now = now_us()

    def on_mount(self) -> None:
        """Reads the cache."""
        super().on_mount()
        self.action_reload()

    def on_resize(self, _event: events.Resize) -> None:
        """Columns follow the width."""
        self._paint()

    def _paint(self) -> None:
        cursor = self.lines.cursor
        self._items = arrange(self._all, where=self._where, sort=self._sort)
        head = Text(self._title, style="bold", no_wrap=True, overflow="ellipsis")
        newest = "the newest " if len(self._all) == REACH else ""
        some = f"{len(self._items):,d} of {newest}{len(self._all):,d}, by {self._sort}"
        head.append(
            f"   {some}" + (f", filter: {self._where}" if self._where else ""), "not bold dim"
        )
        if not self._all:
            head.append("\nno trees here yet: `treerl search quickstart` grows some", "not bold")
        head.append(f"\n{self._note}" if self._note else "", "not bold italic")
        self.put("#head", head)
        titles = forest_titles(self.size.width - GUTTER, of_trees=self._of_trees)
        self.put("#titles", Text("  ", style="dim underline").append_text(titles))
        self.lines.fill(len(self._items), cursor)

    def draw(self, index: int, width: int) -> Text:
        """A problem or a tree."""
        return forest_line(self._items[index], width, now_us=self._now, of_trees=self._of_trees)

    def on_lines_chosen(self) -> None:
        """Tells the app which line is wanted."""
        self.post_message(self.Wanted(self._items[self.lines.cursor]))

    def answered(self, text: str) -> None:
        """A filter; one that is none is said, and the old one stays."""
        try:
            arrange((), where=text, sort=self._sort)
            self._where, self._note = text, ""
        except TreerlError as error:
            self._note = str(error)
        self._paint()

    def action_filter(self) -> None:
        """Asks for a filter."""
        self.ask(RULES, self._where)

    def action_sort(self) -> None:
        """By the next order."""
        self._sort = SORTS[(SORTS.index(self._sort) + 1) % len(SORTS)]
        self._paint()

    def action_reload(self) -> None:
        """Reads the cache again: a run may be writing to it."""
        self._all, self._now = self._read(), now_us()
        self._paint()
