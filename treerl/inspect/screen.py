"""What the screens of the inspector have in common: head, titles, lines, a pane, a line to type into."""

from rich.console import RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, Input, Static

from treerl.inspect.scroller import Lines


def key(
    keys: str,
    action: str,
    word: str,
    shown: str | None = None,
    *,
    foot: bool = True,
    help: str = "",
) -> Binding:
    """A binding. word: in the footer; foot: False, in the help alone; help: there instead of `word`."""
    return Binding(keys, action, word, show=foot, key_display=shown, tooltip=help)


COMMON: list[BindingType] = [
    key("question_mark", "app.help", "help", "?"),
    key("escape", "back", "back", "esc"),
    key("q", "app.quit", "quit"),
    key("ctrl+c", "app.quit", "quit", foot=False),
]
"""Keys of every screen; they come last, so that a narrow footer shows a screen's own first."""


class InspectScreen(Screen[None]):
    """A screen of lines. Its heirs say what is drawn, and what an answer typed in does."""

    def compose(self) -> ComposeResult:
        """Top to bottom; the pane stands below the lines or beside them."""
        yield Static(id="head")
        yield Static(id="titles")
        with Horizontal(id="body"):
            yield Lines(self.draw, id="lines")
            with VerticalScroll(id="pane"):
                yield Static(id="detail")
        yield Input(id="ask")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """The keys go to the lines."""
        self.lines.focus()

    @property
    def lines(self) -> Lines:
        """The lines."""
        return self.query_one("#lines", Lines)

    def put(self, where: str, what: RenderableType) -> None:
        """Shows `what` in one of the static parts."""
        self.query_one(where, Static).update(what)

    def ask(self, hint: str, value: str) -> None:
        """Opens the line to type into."""
        field = self.query_one("#ask", Input)
        field.placeholder, field.value = hint, value
        field.add_class("asking")
        field.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Closes the line and hands the answer on."""
        self._close()
        self.answered(event.value)

    def action_back(self) -> None:
        """Closes what is open, the last thing first."""
        if self.query_one("#ask").has_class("asking"):
            self._close()
        elif self.has_class("zoomed"):
            self.zoom(False)
        elif len(self.app.screen_stack) > 2:
            self.app.pop_screen()

    def zoom(self, on: bool) -> None:
        """The pane alone, with the keys; or the lines with it."""
        self.set_class(on, "zoomed")
        self.query_one("#pane" if on else "#lines").focus()

    def _close(self) -> None:
        self.query_one("#ask").remove_class("asking")
        self.lines.focus()

    def draw(self, index: int, width: int) -> Text:
        """One line."""
        raise NotImplementedError

    def answered(self, text: str) -> None:
        """What was typed in."""
        raise NotImplementedError
