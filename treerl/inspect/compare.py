"""Two estimators on one tree: where they pay a span alike, where they contradict each other, in figures."""

from dataclasses import dataclass

import numpy as np
from rich.text import Text

from treerl.inspect.library import Opened
from treerl.inspect.model import span_means
from treerl.inspect.render import plural
from treerl.inspect.shade import Credit
from treerl.inspect.text import fit, visible
from treerl.search.tree import ROOT


@dataclass(frozen=True, slots=True)
class Comparison:
    """correlation: of the advantages of all tokens that both pay (None: one of them is constant).

    opposed: spans that one rewards and the other punishes, the strongest first; only_one: spans that exactly
    one of them pays; spans: how many both have.
    """

    first: Credit
    second: Credit
    correlation: float | None
    opposed: list[int]
    only_one: int
    spans: int


ZERO = 1e-9
"""Magnitudes below this count as no pay."""


def compare(opened: Opened, first: Credit, second: Credit) -> Comparison:
    """The two side by side, in spans and in tokens."""
    both = np.isfinite(first.tokens) & np.isfinite(second.tokens)
    a, b = first.tokens[both], second.tokens[both]
    varied = len(a) > 1 and np.ptp(a) > ZERO and np.ptp(b) > ZERO
    pairs = [
        (row, one, other)
        for row, (one, other) in enumerate(
            zip(
                span_means(opened.tree, first.tokens),
                span_means(opened.tree, second.tokens),
                strict=True,
            )
        )
        if row != ROOT and one is not None and other is not None
    ]
    opposed = [p for p in pairs if p[1] * p[2] < 0 and min(abs(p[1]), abs(p[2])) > ZERO]
    tops = (first.top or 1.0, second.top or 1.0)
    opposed.sort(key=lambda p: -min(abs(p[1]) / tops[0], abs(p[2]) / tops[1]))
    return Comparison(
        first,
        second,
        float(np.corrcoef(a, b)[0, 1]) if varied else None,
        [row for row, _, _ in opposed],
        sum((abs(one) > ZERO) != (abs(other) > ZERO) for _, one, other in pairs),
        len(pairs),
    )


def render_comparison(opened: Opened, found: Comparison, *, width: int, most: int = 5) -> Text:
    """The figures in words, then the strongest contradictions."""
    names = f"{found.first.estimator} and {found.second.estimator}"
    text = Text(f"{names}: ", style="bold")
    words = (
        "no correlation (one of them pays every token the same)"
        if found.correlation is None
        else f"correlation {found.correlation:+.2f} over tokens"
    )
    text.append(f"{words}; of {found.spans} {plural(found.spans, 'span')} ", style="not bold")
    text.append(f"{len(found.opposed)} with opposite signs, ", style="not bold")
    text.append(f"{found.only_one} paid by one alone", style="not bold")
    means = [span_means(opened.tree, credit.tokens) for credit in (found.first, found.second)]
    for row in found.opposed[:most]:
        one, other = means[0][row], means[1][row]
        line = f"\n  span {row:<4d} {one:+.2f} against {other:+.2f}  "
        text.append(line, style="not bold")
        words = visible(opened.view.nodes[row].text)
        text.append(fit(words, max(8, width - len(line))), style="not bold dim")
    if len(found.opposed) > most:
        text.append(f"\n  … {len(found.opposed) - most} more", style="not bold dim")
    return text
