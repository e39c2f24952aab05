"""`assign`: the judged trees of one optimizer step to masses per token. The entry of treerl.credit.

Order: leaves and outcomes, node statistics, outcome part, dense part, one normaliser, importance weights of
rows, rows summed to unique tokens. Everything is float64 and computed once over the whole step, before it is
cut into micro-batches. Token masks and modulators of the catalogue would act between the dense part and the
normaliser.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from treerl.config import AdvantageSettings
from treerl.credit.deepsearch import PAPER, Discount, faithful
from treerl.credit.dense import Signals, future_kl, implicit_return, log_ratio, soft_values
from treerl.credit.importance import Importance, Weighed, weigh_rows
from treerl.credit.masses import TokenCredit
from treerl.credit.rows import (
    FloatArray,
    Forest,
    NodeStatistics,
    Rows,
    node_statistics,
    outcome_std,
    training_rows,
)
from treerl.credit.table import TABLE, MasterRow, divide, evaluate
from treerl.search.tree import Tree

NodeWeight = Literal["n", "sqrt_n", "one"]

_MASTER_ROW = {
    "grpo": "grpo",
    "dr_grpo": "dr_grpo",
    "rloo": "rloo",
    "tree_value": "tree_value",
    "sibling_rloo": "sibling_rloo",
    "deepsearch": "tree_value",
    "prl": "grpo",
    "frpo": "grpo",
    "implicit_prm": "rloo",
    "implicit_value": "implicit_value",
}
NEEDS_SIGNALS = frozenset({"prl", "frpo", "implicit_prm", "implicit_value"})
"""Estimators that read lp_old and lp_ref."""


@dataclass(frozen=True, slots=True)
class CreditSummary:
    """Statistics of one step's credit, over unique trained tokens; 0 where there is none.

    positive_on_wrong: share of the tokens on wrong rows (reward <= .5) whose advantage is above 0;
    negative_on_right: share of those on right rows with one below 0. uniform: fraction of trees whose
    judged leaves all have one reward, dropped: trees that left the batch for it (or have no row). rejected,
    leaf_ess: see `treerl.credit.importance.Weighed`; NaN without weights on rows.
    """

    advantage_mean: float = 0.0
    advantage_abs: float = 0.0
    positive_on_wrong: float = 0.0
    negative_on_right: float = 0.0
    uniform: float = 0.0
    dropped: int = 0
    rows: int = 0
    tokens: int = 0
    rejected: float = float("nan")
    leaf_ess: float = float("nan")

    def weight_metrics(self) -> dict[str, float]:
        """Figures of weights on rows under the names of the metrics file; none without such weights."""
        found = {"mismatch/rejected_frac": self.rejected, "mismatch/ess_leaves": self.leaf_ess}
        return {name: value for name, value in found.items() if not math.isnan(value)}


def assign(
    trees: Sequence[Tree],
    settings: AdvantageSettings,
    *,
    loss_agg_mode: str,
    signals: Sequence[Signals] | None = None,
    discount: Discount = PAPER,
    importance: Importance | None = None,
) -> list[TokenCredit]:
    """One `TokenCredit` a tree, in order; see `assign_with_summary`."""
    return assign_with_summary(
        trees,
        settings,
        loss_agg_mode=loss_agg_mode,
        signals=signals,
        discount=discount,
        importance=importance,
    )[0]


def assign_with_summary(
    trees: Sequence[Tree],
    settings: AdvantageSettings,
    *,
    loss_agg_mode: str,
    signals: Sequence[Signals] | None = None,
    discount: Discount = PAPER,
    importance: Importance | None = None,
) -> tuple[list[TokenCredit], CreditSummary]:
    """Masses of every tree and statistics of the step.

    loss_agg_mode: as `LossSettings.loss_agg_mode`; sets row weights and denominators (`row_masses`).
    signals: one a tree, for the estimators in `NEEDS_SIGNALS`. discount: of the faithful DeepSearch scores.
    importance: weights that act on rows, with log-weights of all `trees`; they touch no baseline or statistic.
    A tree whose rewards are all equal gets zero masses and denominator 0 if `zero_variance` is `drop`.
    """
    kept = [i for i, tree in enumerate(trees) if _is_kept(tree, settings)]
    forest = _forest([trees[i] for i in kept], settings)
    rows = training_rows(forest)
    chosen = None if signals is None else [signals[i] for i in kept]
    values = entry_advantages(forest, rows, settings, signals=chosen, discount=discount)
    lengths = [float(trees[i].max_completion_length) for i in kept]
    weight = node_weight(settings)
    weighed = None
    if importance is not None:
        of_kept = [importance.log_weights[i] for i in kept]
        weighed = weigh_rows(rows, replace(importance, log_weights=of_kept))
    credits = [_nothing(tree) for tree in trees]
    found = row_masses(forest, rows, values, weight, loss_agg_mode, lengths, weighed)
    for i, credit in zip(kept, found, strict=True):
        credits[i] = credit
    summary = _summary(trees, forest, rows, values)
    if weighed is not None:
        summary = replace(summary, rejected=weighed.rejected, leaf_ess=weighed.leaf_ess)
    return credits, summary


def advantages(
    tree: Tree,
    settings: AdvantageSettings,
    signals: Signals | None = None,
    *,
    discount: Discount = PAPER,
) -> FloatArray:
    """Mean advantage over its rows of each unique token of one tree, float64[n_tokens]; NaN = in no row.

    The tree is a batch of its own, and is never dropped: zero variance shows what the estimator makes of it.
    """
    forest = _forest([tree], settings)
    rows = training_rows(forest)
    given = None if signals is None else [signals]
    values = entry_advantages(forest, rows, settings, signals=given, discount=discount)
    return token_mean(rows, values, len(tree.tokens))


def entry_advantages(
    forest: Forest,
    rows: Rows,
    settings: AdvantageSettings,
    *,
    signals: Sequence[Signals] | None = None,
    discount: Discount = PAPER,
) -> FloatArray:
    """A[i, t] of every row entry, float64[E], normalised."""
    released = settings.estimator == "deepsearch" and settings.faithful
    low = -1.0 if released else settings.reward_low
    outcome = low + (1.0 - low) * forest.reward
    if released:
        values = faithful(forest, rows, outcome, discount)
        row = None
        statistics = node_statistics(forest, outcome)
    else:
        row = _row(settings)
        statistics = node_statistics(forest, outcome)
        soft = None
        if row.x == "soft":
            soft = soft_values(forest, log_ratio(forest, rows, signals), beta=settings.beta)
        values = evaluate(row, forest, rows, outcome, statistics, ddof=settings.std_ddof, soft=soft)
    values = _scaled(values, row, settings, forest, rows, outcome, statistics)
    values = _with_dense(values, settings, forest, rows, signals)
    return _rms_scaled(values, rows, len(forest.mask)) if settings.rms_scale else values


def node_weight(settings: AdvantageSettings) -> NodeWeight:
    """c(u) of the settings: n for leaf-row estimators and one for node estimators, unless it is set."""
    if settings.node_weight is not None:
        return settings.node_weight
    if settings.estimator == "deepsearch" and settings.faithful:
        return "n"
    return "n" if TABLE[_MASTER_ROW[settings.estimator]].rows == "leaf" else "one"


def token_mean(rows: Rows, values: FloatArray, n_tokens: int) -> FloatArray:
    """A_bar: mean over its rows of each unique token, float64[n_tokens]; NaN = in no row."""
    count = np.bincount(rows.token, minlength=n_tokens)
    total = np.bincount(rows.token, values, minlength=n_tokens)
    mean = np.full(n_tokens, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean


def _is_kept(tree: Tree, settings: AdvantageSettings) -> bool:
    if settings.zero_variance == "drop":
        return not tree.is_uniform()
    return bool((~np.isnan(tree.nodes.reward) & tree.nodes.selected).any())


def _forest(trees: Sequence[Tree], settings: AdvantageSettings) -> Forest:
    return Forest.of(trees, count_cached=settings.cached_baseline == "in")


def _nothing(tree: Tree) -> TokenCredit:
    zero = np.zeros(len(tree.tokens))
    return TokenCredit(zero, zero.copy(), zero.copy(), 0.0, 0)


def _row(settings: AdvantageSettings) -> MasterRow:
    """The master row with the std that the settings ask for; one normaliser, so rms_scale replaces it."""
    row = TABLE[_MASTER_ROW[settings.estimator]]
    own = settings.scale_rewards == "group" or (
        settings.scale_rewards is None and not settings.rms_scale
    )
    return row if own else replace(row, sd="none")


def _scaled(
    values: FloatArray,
    row: MasterRow | None,
    settings: AdvantageSettings,
    forest: Forest,
    rows: Rows,
    outcome: FloatArray,
    statistics: NodeStatistics,
) -> FloatArray:
    """Divides by the std that `scale_rewards` asks for and the row does not have by itself."""
    ddof = settings.std_ddof
    if settings.scale_rewards == "group" and (row is None or row.sd == "none"):
        sd = outcome_std(forest, outcome, statistics, ddof)[forest.roots]
        return divide(values, sd[rows.tree][rows.row])
    if settings.scale_rewards == "batch":
        # Raw outcomes, not centred ones: the spread between prompts counts too.
        leaves = outcome[forest.leaves[forest.counted[forest.leaves]]]
        equal = len(leaves) == 0 or leaves.min() == leaves.max()
        sd_batch = 0.0 if equal else float(leaves.std(ddof=ddof))
        return divide(values, np.full(len(values), sd_batch))
    return values


def _with_dense(
    values: FloatArray,
    settings: AdvantageSettings,
    forest: Forest,
    rows: Rows,
    signals: Sequence[Signals] | None,
) -> FloatArray:
    match settings.estimator:
        case "prl" | "frpo":
            step = settings.step_tokens if settings.estimator == "prl" else 1
            delta = log_ratio(forest, rows, signals)
            return values + future_kl(forest, rows, delta, beta=settings.beta, step=step)
        case "implicit_prm":
            delta = log_ratio(forest, rows, signals)
            return values + implicit_return(rows, delta, beta=settings.beta)
        case _:
            return values


def _rms_scaled(values: FloatArray, rows: Rows, n_tokens: int) -> FloatArray:
    """Divided by the root mean square of A_bar over unique trained tokens: zero and signs stay."""
    mean = token_mean(rows, values, n_tokens)
    mean = mean[~np.isnan(mean)]
    square = float(np.mean(mean**2)) if len(mean) else 0.0
    return values / np.sqrt(square) if square > 0 else values


def row_masses(
    forest: Forest,
    rows: Rows,
    values: FloatArray,
    weight: NodeWeight,
    loss_agg_mode: str,
    max_completion_length: Sequence[float],
    weighed: Weighed | None = None,
) -> list[TokenCredit]:
    """Sums row entries to unique tokens: W = sum of w_i f(u), P, M with [A]_+ and [-A]_+, f = c(s_u)/s_u.

    s_u rows pass the node, so node weight n is f = 1, the sum over rows. w_i is 1, or 1/T_i for
    seq-mean-token-mean. Denominator of a tree: the sum of W for token-mean (row tokens at n, unique trained
    tokens at one) and for seq-mean-token-mean (rows at n); the rows for seq-mean-token-sum; rows *
    max_completion_length for seq-mean-token-sum-norm. Importance weights multiply A, not w_i: a cut weight
    shrinks no denominator, a rejected entry is no entry.
    """
    if weighed is not None:
        rows, values = weighed.rows, values[weighed.kept] * weighed.factor
    n_tokens, n_trees = len(forest.mask), len(forest.roots)
    w = _row_weights(rows, loss_agg_mode)[rows.row]
    factor = _node_factor(rows, weight, n_tokens)
    total, positive, negative = (
        forest.split(factor * np.bincount(rows.token, part, minlength=n_tokens))
        for part in (w, w * np.maximum(values, 0.0), w * np.maximum(-values, 0.0))
    )
    n_rows = np.bincount(rows.tree[rows.length > 0], minlength=n_trees)
    match loss_agg_mode:
        case "seq-mean-token-sum":
            denominator = n_rows.astype(np.float64)
        case "seq-mean-token-sum-norm":
            denominator = n_rows * np.asarray(max_completion_length)
        case "seq-mean-token-mean" if weight == "n":
            denominator = n_rows.astype(np.float64)
        case _:
            denominator = np.array([part.sum() for part in total])
    return [
        TokenCredit(p, m, t, float(d), int(b))
        for p, m, t, d, b in zip(positive, negative, total, denominator, n_rows, strict=True)
    ]


def _node_factor(rows: Rows, weight: NodeWeight, n_tokens: int) -> FloatArray:
    """f = c(s_u)/s_u of each unique token, float64[n_tokens]."""
    passing = np.maximum(np.bincount(rows.token, minlength=n_tokens), 1)
    match weight:
        case "n":
            return np.ones(n_tokens)
        case "sqrt_n":
            return 1.0 / np.sqrt(passing)
        case "one":
            return 1.0 / passing


def _row_weights(rows: Rows, loss_agg_mode: str) -> FloatArray:
    match loss_agg_mode:
        case "token-mean" | "seq-mean-token-sum" | "seq-mean-token-sum-norm":
            return np.ones(len(rows))
        case "seq-mean-token-mean":
            return 1.0 / np.maximum(rows.length, 1)
        case _:
            raise ValueError(f"unknown loss_agg_mode {loss_agg_mode!r}")


def _summary(
    trees: Sequence[Tree], forest: Forest, rows: Rows, values: FloatArray
) -> CreditSummary:
    uniform = float(np.mean([tree.is_uniform() for tree in trees])) if trees else 0.0
    dropped = len(trees) - len(forest.roots)
    if len(values) == 0:
        return CreditSummary(uniform=uniform, dropped=dropped)
    mean = token_mean(rows, values, len(forest.mask))
    on_row = mean[rows.token]
    right = (forest.reward[rows.leaf] > 0.5)[rows.row]
    mean = mean[~np.isnan(mean)]
    return CreditSummary(
        advantage_mean=float(mean.mean()),
        advantage_abs=float(np.abs(mean).mean()),
        positive_on_wrong=float((on_row[~right] > 0).mean()) if (~right).any() else 0.0,
        negative_on_right=float((on_row[right] < 0).mean()) if right.any() else 0.0,
        uniform=uniform,
        dropped=dropped,
        rows=len(rows),
        tokens=len(mean),
    )
