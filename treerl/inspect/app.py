"""The interactive inspector: thin screens over the renderables that are printed too.

What is shown and where the cursor goes is decided in `state`, `forest` and `render`. What may take long
(opening a tree, loading a policy) runs in a thread, and the pane of details follows the cursor a moment later.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import events, work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.timer import Timer
from textual.widgets import Static

from treerl.errors import TreerlError
from treerl.inspect.forest import Item
from treerl.inspect.forest_screen import ForestScreen
from treerl.inspect.keys import render_keys
from treerl.inspect.render import render_line, render_titles
from treerl.inspect.screen import COMMON, InspectScreen, key
from treerl.inspect.scroller import GUTTER
from treerl.inspect.state import TreeState

Read = Callable[[Item | None], Sequence[Item]]
"""The problems of the cache, or the trees of one."""
Open = Callable[[int], TreeState]
DETAIL_AFTER = 0.06
"""Seconds that the cursor rests before its details are drawn."""
WIDE = 150
"""Cells from which the details stand beside the tree, not below it."""
COLOURS = "colour by q, visits, entropy, advantage, policy age"


class TreeScreen(InspectScreen):
    """One tree, and the span under the cursor in full."""

    BINDINGS: ClassVar[list[BindingType]] = [
        key("left", "go('outward')", "fold", "←", foot=False, help="fold; then to the parent"),
        key(
            "right",
            "go('inward')",
            "unfold",
            "→",
            foot=False,
            help="unfold; then to the first below",
        ),
        key("space", "go('toggle')", "fold", help="fold or unfold"),
        key("n", "go('right_leaf', 1)", "right leaf", help="next right leaf"),
        key("N", "go('right_leaf', -1)", "previous right leaf", foot=False),
        key("J,shift+down", "go('sibling', 1)", "next sibling", "J", foot=False),
        key("K,shift+up", "go('sibling', -1)", "previous sibling", "K", foot=False),
        key("slash", "search", "search", "/", help="search in texts and answers"),
        key("f", "go('search', 1)", "next found", foot=False),
        key("F", "go('search', -1)", "previous found", foot=False),
        key(
            "c", "go('toggle_right')", "right paths", help="only paths to right leaves; again: all"
        ),
        key(
            "x",
            "go('toggle_small')",
            "small branches",
            foot=False,
            help="without small branches; again: all",
        ),
        *(
            key(str(n), f"pick('paint_by', {n})", "colour", "1-5", foot=n == 1, help=COLOURS)
            for n in range(1, 6)
        ),
        key("e", "pick('turn_estimator', 1)", "estimator", help="advantage by the next estimator"),
        key("E", "pick('turn_estimator', -1)", "previous estimator", foot=False),
        key(
            "v",
            "pick('turn_second', 1)",
            "compare",
            help="a second estimator beside it; again: the next",
        ),
        key("V", "pick('turn_second', 0)", "one estimator alone again", foot=False),
        key(
            "h",
            "pick('turn_heat')",
            "heat",
            help="tokens by entropy, log-prob, advantage, new/old ratio",
        ),
        key(
            "d",
            "pick('turn_pane', 'pair')",
            "diff",
            help="beside the best sibling, by tokens; again: alone",
        ),
        key(
            "D",
            "pick('turn_pane', 'family')",
            "siblings",
            foot=False,
            help="among all siblings; again: alone",
        ),
        key("t", "pick('toggle_ids')", "token ids too", foot=False),
        key("z", "zoom", "details alone on the screen", foot=False),
        key("y", "copy", "copy the path as text", foot=False),
        key("s", "save", "save the tree as SVG", foot=False),
        *COMMON,
    ]

    class Prepared(Message):
        """What the choices need is there."""

    def __init__(self, state: TreeState) -> None:
        super().__init__()
        self.state = state
        self._timer: Timer | None = None

    def on_resize(self, event: events.Resize) -> None:
        """Columns follow the width; with room enough the details stand beside the tree."""
        self.set_class(event.size.width >= WIDE, "wide")
        self.call_after_refresh(self.paint)

    def paint(self, at: int | None = None) -> None:
        """Everything anew, with the cursor at a line."""
        self.put("#head", self.state.header(self.size.width - GUTTER))
        layout = self.state.layout(self.lines.size.width - GUTTER)
        self.put("#titles", Text("  ", style="dim underline").append_text(render_titles(layout)))
        self.lines.fill(len(self.state.lines), self.lines.cursor if at is None else at)
        self._paint_detail()

    def draw(self, index: int, width: int) -> Text:
        """A span, or what was left out."""
        state = self.state
        layout = state.layout(width)
        return render_line(state.opened.view, state.lines[index], layout, found=state.found)

    def _paint_detail(self) -> None:
        pane = self.query_one("#pane", VerticalScroll)
        self.put("#detail", self.state.details(self.lines.cursor, max(20, pane.size.width - 2)))
        pane.scroll_home(animate=False)

    def on_lines_moved(self) -> None:
        """The details follow when the cursor rests."""
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(DETAIL_AFTER, self._paint_detail)

    def on_lines_chosen(self) -> None:
        """Shows what was left out, or the details alone."""
        if self.state.lines[self.lines.cursor].is_elision:
            self.action_go("toggle")
        else:
            self.action_zoom()

    def answered(self, text: str) -> None:
        """Searches, from the line below the cursor on."""
        self.action_go("search_for", text)

    def action_go(self, way: str, *values: Any) -> None:
        """A way of the state from the cursor to another line."""
        to = getattr(self.state, way)(self.lines.cursor, *values)
        if to is None:
            self.notify(
                "nothing found" if "search" in way else "no leaf is right", severity="warning"
            )
        self.paint(to)

    def action_pick(self, choice: str, *values: Any) -> None:
        """A choice of the state about what is shown."""
        getattr(self.state, choice)(*values)
        self._prepare()

    @work(thread=True, exclusive=True)
    def _prepare(self) -> None:
        """Computes what the choices need, in a thread: it may load a policy."""
        self.state.prepare()
        self.post_message(self.Prepared())

    def on_tree_screen_prepared(self) -> None:
        """Shows it."""
        self.paint()

    def action_search(self) -> None:
        """Asks what to search for."""
        self.ask("text of a span or an answer", self.state.found)

    def action_zoom(self) -> None:
        """The details alone on the screen, or beside the tree again."""
        self.zoom(not self.has_class("zoomed"))
        self.call_after_refresh(self._paint_detail)

    def action_copy(self) -> None:
        """The path to the cursor's span into the terminal's clipboard."""
        row = self.state.lines[self.lines.cursor].row
        self.app.copy_to_clipboard(self.state.path_text(row))
        self.notify(f"the path to span {row} is in the clipboard")

    def action_save(self) -> None:
        """The tree as a figure in the working folder."""
        try:
            self.notify(f"saved as {self.state.save(Path.cwd())}", timeout=10)
        except TreerlError as error:
            self.notify(str(error), severity="error", timeout=10)


class HelpScreen(ModalScreen[None]):
    """All keys of the screen below, and what the signs mean."""

    BINDINGS: ClassVar[list[BindingType]] = [
        key("escape,question_mark,q,enter", "app.pop_screen", "back")
    ]

    def __init__(self, below: Screen[Any]) -> None:
        super().__init__()
        self._below = below

    def compose(self) -> ComposeResult:
        """One table in a box that scrolls."""
        with VerticalScroll(id="keys"):
            yield Static(render_keys(self._below))


class InspectApp(App[None]):
    """The inspector over one cache. tree_id: the tree to begin with; None: the forest."""

    CSS_PATH = "app.tcss"
    TITLE = "treerl inspect"
    ENABLE_COMMAND_PALETTE = False

    class Opened(Message):
        """A tree has been read in a thread, or could not be."""

        def __init__(self, state: TreeState | None, error: str = "") -> None:
            super().__init__()
            self.state, self.error = state, error

    def __init__(self, title: str, read: Read, open: Open, *, tree_id: int | None = None) -> None:
        super().__init__()
        self._title, self._read, self._open, self._first = title, read, open, tree_id

    def on_mount(self) -> None:
        """The forest, and the first tree above it."""
        self.push_screen(ForestScreen(self._title, lambda: self._read(None), of_trees=False))
        if self._first is not None:
            self.open_tree(self._first)

    def on_forest_screen_wanted(self, event: ForestScreen.Wanted) -> None:
        """Opens the tree, or lists the trees of a problem that has several."""
        item = event.item
        if item.trees == 1:
            self.open_tree(item.newest)
            return
        title = f"trees of {item.question.strip()}"
        self.push_screen(ForestScreen(title, lambda: self._read(item), of_trees=True))

    def open_tree(self, tree_id: int) -> None:
        """Reads a tree, then shows it."""
        self.notify(f"opening tree {tree_id} …", timeout=60)
        self._read_tree(tree_id)

    @work(thread=True, exclusive=True)
    def _read_tree(self, tree_id: int) -> None:
        try:
            state = self._open(tree_id)
            state.prepare()
        except TreerlError as error:
            self.post_message(self.Opened(None, str(error)))
            return
        self.post_message(self.Opened(state))

    def on_inspect_app_opened(self, event: Opened) -> None:
        """Shows the tree, or why there is none."""
        self.clear_notifications()
        if event.state is not None:
            self.push_screen(TreeScreen(event.state))
        else:
            self.notify(event.error, severity="error", timeout=10)

    def action_help(self) -> None:
        """The keys."""
        self.push_screen(HelpScreen(self.screen))
