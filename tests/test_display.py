"""The live view as an object: what it draws for a console of a given size, and that it never ends the work."""

import io
import logging

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from treerl.engine.display import Display


def terminal(width=80, height=20):
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None
    )


def drawn(display):
    """The lines of one frame."""
    with display.console.capture() as captured:
        display.console.print(display)
    return captured.get().splitlines()


def test_bars_stand_above_the_body_and_finished_ones_go():
    display = Display(terminal())
    display.advance("searching", 1, 4, "12 tokens")
    display.show(lambda width, height: [Text(f"{width} x {height}")])
    lines = drawn(display)
    assert lines[0].startswith("searching")
    assert "1/4" in lines[0]
    assert lines[1:] == ["80 x 18"]
    display.advance("searching", 4, 4)
    assert drawn(display) == ["80 x 19"]


def test_the_body_is_drawn_again_only_when_it_changed():
    calls = []

    def body(width, height):
        calls.append(width)
        return [Text("body")]

    display = Display(terminal())
    display.show(body)
    drawn(display)
    drawn(display)
    assert len(calls) == 1
    display.show(body)
    drawn(display)
    assert len(calls) == 2


def test_a_view_that_fails_says_so_and_the_work_goes_on():
    def body(width, height):
        raise KeyError("reward")

    display = Display(terminal())
    with display:
        display.show(body)
        display.say("next step")
    written = display.console.file.getvalue()
    assert "this view failed: KeyError('reward'); the work goes on" in written
    assert "next step" in written


def test_log_lines_come_above_the_view_and_go_back_to_their_own_console():
    own = terminal()
    handler = RichHandler(console=own, show_path=False)
    logging.getLogger().addHandler(handler)
    try:
        display = Display(terminal())
        with display:
            logging.getLogger("treerl").warning("the disk is slow")
        assert handler.console is own
    finally:
        logging.getLogger().removeHandler(handler)
    assert "the disk is slow" in display.console.file.getvalue()
    assert own.file.getvalue() == ""


def test_a_quiet_display_writes_nothing():
    console = terminal()
    with Display(console, quiet=True) as display:
        display.say("hello")
        display.advance("training", 1, 3)
    assert console.file.getvalue() == ""
