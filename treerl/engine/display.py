"""The terminal while treerl works: a live view where there is one, plain lines elsewhere.

The working thread fills plain states (treerl.inspect.live); rich's thread draws them, at most four times a
second and beside the scrolled text, so that what was said stays readable. The terminal is restored on exit,
whatever ends the work.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.logging import RichHandler
from rich.segment import Segments
from rich.text import Text

from treerl.engine.step import Searched
from treerl.inspect.live import (
    Bar,
    Training,
    bar_line,
    best_and_contested,
    count,
    training_lines,
)
from treerl.inspect.model import view_tree

PLAIN_EVERY = 10
"""Steps between lines where there is no terminal."""
REDRAWS_PER_SECOND = 2
"""Of figures that change once a step, and of clocks."""
MOST_REDRAWS_PER_SECOND = 4
"""Of a tree that is watched as it grows."""

Decode = Callable[[Sequence[int]], str]

Body = Callable[[int, int], list[Text]]
"""Lines that change with the work, not with the clock, for a width and at most a height."""


class Display:
    """What one command shows. `quiet` (for --json) shows nothing; `brisk` redraws as often as is allowed."""

    def __init__(self, console: Console, *, quiet: bool = False, brisk: bool = False) -> None:
        self.console = console
        self._quiet = quiet
        self._redraws = MOST_REDRAWS_PER_SECOND if brisk else REDRAWS_PER_SECOND
        self.is_live = not quiet and console.is_terminal and not console.is_dumb_terminal
        self._bars: dict[str, Bar] = {}
        self._training: Training | None = None
        self._decode: Decode = str
        self._body: Body = lambda width, height: []
        self._changes = 0
        self._drawn: tuple[tuple[int, int, int] | None, Segments] = None, Segments([])
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        if self.is_live:
            live = Live(
                self,
                console=self.console,
                transient=True,
                refresh_per_second=self._redraws,
                redirect_stderr=sys.stderr.isatty(),
            )
            self._exit.enter_context(live)
            self._exit.enter_context(_logs_on(self.console))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()
        state = self._training
        if self.is_live and error is not None and state is not None and state.row is not None:
            self.say(f"step {state.row['step']}/{state.total}  {step_line(state.row)}")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now = time.monotonic()
        bars = [bar_line(bar, now) for bar in list(self._bars.values())]
        yield from bars
        room = options.size.height - len(bars) - 1
        key = (self._changes, options.max_width, room)
        if self._drawn[0] != key:
            lines = self._lines(options.max_width, room)
            self._drawn = key, Segments(list(console.render(Group(*lines), options)))
        yield self._drawn[1]

    def _lines(self, width: int, height: int) -> list[Text]:
        """The body's lines. A view that cannot be drawn says so, and must not end the work it shows."""
        try:
            return self._body(width, height)
        except Exception as error:  # noqa: BLE001 - this is the border between work and view
            line = Text(f"this view failed: {error!r}; the work goes on", style="red")
            self._body = lambda width, height: [line]
            return [line]

    def say(self, text: str) -> None:
        """One line that stays, above the view."""
        if not self._quiet:
            self.console.print(text, highlight=False)

    def advance(self, name: str, done: int, total: int | None, note: str = "") -> None:
        """Shows `done` of `total` under `name`; a finished bar disappears."""
        if not self.is_live:
            return
        bar = self._bars.get(name)
        if bar is None:
            self._bars[name] = Bar(name, done, total, time.monotonic(), first=done, note=note)
        else:
            bar.done, bar.total, bar.note = done, total, note
        if total is not None and done >= total:
            del self._bars[name]

    def show(self, body: Body) -> None:
        """Below the bars stands `body` from now on; called again when what it shows has changed."""
        self._body = body
        self._changes += 1

    # Training --------------------------------------------------------------------------------------------

    def begin_training(self, step: int, total: int, decode: Decode) -> None:
        """A run of `total` steps begins, or goes on behind `step`. decode: token ids to text."""
        if self.is_live:
            self._decode = decode
            self._training = state = Training(total)
            self.show(lambda width, height: training_lines(state, width=width, height=height))
            self.advance("training", step, total)

    def evaluated(self, label: str, figures: Mapping[str, float]) -> None:
        """Figures of an evaluation, `eval/...`."""
        if self._training is not None:
            self._training.held_out[1:] = [(label, dict(figures))]
            self._changes += 1

    def searching(self, searched: Searched) -> None:
        """The trees of a step grow: how many are finished, and what they have cost."""
        note = f"{count(searched.counts.generated_tokens)} tokens"
        done = searched.counts.trees + len(searched.adopted)
        self.advance("searching", done, len(searched.trees), note)

    def searched(self, searched: Searched, step: int) -> None:
        """All trees of a step are finished: picks those to show."""
        self._bars.pop("searching", None)
        if self._training is None:
            return
        self._bars["training"].note = "updating"
        shown = []
        names = (f"best of step {step}", f"most contested of step {step}")
        for name, index in zip(names, best_and_contested(searched.trees), strict=True):
            if index is not None:
                problem = searched.problems[index]
                view = view_tree(
                    searched.trees[index],
                    self._decode,
                    question=problem.question,
                    truth=problem.truth,
                )
                shown.append((name, view))
        self._training.trees = shown
        self._changes += 1

    def step(self, row: dict[str, Any], total: int) -> None:
        """One training step, from its metrics row."""
        step = int(row["step"])
        if self._training is not None:
            self._training.add(row)
            self._changes += 1
            self.advance("training", step, total)
            if "training" in self._bars:
                self._bars["training"].seconds_left = self._training.seconds_left()
        elif step % PLAIN_EVERY == 0 or step in (1, total):
            self.say(f"step {step}/{total}  {step_line(row)}")


@contextmanager
def _logs_on(console: Console) -> Iterator[None]:
    """Log lines for the terminal go through `console`, above the view instead of into it."""
    handlers = [h for h in logging.getLogger().handlers if isinstance(h, RichHandler)]
    before = [handler.console for handler in handlers]
    for handler in handlers:
        handler.console = console
    try:
        yield
    finally:
        for handler, own in zip(handlers, before, strict=True):
            handler.console = own


def step_line(row: Mapping[str, Any]) -> str:
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
