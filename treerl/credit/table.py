"""Estimators as rows of one master formula, and the one function that evaluates a row.

    A[i, t] = omega_out(u) * Comb_{v in Anc} [ (X~(i or u) - X~(v)) / sd(v) ],    X~ = omega_in * X

for the token t of row i in node u. A new value-difference estimator is a line of `TABLE`. Dense token
signals are added by treerl.credit.dense; whitening with a shift of the mean is left out on purpose, since
it breaks both invariants.

Invariants. E: equal rewards give exactly 0. S: the sign of A agrees with a named value difference. Every
row here that reads outcomes holds E. S holds for V(u) - V(root) in `grpo`, `dr_grpo`, `rloo`; for
V(u) - V(parent) in `tree_value` and `sibling_rloo`; for V_rec in `spo_tree*`; for the sum of both
differences in `treerl`. `tree_grpo`, `treepo*` and `treerl_code` can contradict both: deep groups see
other leaves than the prompt does. `implicit_value` reads no outcome.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from treerl.credit.rows import FloatArray, Forest, IntArray, NodeStatistics, Rows, outcome_std


@dataclass(frozen=True, slots=True)
class MasterRow:
    """One estimator.

    x: what is compared; R belongs to the leaf (its node value is V), the others to the node of the token;
    `soft` is the given value of a prefix. anchors: which nodes it is compared with; `group` is the child of
    the root on the path, `leaf_ancestors` those of the leaf with more than one leaf, and the root.
    combine: over anchors; `size` is the mean weighted by their leaves. leave_one_out: X' = n/(n-1)(X - mean).
    sd: sample std of R below the anchor, or population std of the anchor's children's values.
    omega_in, omega_out: 1, 1/sqrt(s), 1/sqrt(n), or the sibling leave-one-out factor n_p / (n_p - n_u).
    rows: `leaf` rows weigh a shared token n by default, `node` estimators 1.
    """

    x: Literal["R", "V", "V_rec", "soft"]
    anchors: Literal[
        "root", "parent", "group", "root+parent", "root+group", "ancestors", "leaf_ancestors"
    ]
    combine: Literal["sum", "mean", "size"] = "sum"
    leave_one_out: bool = False
    sd: Literal["none", "below", "children"] = "none"
    omega_in: Literal["one", "selected"] = "one"
    omega_out: Literal["one", "leaves", "siblings"] = "one"
    rows: Literal["leaf", "node"] = "leaf"


TABLE: dict[str, MasterRow] = {
    "grpo": MasterRow("R", "root", sd="below"),
    "dr_grpo": MasterRow("R", "root"),
    "rloo": MasterRow("R", "root", leave_one_out=True),
    "tree_value": MasterRow("V", "parent", rows="node"),
    "sibling_rloo": MasterRow("V", "parent", omega_out="siblings", rows="node"),
    "implicit_value": MasterRow("soft", "parent", rows="node"),
    "treerl": MasterRow("V", "root+parent", leave_one_out=True, omega_out="leaves"),
    "treerl_code": MasterRow("V", "root+parent", leave_one_out=True, omega_in="selected"),
    "all_ancestors": MasterRow("V", "ancestors", "mean", leave_one_out=True),
    "tree_grpo": MasterRow("R", "root+group", sd="below"),
    "treepo": MasterRow("R", "leaf_ancestors", "mean"),
    "treepo_size": MasterRow("R", "leaf_ancestors", "size"),
    "spo_tree": MasterRow("V_rec", "parent", rows="node"),
    "spo_tree_grpo": MasterRow("V_rec", "parent", sd="children", rows="node"),
}
"""Papers: grpo 2402.03300; dr_grpo 2503.20783; rloo 2402.14740; treerl 2506.11902 (treerl_code: as released,
without its filler of exact zeros); tree_grpo 2509.21240; treepo 2508.17445 before whitening; spo_tree
2505.23564 before whitening; implicit_value after 2412.01981; the others are treerl's own."""


