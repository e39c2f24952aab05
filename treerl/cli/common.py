"""What all commands share: options, the console, errors to exit codes, JSON output."""

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from treerl.errors import ConfigError, DataError, TreerlError

Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="key=value over the recipe, value in TOML")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts")]
RecipeName = Annotated[str, typer.Argument(help="A .toml file or the name of a shipped recipe")]
Url = Annotated[str, typer.Option("--url", "-u", help="Database of the replay cache")]
PIPE_WIDTH = 112
"""Cells of a line where there is no terminal, unless COLUMNS says otherwise."""
DEFAULT_URL = "sqlite:///runs/replay.db"


def console(*, stderr: bool = False) -> Console:
    """A console of its own for each command: width and colour follow the stream."""
    out = Console(stderr=stderr, soft_wrap=False)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = PIPE_WIDTH
    return out


@contextmanager
def guard() -> Iterator[None]:
    """Turns treerl's errors into one line and an exit code; everything else is a bug and shows a trace.

    A job scheduler's SIGTERM and a closed terminal's SIGHUP end a command as Ctrl-C does: in order.
    """
    try:
        with _as_interrupts(signal.SIGTERM, signal.SIGHUP):
            yield
    except (ConfigError, DataError) as error:
        _fail(str(error), 2)
    except TreerlError as error:
        _fail(str(error), 1, getattr(error, "__notes__", ()))
    except KeyboardInterrupt:
        _fail("interrupted", 1)


@contextmanager
def _as_interrupts(*numbers: signal.Signals) -> Iterator[None]:
    """These signals raise KeyboardInterrupt, where nobody decided otherwise (nohup ignores SIGHUP)."""
    ours = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _fail(message: str, code: int, notes: Sequence[str] = ()) -> NoReturn:
    out = console(stderr=True)
    out.print(f"[bold red]treerl:[/] {_escape(message)}", highlight=False, soft_wrap=True)
    for note in notes:
        out.print(_escape(note), highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def emit(value: Any) -> None:
    """Writes one line of JSON to stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
