"""A progress bar with time left, for commands that only count; nothing where there is no terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn


@contextmanager
def bar(name: str, console: Console | None) -> Iterator[Callable[[int, int], None]]:
    """Yields what is told (done, total); the bar disappears at the end."""
    shown = console if console is not None and console.is_terminal else None
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=shown, transient=True, disable=shown is None) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