def evaluate(
    row: MasterRow,
    forest: Forest,
    rows: Rows,
    outcome: FloatArray,
    statistics: NodeStatistics,
    *,
    ddof: int = 1,
    soft: FloatArray | None = None,
) -> FloatArray:
    """The master formula over all entries, float64[E]. outcome float64[N]; soft float64[N] for x = "soft"."""
    of_leaf = row.x == "R"
    items = rows.leaf if of_leaf else np.arange(len(forest))
    which, anchor = _anchors(row, forest, statistics, items)
    value = _node_value(row, statistics, soft)
    own = outcome[items] if of_leaf else value
    if row.leave_one_out:
        group = statistics.n[forest.root]
        factor = np.where(group > 1, group / np.maximum(group - 1, 1), 0.0)
        # What is no member of the group has nothing of its own to leave out.
        factor = np.where(forest.counted, factor, 1.0)
        mean = statistics.value[forest.root]
        own = factor[items] * (own - mean[items])
        value = factor * (value - mean)
    if row.omega_in == "selected":
        scale = 1 / np.sqrt(np.maximum(statistics.s, 1))
        own, value = own * scale[items], value * scale
    term = own[which] - value[anchor]
    if row.sd != "none":
        term = divide(term, _anchor_std(row, forest, statistics, outcome, value, ddof)[anchor])
    combined = _combine(row, which, anchor, term, statistics, len(items))
    combined = combined * _omega_out(row, forest, statistics)[items]
    return combined[rows.row] if of_leaf else combined[rows.node]


def divide(term: FloatArray, sd: FloatArray) -> FloatArray:
    """term / sd, and 0 where sd is exactly 0."""
    return np.divide(term, sd, out=np.zeros_like(term), where=sd > 0)


def _node_value(row: MasterRow, statistics: NodeStatistics, soft: FloatArray | None) -> FloatArray:
    if row.x == "soft":
        if soft is None:
            raise ValueError("a row with x = 'soft' needs the soft values")
        return soft
    return statistics.recursive if row.x == "V_rec" else statistics.value


def _anchors(
    row: MasterRow, forest: Forest, statistics: NodeStatistics, items: IntArray
) -> tuple[IntArray, IntArray]:
    """Pairs (index into items, anchor). A root is anchored to itself, where that is asked for."""
    which = np.arange(len(items))
    # A root is its own parent here, so that it needs no case of its own; no entry lies in a root.
    parent = np.where(forest.parent < 0, np.arange(len(forest)), forest.parent)
    if row.anchors == "ancestors":
        return forest.ancestors(items, itself=False)
    if row.anchors == "leaf_ancestors":
        which, node = forest.ancestors(items, itself=False)
        keep = (statistics.n[node] > 1) | (node == forest.root[node])
        return which[keep], node[keep]
    single = {"root": forest.root, "parent": parent, "group": None}
    anchors = []
    for name in row.anchors.split("+"):
        column = single[name]
        anchors.append(_groups(forest)[items] if column is None else column[items])
    return np.tile(which, len(anchors)), np.concatenate(anchors)


def _groups(forest: Forest) -> IntArray:
    """The child of the root on the path of each node (int, N); a root for itself."""
    group, parent, root = np.arange(len(forest)).tolist(), forest.parent, forest.root
    for u in forest.order.tolist():
        if parent[u] >= 0 and parent[u] != root[u]:
            group[u] = group[parent[u]]
    return np.array(group, dtype=np.int64)


def _anchor_std(
    row: MasterRow,
    forest: Forest,
    statistics: NodeStatistics,
    outcome: FloatArray,
    value: FloatArray,
    ddof: int,
) -> FloatArray:
    if row.sd == "below":
        return outcome_std(forest, outcome, statistics, ddof)
    child = np.flatnonzero((forest.parent >= 0) & (statistics.n > 0) & ~forest.apart)
    parent, size = forest.parent[child], len(forest)
    count = np.maximum(np.bincount(parent, minlength=size), 1)
    mean = np.bincount(parent, value[child], minlength=size) / count
    square = np.bincount(parent, (value[child] - mean[parent]) ** 2, minlength=size)
    low, high = np.full(size, np.inf), np.full(size, -np.inf)
    np.minimum.at(low, parent, value[child])
    np.maximum.at(high, parent, value[child])
    return np.where(low >= high, 0.0, np.sqrt(square / count))


def _combine(
    row: MasterRow,
    which: IntArray,
    anchor: IntArray,
    term: FloatArray,
    statistics: NodeStatistics,
    size: int,
) -> FloatArray:
    if row.combine == "sum":
        return np.bincount(which, term, minlength=size)
    weight = statistics.n[anchor] if row.combine == "size" else np.ones(len(anchor))
    total = np.bincount(which, weight, minlength=size)
    return divide(np.bincount(which, weight * term, minlength=size), total)


def _omega_out(row: MasterRow, forest: Forest, statistics: NodeStatistics) -> FloatArray:
    n = statistics.n
    if row.omega_out == "leaves":
        return 1 / np.sqrt(np.maximum(n, 1))
    if row.omega_out == "siblings":
        above = n[np.maximum(forest.parent, 0)]
        return divide(above, above - np.where(forest.apart, 0.0, n))
    return np.ones(len(forest))
