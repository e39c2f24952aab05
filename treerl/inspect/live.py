"""What a training run and a search look like while they work: plain states in, lines of text out.

Nothing here draws, waits or knows a model; treerl.engine.display owns the terminal and fills the states.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.text import Text

from treerl.inspect.lines import tree_lines
from treerl.inspect.model import TreeView
from treerl.inspect.render import BLOCKS
from treerl.inspect.text import visible
from treerl.search.sampler import Finish
from treerl.search.tree import ROOT, Tree

SIDE_BY_SIDE = 120
"""Cells from which two trees stand beside each other."""
LEAST = 8
"""Lines a tree, below which only the last of several is shown."""
RECENT = 20
"""Steps whose mean duration the time to go is reckoned from."""
CURVES = ("reward", "search/solved", "entropy", "step_time")
"""Metrics whose course is kept."""
_BAR = 24
_NAME = 10


@dataclass(slots=True)
class Bar:
    """Work under way. done counts from `first`, where this process took it up; `begun` is monotonic time."""

    name: str
    done: int
    total: int | None
    begun: float
    first: int = 0
    note: str = ""
    seconds_left: float | None = None

    def left(self, now: float) -> float | None:
        """Seconds to go: those given, or by the rate so far; None while there is none."""
        if self.seconds_left is not None or self.total is None or self.done <= self.first:
            return self.seconds_left
        return (now - self.begun) * (self.total - self.done) / (self.done - self.first)


@dataclass(slots=True)
class Training:
    """A training run. row: metrics of the last step; curves: of the steps of this process, by metric.

    held_out: evaluations under their labels, the first and the latest; trees: views under their titles.
    """

    total: int
    row: Mapping[str, Any] | None = None
    curves: dict[str, list[float]] = field(default_factory=dict)
    held_out: list[tuple[str, Mapping[str, float]]] = field(default_factory=list)
    trees: list[tuple[str, TreeView]] = field(default_factory=list)

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes in the metrics of one more step."""
        for name in CURVES:
            self.curves.setdefault(name, []).append(float(row[name]))
        self.row = row

    def seconds_left(self) -> float | None:
        """Time of the steps to come at the pace of the latest; None before the first."""
        if self.row is None:
            return None
        recent = self.curves["step_time"][-RECENT:]
        return (self.total - int(self.row["step"])) * sum(recent) / len(recent)


@dataclass(slots=True)
class Watched:
    """A search that is watched: the tree shown, and what all its trees have cost so far."""

    generated_tokens: int = 0
    seconds: float = 0.0
    cached_leaves: int = 0
    reused_tokens: int = 0
    prefill_tokens: int = 0
    judged: int = 0
    right: int = 0
    failed: int = 0
    title: str = ""
    view: TreeView | None = None


# Lines -------------------------------------------------------------------------------------------------------


