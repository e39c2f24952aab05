"""`Lines`: a scrolling list of lines drawn on demand, with a cursor; only lines on the screen cost anything."""

from collections.abc import Callable
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

GUTTER = 2
CURSOR = Style(bgcolor="#3a3a3a", color="#ffffff")


class Lines(ScrollView, can_focus=True):
    """`count` lines; `draw(index, width)` makes one. Says `Moved` when the cursor moves, `Chosen` on enter."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False),
        Binding("down,j", "move(1)", "down", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "page up", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "page down", show=False),
        Binding("home,g", "end(-1)", "first", show=False),
        Binding("end,G", "end(1)", "last", show=False),
        Binding("enter", "choose", "open", key_display="enter"),
    ]
    DEFAULT_CSS = "Lines { overflow-x: hidden; scrollbar-size-vertical: 1; }"
    cursor: reactive[int] = reactive(0, init=False)

    class Moved(Message):
        """The cursor is on another line."""

    class Chosen(Message):
        """Enter was pressed, or the cursor's line clicked."""

    def __init__(self, draw: Callable[[int, int], Text], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._draw = draw
        self.count = 0

    def fill(self, count: int, cursor: int = 0) -> None:
        """There are `count` lines now; all are drawn anew."""
        self.count = count
        self._measure()
        self.cursor = cursor
        self.show_cursor()
        self.refresh()

    def show_cursor(self) -> None:
        """Scrolls until the cursor's line is on the screen."""
        self.scroll_to_region(Region(0, self.cursor, 1, 1), animate=False, force=True)

    def render_line(self, y: int) -> Strip:
        """The line at `y` of the screen."""
        width = self.size.width
        index = y + self.scroll_offset.y
        if index >= self.count:
            return Strip.blank(width, self.rich_style)
        here = index == self.cursor
        text = Text("▶ " if here else "  ", style="bold" if here else "")
        text.append_text(self._draw(index, max(1, width - GUTTER)))
        strip = Strip(text.render(self.app.console)).adjust_cell_length(width)
        return strip.apply_style(self.rich_style + CURSOR if here else self.rich_style)

    def on_resize(self, _event: events.Resize) -> None:
        """Lines are as wide as the window."""
        self._measure()
        self.show_cursor()

    def on_click(self, event: events.Click) -> None:
        """Goes to the line; a click on the cursor's line chooses it."""
        index = event.y + self.scroll_offset.y
        if index == self.cursor:
            self.action_choose()
        elif index < self.count:
            self.cursor = index

    def validate_cursor(self, index: int) -> int:
        """Keeps the cursor on a line."""
        return max(0, min(self.count - 1, index))

    def watch_cursor(self, before: int, now: int) -> None:
        """Draws the two lines anew."""
        self.refresh_line(before)
        self.refresh_line(now)
        self.show_cursor()
        self.post_message(self.Moved())

    def action_move(self, step: int) -> None:
        """One line up or down."""
        self.cursor += step

    def action_page(self, step: int) -> None:
        """One page up or down."""
        self.cursor += step * max(1, self.size.height - 1)

    def action_end(self, step: int) -> None:
        """To the first or the last line."""
        self.cursor = 0 if step < 0 else self.count - 1

    def action_choose(self) -> None:
        """Tells that the cursor's line was chosen."""
        if self.count:
            self.post_message(self.Chosen())

    def _measure(self) -> None:
        self.virtual_size = Size(self.size.width, self.count)
