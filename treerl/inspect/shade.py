"""What the colour of a tree carries: one quantity at a time, on one scale for the whole tree.

A `Shade` has a value a span, its scale and how the value is written; the figure always stands beside the
colour. Ramps change in lightness as well as hue, and set their own letters' colour, so that they read on dark
and light terminals and to colour-blind eyes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treerl.inspect.model import TreeView, span_means
from treerl.search.tree import ROOT, Tree

ENTROPY_TOP = 2.0
"""Nats at the top of every entropy scale: one fixed scale, so that certainty never looks like doubt."""
RISING = (
    "",
    "#000000 on #fbe6a2",
    "#000000 on #f7c56b",
    "#000000 on #ee9450",
    "#ffffff on #c9503c",
    "#ffffff on #862045",
)
FALLING = (
    "",
    "#000000 on #f9d9b5",
    "#000000 on #f0b27a",
    "#000000 on #dd8643",
    "#ffffff on #b65a1e",
    "#ffffff on #7f3a0c",
)
ABOVE = (
    "",
    "#000000 on #cfe3f2",
    "#000000 on #9dc6e4",
    "#000000 on #61a3d2",
    "#ffffff on #2c74ae",
    "#ffffff on #0f4678",
)
LEVELS = len(RISING)


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a value lies between `low` and `high`; with `middle` colours part there, below and above it."""

    low: float
    high: float
    middle: float | None = None

    def level(self, value: float | None) -> int:
        """0 to LEVELS - 1; negative below the middle. 0 where the value is unknown."""
        if value is None or not math.isfinite(value):
            return 0
        if self.middle is None:
            share = (value - self.low) / ((self.high - self.low) or 1.0)
            return int(min(LEVELS - 1, max(0.0, share) * LEVELS))
        reach = (self.high if value > self.middle else self.low) - self.middle
        share = min(1.0, max(0.0, (value - self.middle) / reach)) if reach else 0.0
        level = min(LEVELS - 1, int(share * LEVELS + 0.5))
        return level if value > self.middle else -level

    def ticks(self) -> list[float]:
        """Five values for a legend: the ends, the middle, and one between each."""
        middle = (self.low + self.high) / 2 if self.middle is None else self.middle
        return [self.low, (self.low + middle) / 2, middle, (middle + self.high) / 2, self.high]

    def style(self, value: float | None) -> str:
        """A rich style; "" at level 0."""
        level = self.level(value)
        if self.middle is None:
            return RISING[level]
        return ABOVE[level] if level >= 0 else FALLING[-level]

    def ink(self, value: float | None) -> str:
        """The same colour for the letters themselves: of blocks, which would read inverted on it."""
        return self.style(value).rpartition(" on ")[2]


@dataclass(frozen=True, slots=True)
class Shade:
    """One quantity over the spans of a tree, by row. title: its column's; legend: the scale in words.

    tokens: the same a token, float[n_tokens], where it has one.
    """

    title: str
    values: Mapping[int, float | None]
    scale: Scale
    write: Callable[[float | None], str]
    legend: str
    tokens: NDArray[Any] | None = None

    def style(self, row: int) -> str:
        """The colour of a span."""
        return self.scale.style(self.values.get(row))

    def figure(self, row: int) -> str:
        """The value of a span in words."""
        return self.write(self.values.get(row))


SHADES = ("q", "visits", "entropy", "advantage", "age")
"""Names of what colour can carry; the keys 1 to 5 of the app."""


def signed(value: float | None) -> str:
    """Two decimals with their sign."""
    return "-" if value is None else f"{value:+.2f}"


def plain(value: float | None) -> str:
    """Two decimals."""
    return "-" if value is None else f"{value:.2f}"


def whole(value: float | None) -> str:
    """No decimals."""
    return "-" if value is None else f"{value:,.0f}"


def shade_q(view: TreeView) -> Shade:
    """Value of the spans, blue above the middle of the scale and orange below it."""
    values = {row: node.q for row, node in view.nodes.items()}
    low = min(0.0, min((q for q in values.values() if q is not None), default=0.0))
    return Shade("q", values, Scale(low, 1.0, middle=(low + 1.0) / 2), signed, f"q {low:g} to 1")


def shade_of(name: str, view: TreeView, tree: Tree, credit: "Credit | None" = None) -> Shade:
    """The shade `name` of SHADES; `credit` is what the spans were paid, for `advantage`."""
    nodes = view.nodes
    match name:
        case "q":
            return shade_q(view)
        case "visits":
            counts: dict[int, float | None] = {row: node.visits for row, node in nodes.items()}
            top = max(1, nodes[ROOT].visits)
            return Shade("n", counts, Scale(0.0, top), whole, f"visits 0 to {top:,d}")
        case "entropy":
            means = {row: node.entropy for row, node in nodes.items()}
            legend = f"entropy 0 to {ENTROPY_TOP:g} nats"
            scale = Scale(0.0, ENTROPY_TOP)
            return Shade("entropy", means, scale, plain, legend, tree.tokens.entropy)
        case "advantage":
            if credit is None:
                raise ValueError("the shade of advantage needs the credit")
            return credit.shade(tree)
        case "age":
            ages: dict[int, float | None] = {row: node.age for row, node in nodes.items()}
            oldest = max(1.0, *(age for age in ages.values() if age is not None), 1.0)
            legend = f"age 0 to {oldest:g} policy versions, newest v{view.version}"
            return Shade("age", ages, Scale(0.0, oldest), whole, legend)
    raise ValueError(f"colour by {name!r}: choose one of {', '.join(SHADES)}")


@dataclass(frozen=True, slots=True)
class Credit:
    """What an estimator pays each token of a tree: float[n_tokens], NaN on tokens in no training row."""

    estimator: str
    tokens: NDArray[Any]

    @property
    def top(self) -> float:
        """The largest magnitude: both ends of the scale."""
        known = np.abs(self.tokens[np.isfinite(self.tokens)])
        return float(known.max()) if len(known) else 0.0

    def shade(self, tree: Tree) -> Shade:
        """Means over the spans, on a scale from -top to +top."""
        values = dict(enumerate(span_means(tree, self.tokens)))
        scale = Scale(-self.top, self.top, middle=0.0)
        legend = f"{self.estimator} ±{self.top:.3g}"
        return Shade(self.estimator, values, scale, signed, legend, self.tokens)


def strip_of(scale: Scale, values: NDArray[Any], *, cells: int) -> list[tuple[str, str]]:
    """Means of at most `cells` equal pieces of `values` as (block, colour) pairs; blank where unknown.

    Blocks grow from the bottom; on a scale with a middle those below it hang from the top.
    """
    out = []
    for piece in np.array_split(values, min(cells, len(values))) if len(values) else []:
        known = piece[np.isfinite(piece)]
        if not len(known):
            out.append((" ", ""))
            continue
        mean = float(known.mean())
        out.append((block_of(scale, mean), scale.ink(mean)))
    return out


RISING_BLOCKS = "▁▂▃▄▅▆▇█"
HIGHER, LOWER = "─▁▂▃▄▄", "─▔▔▀▀▀"


def block_of(scale: Scale, value: float) -> str:
    """The block of one value; blank where it is unknown."""
    if not math.isfinite(value):
        return " "
    if scale.middle is None:
        share = (value - scale.low) / ((scale.high - scale.low) or 1.0)
        return RISING_BLOCKS[max(0, min(7, round(8 * share) - 1))]
    level = scale.level(value)
    return HIGHER[level] if level >= 0 else LOWER[-level]
