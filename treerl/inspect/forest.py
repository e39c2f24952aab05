"""The forest: problems and trees of a cache as aligned lines, filtered and sorted. Pure: rows in, lines out."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from rich.text import Text

from treerl.errors import ConfigError
from treerl.inspect.library import Library
from treerl.inspect.render import BAR_CELLS, bar, sparkline
from treerl.inspect.shade import plain
from treerl.inspect.text import fit, visible
from treerl.replay.browse import ProblemRow
from treerl.replay.store import TreeInfo

SORTS = ("newest", "pass rate", "trees", "entropy", "question")
REACH = 2000
"""Lines that are read to be filtered and sorted: the newest."""
RULES = "rate, trees, entropy, step with < > =, or words of the question or the run"


@dataclass(frozen=True, slots=True)
class Item:
    """A line of the forest: a problem, or one tree. entropy: of its newest tree, None where unknown.

    newest: id of the newest tree, which enter opens; trees: how many; step, run: of the newest tree.
    """

    newest: int
    trees: int
    question: str
    truth: str
    leaves: int
    right: int
    entropy: float | None
    created_us: int
    step: int | None = None
    run: str = ""
    spans: int | None = None
    tokens: int | None = None
    cached: int = 0
    problem: ProblemRow | None = None

    @property
    def rate(self) -> float | None:
        """Right leaves of all fresh ones; None where there are none."""
        return self.right / self.leaves if self.leaves else None


def of_problem(row: ProblemRow, entropy: float | None) -> Item:
    """A problem as a line."""
    return Item(
        newest=row.newest,
        trees=row.trees,
        question=row.problem.question,
        truth=row.problem.truth,
        leaves=row.leaves,
        right=row.right,
        entropy=entropy,
        created_us=row.created_us,
        problem=row,
    )


def of_tree(info: TreeInfo, entropy: float | None) -> Item:
    """One tree as a line."""
    return Item(
        newest=info.id,
        trees=1,
        question=info.problem.question,
        truth=info.problem.truth,
        leaves=info.leaves,
        right=info.right,
        entropy=entropy,
        created_us=info.created_us,
        step=info.step,
        run=info.run,
        spans=info.nodes,
        tokens=info.generated,
        cached=info.cached,
    )


def problem_items(library: Library, run_id: str | None, limit: int) -> list[Item]:
    """The problems of a cache, those with the newest trees first."""
    return [of_problem(row, entropy) for row, entropy in library.problems(run_id, limit)]


# Order -----------------------------------------------------------------------------------------------------


def arrange(items: Sequence[Item], *, where: str, sort: str) -> list[Item]:
    """Those that `where` lets through, by `sort`. Raises ConfigError for a rule that is none."""
    tests = [_test(word) for word in where.split()]
    kept = [item for item in items if all(test(item) for test in tests)]
    match sort:
        case "newest":
            kept.sort(key=lambda item: -item.newest)
        case "pass rate":
            kept.sort(key=lambda item: (item.rate is None, item.rate or 0.0))
        case "trees":
            kept.sort(key=lambda item: -item.trees)
        case "entropy":
            kept.sort(key=lambda item: -(-1.0 if item.entropy is None else item.entropy))
        case "question":
            kept.sort(key=lambda item: item.question.casefold())
        case _:
            raise ConfigError(f"--sort {sort}: choose one of {', '.join(SORTS)}")
    return kept


_RULE = re.compile(r"(rate|trees|entropy|step)(<=|>=|<|>|=)(-?[0-9.]+)")


def _test(word: str) -> Callable[[Item], bool]:
    """One word of a filter: `rate<0.5`, or text of the question or the run."""
    found = _RULE.fullmatch(word)
    if found is None:
        if re.match(r"(rate|trees|entropy|step)[<>=]", word):
            raise ConfigError(f"filter {word!r}: give {RULES}")
        low = word.casefold()
        return lambda item: low in item.question.casefold() or low in item.run.casefold()
    name, sign = found[1], found[2]
    try:
        limit = float(found[3])
    except ValueError:
        raise ConfigError(f"filter {word!r}: {found[3]!r} is no number") from None

    def test(item: Item) -> bool:
        value = getattr(item, name)
        if value is None:
            return False
        below, equal = value < limit, value == limit
        return (
            (equal and "=" in sign)
            or (below and "<" in sign)
            or (not below and not equal and ">" in sign)
        )

    return test


# Lines -----------------------------------------------------------------------------------------------------


def forest_titles(width: int, *, of_trees: bool) -> Text:
    """The titles of the columns."""
    titles = f"{'tree':>6} {'step' if of_trees else 'trees':>5} {'right':>8} "
    titles += f"{'pass rate':<{BAR_CELLS + 5}} {'entropy':<7} "
    titles += f"{'spans':>6} {'tokens':>7} " if of_trees and width >= 90 else ""
    titles += f"{'when':<11} " if width >= 80 else ""
    titles += "run" if of_trees else "question"
    return Text(fit(titles, width).ljust(width), style="dim underline")


def forest_line(item: Item, width: int, *, now_us: int, of_trees: bool, found: str = "") -> Text:
    """One problem or tree, at most `width` cells. now_us: what `when` counts from; found: shown reversed."""
    text = Text(no_wrap=True)
    text.append(f"{item.newest:>6} ", style="dim")
    text.append(f"{item.step if of_trees else item.trees:>5} {f'{item.right}/{item.leaves}':>8} ")
    text.append(" " * BAR_CELLS if item.rate is None else bar(item.rate, BAR_CELLS))
    text.append(f" {plain(item.rate):>4} {plain(item.entropy):>5} {_level(item.entropy)} ")
    if of_trees and width >= 90:
        text.append(f"{item.spans or 0:>6,d} {item.tokens or 0:>7,d} ")
    if width >= 80:
        text.append(f"{ago(item.created_us, now_us):<11} ", style="dim")
    begin = len(text)
    words = visible(item.run if of_trees else item.question)
    if of_trees and item.cached:
        words += f"  ({item.cached:,d} tokens from the cache)"
    text.append(fit(words, max(8, width - text.cell_len)))
    if found and (at := text.plain.casefold().find(found.casefold(), begin)) >= 0:
        text.stylize("reverse", at, at + len(found))
    return text


def _level(entropy: float | None) -> str:
    return " " if entropy is None else sparkline(np.array([entropy]), cells=1)


def ago(created_us: int, now_us: int) -> str:
    """How long ago, in the largest unit; the date from 30 days on."""
    seconds = max(0, now_us - created_us) // 1_000_000
    for unit, length in (("day", 86_400), ("hour", 3_600), ("min", 60)):
        if (count := seconds // length) >= 1:
            if unit == "day" and count >= 30:
                return datetime.fromtimestamp(created_us / 1e6, UTC).strftime("%Y-%m-%d")
            return f"{count} {unit}{'s' if count > 1 and unit != 'min' else ''} ago"
    return "just now"