def bar_line(bar: Bar, now: float) -> Text:
    """Name, bar, done of total, time gone and to go, note."""
    line = _line(bar.name, style="bold")
    if bar.total:
        full = min(_BAR, _BAR * bar.done // bar.total)
        line.append("━" * full, "green").append("─" * (_BAR - full), "dim")
        line.append(f" {bar.done}/{bar.total}")
    else:
        line.append(f"{bar.done}")
    line.append(f"  {clock(now - bar.begun)} gone")
    left = bar.left(now)
    if left is not None:
        line.append(f", {clock(left)} to go")
    if bar.note:
        line.append(f"  {bar.note}", "dim")
    return line


def clock(seconds: float) -> str:
    """Hours, minutes, seconds."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def training_lines(state: Training, *, width: int, height: int) -> list[Text]:
    """The view of a training run in at most `height` lines: figures first, trees as far as they fit."""
    lines = _held_out(state)
    if state.row is not None:
        lines = [*_curves(state, state.row, width), *lines, *_figures(state.row)]
    room = height - len(lines) - 1
    if state.trees and room >= 4:
        lines += [Text(), *_tree_blocks(state.trees, width, room)]
    return lines[:height]


def _curves(state: Training, row: Mapping[str, Any], width: int) -> list[Text]:
    """Reward, solved trees and entropy over the steps, each on a scale that its line states."""
    cells = max(8, min(48, width - 56))
    entropies = state.curves["entropy"]
    solved = f"trees with a right leaf (pass@{row['search/leaves_per_tree']:.0f})"
    return [
        curve_line("reward", state.curves["reward"], cells, note="mean of the leaves"),
        curve_line("solved", state.curves["search/solved"], cells, note=solved),
        curve_line("entropy", entropies, cells, top=_top(entropies), note="nats"),
    ]


def _top(values: Iterable[float]) -> float:
    """The next round number (1, 2 or 5 times a power of ten) at or above all finite values."""
    largest = max((v for v in values if math.isfinite(v)), default=0.0)
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= largest * (1 - 1e-12))


def curve_line(
    name: str, values: Sequence[float], cells: int, *, top: float = 1.0, note: str = ""
) -> Text:
    """The latest figure, the course as block characters from 0 to `top`, and the scale."""
    line = _line(name)
    line.append(f"{values[-1]:6.3f}  ", "bold")
    line.append(f"{curve(values, cells, top=top):{cells}s}", "cyan")
    line.append(f"  0 to {top:g}", "dim")
    if note:
        line.append(f", {note}", "dim")
    return line


def curve(values: Sequence[float], cells: int, *, top: float) -> str:
    """Means of at most `cells` equal pieces as block characters from 0 to `top`; a blank where unknown."""
    if not values:
        return ""
    pieces = np.array_split(np.asarray(values, float), min(cells, len(values)))
    out = []
    for piece in pieces:
        known = piece[np.isfinite(piece)]
        level = round(8 * float(known.mean()) / top) if len(known) else 0
        out.append(BLOCKS[max(1, min(8, level)) if len(known) else 0])
    return "".join(out)


def _held_out(state: Training) -> list[Text]:
    """The latest evaluation beside the first; nothing before there is one."""
    if not state.held_out:
        return []
    first, latest = state.held_out[0][1], state.held_out[-1]
    line = _line("held-out")
    for name, value in latest[1].items():
        label = name.removeprefix("eval/")
        if label.startswith(("pass@", "maj@", "greedy")):
            shown = f"{value:.3f}"
            if len(state.held_out) > 1 and name in first:
                shown = f"{first[name]:.3f} → {shown}"
            line.append(f"{label} ", "dim").append(f"{shown}   ")
    return [line.append(latest[0], "dim")]


def _figures(row: Mapping[str, Any]) -> list[Text]:
    """Speed, shapes, cache and verdicts of the last step."""
    speed = [f"{count(row['search/tokens_per_second'])} tok/s drawn"]
    if row["train/trees"]:
        speed.append(f"{count(row['train/tokens_per_second'])} tok/s trained")
    speed.append(
        f"{count(row['num_tokens'])} drawn, {count(row['train/total_tokens_trained'])} trained so far"
    )
    shapes = [
        f"{row['search/trees'] + row['search/adopted_trees']:.0f} of {row['search/nodes_per_tree']:.1f} "
        f"spans, {row['search/leaves_per_tree']:.1f} leaves, depth {row['search/depth_per_tree']:.1f}"
    ]
    if "train/tree_token_ratio" in row:
        shapes.append(f"packed x{row['train/tree_token_ratio']:.2f}")
    shapes.append(f"{row['credit/dropped_trees']:.0f} without signal")
    cached = [
        f"{row['replay/cached_leaves']:.0f} leaves in {row['replay/trees_with_cache']:.0f} trees",
        _reused(row["search/reused_tokens"], row["search/prefill_tokens"]),
    ]
    failed = row["verify/timeout"] + row["verify/error"]
    verdicts = [f"{row['verify/scored']:.0f} scored", f"{row['verify/skipped']:.0f} skipped"]
    lines = [_line("speed", speed), _line("trees", shapes), _line("cache", cached)]
    broken = f"{failed:.0f} failed"
    if failed:
        broken += f" ({row['verify/timeout']:.0f} timeouts, {row['verify/error']:.0f} errors)"
    lines.append(_line("verdicts", verdicts).append(f"   {broken}", "bold red" if failed else ""))
    return lines


def _reused(reused: float, encoded: float) -> str:
    """Which part of the prefix tokens was not run through the model again."""
    whole = reused + encoded
    return f"{reused / whole if whole else 0.0:.0%} of {count(whole)} prefix tokens reused"


def _line(name: str, parts: Sequence[str] = (), *, style: str = "dim") -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    return line.append(f"{name:{_NAME}s}", style).append("   ".join(parts))


def count(value: float) -> str:
    """A number of tokens in few characters: 947, 23.5k, 1.45M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


def _tree_blocks(trees: Sequence[tuple[str, TreeView]], width: int, room: int) -> list[Text]:
    """Trees under their titles: beside each other where wide enough, else below, in `room` lines."""
    if width >= SIDE_BY_SIDE and len(trees) == 2:
        half = (width - 3) // 2
        left, right = (_tree_block(*tree, half, room) for tree in trees)
        return _beside(left, right, half)
    if room < LEAST * len(trees):
        return _tree_block(*trees[-1], width, room)
    lines: list[Text] = []
    for index, tree in enumerate(trees):
        lines += _tree_block(*tree, width, (room - len(lines)) // (len(trees) - index))
    return lines


def _tree_block(title: str, view: TreeView, width: int, room: int) -> list[Text]:
    root = view.nodes[ROOT]
    head = Text(no_wrap=True, overflow="ellipsis").append(f"{title}  ", "dim")
    question = visible(view.question or root.text)
    head.append(f"{root.right_leaves} of {root.leaves} right  ")
    head.append(question, "bold").append(f"  truth {visible(view.truth)}", "dim")
    head.truncate(width, overflow="ellipsis")
    return [head, *tree_lines(view, width=width, most=room - 1)]


def _beside(left: list[Text], right: list[Text], width: int) -> list[Text]:
    lines = []
    for index in range(max(len(left), len(right))):
        line = left[index] if index < len(left) else Text(no_wrap=True)
        line.truncate(width, overflow="ellipsis", pad=True)
        whole = Text(no_wrap=True, overflow="crop").append_text(line).append("   ")
        lines.append(whole.append_text(right[index]) if index < len(right) else whole)
    return lines


def watch_lines(state: Watched, *, width: int, height: int) -> list[Text]:
    """A watched search in at most `height` lines: counters, then the tree that grows."""
    speed = state.generated_tokens / state.seconds if state.seconds > 0 else 0.0
    speeds = [f"{count(speed)} tok/s drawn", f"{count(state.generated_tokens)} tokens so far"]
    cached = [
        f"{state.cached_leaves} leaves",
        _reused(state.reused_tokens, state.prefill_tokens),
    ]
    judged = [f"{state.judged} judged", f"{state.right} right"]
    if state.failed:
        judged.append(f"{state.failed} failed")
    lines = [_line("speed", speeds), _line("cache", cached), _line("verdicts", judged)]
    if state.view is not None and height - len(lines) >= 3:
        lines += [Text(), *_tree_block(state.title, state.view, width, height - len(lines) - 1)]
    return lines[:height]


# Which trees to show ---------------------------------------------------------------------------------------


def best_and_contested(trees: Sequence[Tree]) -> tuple[int | None, int | None]:
    """Which tree is most right (ties: the longest answers), and which is most evenly divided.

    None where no tree has a right leaf, or none has both right and wrong ones.
    """
    shares = [_right_share(tree) for tree in trees]
    known = [i for i, share in enumerate(shares) if share is not None and share > 0]
    best = max(known, key=lambda i: (shares[i], _mean_length(trees[i])), default=None)
    divided = [i for i in known if (shares[i] or 0) < 1]
    contested = min(
        divided, key=lambda i: (abs((shares[i] or 0) - 0.5), -len(trees[i])), default=None
    )
    return best, contested


def _right_share(tree: Tree) -> float | None:
    rewards = tree.nodes.reward[~np.isnan(tree.nodes.reward)]
    return float((rewards >= 1.0).mean()) if len(rewards) else None


def _mean_length(tree: Tree) -> float:
    nodes = tree.nodes
    ended = (nodes.finish == Finish.STOP) | (nodes.finish == Finish.LENGTH)
    return float((nodes.offset + nodes.stop - nodes.start)[ended].mean())
