"""How often an estimator blames the right place: does the most negative span of a wrong path hold its error?

A judgement of credit itself, for tasks whose steps can be checked; nothing is trained on it. The advantage
of a span is the mean over its trained tokens of A_bar, the mean over a token's rows: what the token is
pushed by, up to its weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from treerl.config import AdvantageSettings
from treerl.credit.assign import entry_advantages, token_mean
from treerl.credit.deepsearch import PAPER, Discount
from treerl.credit.dense import Signals
from treerl.credit.rows import FloatArray, Forest, IntArray, Rows, training_rows
from treerl.search.tree import Tree

FirstError = tuple[int, int]
"""Where a wrong path first goes wrong: [start, stop), in tokens from the first response token."""


@dataclass(frozen=True, slots=True)
class StepAccuracy:
    """Over `leaves` wrong rows of at least two spans; all others are fractions of these rows.

    hit: the most negative span holds a token of the error; equal spans share the hit. silent: no span is
    negative, which is a miss. chance_span, chance_length: what a span drawn uniformly, or in proportion
    to its length, would hit.
    """

    leaves: int = 0
    hit: float = 0.0
    silent: float = 0.0
    chance_span: float = 0.0
    chance_length: float = 0.0


def step_accuracy(
    trees: Sequence[Tree],
    settings: AdvantageSettings,
    first_errors: Sequence[Mapping[int, FirstError]],
    *,
    signals: Sequence[Signals] | None = None,
    discount: Discount = PAPER,
) -> StepAccuracy:
    """first_errors: one mapping a tree, from the node of a wrong leaf to its error; other leaves are left out.

    `trees` are one batch, as for `assign`; leave trees of equal rewards out, they blame nothing. Errors
    without a trained token, and paths of one span, are left out.
    """
    forest = Forest.of(trees)
    rows = training_rows(forest)
    values = entry_advantages(forest, rows, settings, signals=signals, discount=discount)
    mean = token_mean(rows, values, len(forest.mask))[rows.token]
    row, size, total, errs = _spans(rows, mean, _in_error(forest, rows, first_errors))
    if len(row) == 0:
        return StepAccuracy()
    spans = np.bincount(row)
    counted = (spans > 1) & (np.bincount(row, errs) > 0)
    blamed = _most_negative(row, total / size, len(spans))
    per_row = np.stack(
        [
            _share(row, errs, blamed),
            np.bincount(row, blamed) == 0,
            _share(row, errs, np.ones(len(row))),
            _share(row, errs, size),
        ]
    )[:, counted]
    if not counted.any():
        return StepAccuracy()
    hit, silent, by_span, by_length = per_row.mean(axis=1).tolist()
    return StepAccuracy(int(counted.sum()), hit, silent, by_span, by_length)


def _in_error(
    forest: Forest, rows: Rows, first_errors: Sequence[Mapping[int, FirstError]]
) -> FloatArray:
    """1.0 for the entries that lie in their row's error, float64[E]."""
    start = np.zeros(len(rows), np.int64)
    stop = np.zeros(len(rows), np.int64)
    for i, (tree, leaf) in enumerate(zip(rows.tree.tolist(), rows.leaf.tolist(), strict=True)):
        start[i], stop[i] = first_errors[tree].get(leaf - int(forest.roots[tree]), (0, 0))
    inside = (rows.position >= start[rows.row]) & (rows.position < stop[rows.row])
    return inside.astype(np.float64)


def _spans(
    rows: Rows, mean: FloatArray, inside: FloatArray
) -> tuple[IntArray, FloatArray, FloatArray, FloatArray]:
    """Row, tokens, summed advantage and error flag of each span of each row."""
    if len(rows.row) == 0:
        return rows.row, mean, mean, mean
    new = (rows.row[1:] != rows.row[:-1]) | (rows.node[1:] != rows.node[:-1])
    first = np.flatnonzero(np.concatenate(([True], new)))
    size = np.diff(np.concatenate((first, [len(rows.row)]))).astype(np.float64)
    total = np.add.reduceat(mean, first)
    return rows.row[first], size, total, np.maximum.reduceat(inside, first)


def _most_negative(row: IntArray, value: FloatArray, n_rows: int) -> FloatArray:
    """1.0 for the spans that are lowest of their row and below 0, within rounding."""
    lowest = np.zeros(n_rows)
    np.minimum.at(lowest, row, value)
    close = value <= lowest[row] * (1 - 1e-9)
    return (close & (value < -1e-12)).astype(np.float64)


def _share(row: IntArray, errs: FloatArray, weight: FloatArray) -> FloatArray:
    """Weight of the spans in error over the weight of all, per row; 0 where there is none."""
    total = np.bincount(row, weight)
    hit = np.bincount(row, weight * errs)
    return np.divide(hit, total, out=np.zeros_like(total), where=total > 0)
