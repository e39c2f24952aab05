"""What a person sees while treerl works: a progress bar with rates on a terminal, plain lines elsewhere."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_EVERY = 10
"""Steps between lines where there is no terminal."""


class Display:
    """Progress of one command. `quiet` (for --json) shows nothing; the terminal is restored on exit."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self._quiet = quiet
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rates]}"),
            console=console,
            transient=True,
            refresh_per_second=4,
            disable=quiet or not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """One line above the bar."""
        if not self._quiet:
            self.console.print(text, highlight=False)

    def advance(self, name: str, done: int, total: int | None, rates: str = "") -> None:
        """Shows `done` of `total` under `name`; a finished bar disappears."""
        if self._quiet:
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, rates=rates)
        self._progress.update(self._tasks[name], completed=done, total=total, rates=rates)
        if total is not None and done >= total:
            self._progress.remove_task(self._tasks.pop(name))

    def step(self, row: dict[str, Any], total: int) -> None:
        """One training step, from its metrics row."""
        step = int(row["step"])
        rates = step_line(row)
        self.advance("training", step, total, rates)
        if not self.console.is_terminal and (step % PLAIN_EVERY == 0 or step in (1, total)):
            self.say(f"step {step}/{total}  {rates}")


def step_line(row: dict[str, Any]) -> str:
    """The figures of a step that a person watches, in one line."""
    parts = [
        f"reward {row['reward']:.3f}",
        f"entropy {row['entropy']:.2f}",
        f"{row['search/tokens_per_second'] / 1000:.1f}k tok/s drawn",
    ]
    if row["train/trees"]:
        parts.append(f"{row['train/tokens_per_second'] / 1000:.1f}k trained")
        parts.append(f"x{row['train/tree_token_ratio']:.2f} packed")
    else:
        parts.append("nothing to learn from")
    if row["replay/cached_leaves"]:
        parts.append(f"{row['replay/cached_leaves']:.0f} cached")
    failed = row["verify/timeout"] + row["verify/error"]
    if failed:
        parts.append(f"{failed:.0f} verdicts failed")
    return "  ".join(parts)
