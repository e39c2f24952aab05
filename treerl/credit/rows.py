"""Judged trees as one forest of flat arrays: node statistics, and training rows expanded to tokens.

All trees of an optimizer step are laid behind one another, so that credit is a few numpy calls over the
whole step and not a loop over trees. Leaves without a reward (skipped, timeout, error) are in no group and
no row. Node values are means over *all* judged leaves; rows are the judged leaves that are `selected`.
Nothing here knows an estimator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treerl.search.tree import NO_PARENT, Tree

IntArray = NDArray[Any]
FloatArray = NDArray[Any]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Forest:
    """Several trees behind one another; N nodes, P tokens, all indices global.

    parent, root, tree, offset, start, stop int[N]: parent is -1 at roots, offset counts tokens on the path
    before the span, prompt included. reward float64[N]: raw rewards, NaN = not judged. selected bool[N].
    mask bool[P]: the token takes gradient. roots int[K]; token_start int[K + 1]. counted bool[N]: leaves there
    are in the groups of the nodes above; False on paths from the cache that are left out of the baseline.
    """

    parent: IntArray
    root: IntArray
    tree: IntArray
    offset: IntArray
    start: IntArray
    stop: IntArray
    reward: FloatArray
    selected: BoolArray
    mask: BoolArray
    roots: IntArray
    token_start: IntArray
    counted: BoolArray

    def __len__(self) -> int:
        return len(self.parent)

    @property
    def leaves(self) -> IntArray:
        """Judged leaves: the groups that values and baselines are taken over, and what is left out of them."""
        return np.flatnonzero(~np.isnan(self.reward))

    @property
    def apart(self) -> BoolArray:
        """Nodes that are left out of the values of the node they hang on (bool, N)."""
        parent = np.maximum(self.parent, 0)
        apart: BoolArray = ~self.counted & (self.parent != NO_PARENT) & self.counted[parent]
        return apart

    @classmethod
    def of(cls, trees: Sequence[Tree], *, count_cached: bool = True) -> "Forest":
        """Lays `trees` behind one another (none: an empty forest).

        count_cached: leaves below draws from the cache are in the groups of the nodes above these draws.
        """
        sizes = np.array([len(tree) for tree in trees], dtype=np.int64)
        lengths = np.array([len(tree.tokens) for tree in trees], dtype=np.int64)
        roots = np.concatenate(([0], np.cumsum(sizes)))[:-1].astype(np.int64)
        token_start = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        tree = np.repeat(np.arange(len(trees)), sizes)
        shift = token_start[:-1][tree]
        parent = _column(trees, "parent", np.int64)
        return cls(
            parent=np.where(parent == NO_PARENT, NO_PARENT, parent + roots[tree]),
            root=roots[tree],
            tree=tree,
            offset=_column(trees, "offset", np.int64),
            start=_column(trees, "start", np.int64) + shift,
            stop=_column(trees, "stop", np.int64) + shift,
            reward=_column(trees, "reward", np.float64),
            selected=_column(trees, "selected", np.bool_),
            mask=_join([tree.tokens.mask for tree in trees], np.bool_),
            roots=roots,
            token_start=token_start,
            counted=_join([_counted(tree, count_cached) for tree in trees], np.bool_),
        )

    @property
    def order(self) -> IntArray:
        """Nodes, parents before children (int, N): spans are never empty, so depth in tokens orders them."""
        return np.argsort(self.offset, kind="stable")

    def path_sum(self, values: FloatArray) -> FloatArray:
        """Sum of `values` (float, N) over the path to each node, itself included."""
        total = np.asarray(values, dtype=np.float64).tolist()
        parent = self.parent.tolist()
        for u in self.order.tolist():
            if parent[u] != NO_PARENT:
                total[u] += total[parent[u]]
        return np.array(total)

    def ancestors(self, items: IntArray, *, itself: bool) -> tuple[IntArray, IntArray]:
        """Pairs (index into `items`, node on its path), roots included, `items` themselves if `itself`."""
        which = np.arange(len(items))
        node = np.asarray(items)
        if not itself:
            node = self.parent[node]
        found = []
        while True:
            alive = node != NO_PARENT
            which, node = which[alive], node[alive]
            if len(node) == 0:
                break
            found.append((which, node))
            node = self.parent[node]
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.concatenate([w for w, _ in found]), np.concatenate([n for _, n in found])

    def split(self, column: FloatArray) -> list[FloatArray]:
        """A column over all tokens (float, P) cut into one array a tree."""
        return np.split(column, self.token_start[1:-1]) if len(self.roots) else []


def _counted(tree: Tree, count_cached: bool) -> BoolArray:
    """Nodes without a cached span on their path (bool[N]); all of them if cached ones count too."""
    counted = np.ones(len(tree), np.bool_)
    own = tree.draws.source[tree.nodes.draw] == 0
    if count_cached or own.all():
        return counted
    parent = tree.nodes.parent
    for node in tree.order.tolist():
        counted[node] = own[node] and (parent[node] == NO_PARENT or counted[parent[node]])
    return counted


def _column(trees: Sequence[Tree], name: str, dtype: Any) -> NDArray[Any]:
    return _join([getattr(tree.nodes, name) for tree in trees], dtype)


def _join(columns: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(columns).astype(dtype) if columns else np.zeros(0, dtype)


# Node statistics -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    """Statistics over the judged leaves below each node, float64[N]; 0 where there is none.

    n leaves, s selected leaves, value their mean outcome V, recursive V_rec (mean over the children's
    V_rec), left_out V' = n/(n-1) * (V(u) - V(root)), the node mean of the leave-one-out outcomes (0 in a
    group of one), uniform: all outcomes below are equal, decided by min == max.
    """

    n: FloatArray
    s: FloatArray
    value: FloatArray
    recursive: FloatArray
    left_out: FloatArray
    uniform: BoolArray


def node_statistics(forest: Forest, outcome: FloatArray) -> NodeStatistics:
    """Values of all nodes. outcome: float64[N], NaN = not judged.

    What is not `counted` is in no group above it; below, and at a node with nothing else, it is.
    """
    every = _scan(forest, outcome)
    if forest.counted.all():
        return every
    part = _scan(forest, np.where(forest.counted, outcome, np.nan))
    inside = forest.counted & (part.n > 0)
    names = ("n", "value", "recursive", "uniform")
    merged = {n: np.where(inside, getattr(part, n), getattr(every, n)) for n in names}
    value = merged["value"]
    left_out = np.where(inside, part.left_out, value - value[forest.root])
    return NodeStatistics(**merged, s=every.s, left_out=left_out)


def _scan(forest: Forest, outcome: FloatArray) -> NodeStatistics:
    """One scan over all nodes, children first. outcome: float64[N], NaN = not judged.

    Where all outcomes below a node are equal its values are that outcome, bit for bit: a mean of equal
    numbers is not (seven times .7), and equal rewards must give exactly zero.
    """
    judged = ~np.isnan(outcome)
    parent = forest.parent.tolist()
    leaf = judged.tolist()
    n = judged.astype(np.float64).tolist()
    s = (judged & forest.selected).astype(np.float64).tolist()
    total = np.where(judged, outcome, 0.0).tolist()
    low = np.where(judged, outcome, np.inf).tolist()
    high = np.where(judged, outcome, -np.inf).tolist()
    recursive = list(total)
    children = [0] * len(parent)
    for u in forest.order[::-1].tolist():
        if n[u] == 0.0:
            continue
        if not leaf[u]:
            recursive[u] /= children[u]
        p = parent[u]
        if p == NO_PARENT:
            continue
        n[p] += n[u]
        s[p] += s[u]
        total[p] += total[u]
        low[p] = min(low[p], low[u])
        high[p] = max(high[p], high[u])
        recursive[p] += recursive[u]
        children[p] += 1
    count = np.array(n)
    uniform = np.array(low) >= np.array(high)
    equal = uniform & (count > 0)
    value = np.where(equal, low, np.array(total) / np.maximum(count, 1.0))
    group = count[forest.root]
    left_out = np.where(group > 1, group / np.maximum(group - 1, 1.0), 0.0)
    left_out = left_out * np.where(count > 0, value - value[forest.root], 0.0)
    return NodeStatistics(
        count, np.array(s), value, np.where(equal, low, recursive), left_out, uniform
    )


def outcome_std(
    forest: Forest, outcome: FloatArray, statistics: NodeStatistics, ddof: int
) -> FloatArray:
    """Std of the outcomes of the judged leaves below each node, float64[N]; exactly 0 if they are equal."""
    leaves = forest.leaves
    which, node = forest.ancestors(leaves, itself=True)
    inside = forest.counted[leaves][which] | ~forest.counted[node]
    which, node = which[inside], node[inside]
    square = (outcome[leaves][which] - statistics.value[node]) ** 2
    total = np.bincount(node, square, minlength=len(forest))
    variance = total / np.maximum(statistics.n - ddof, 1.0)
    return np.where(statistics.uniform, 0.0, np.sqrt(variance))


# Rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rows:
    """Training rows expanded to tokens: B rows with E entries, a row's entries in a run, in path order.

    leaf, tree, length int[B]: the row's leaf, its tree, and T_i, its trained tokens (cached leaves are rows
    like others). row, token, node, position int[E]: position counts tokens from the first response token;
    prompt and observation tokens have no entry but count in positions.
    """

    leaf: IntArray
    tree: IntArray
    length: IntArray
    row: IntArray
    token: IntArray
    node: IntArray
    position: IntArray

    def __len__(self) -> int:
        return len(self.leaf)


def training_rows(forest: Forest) -> Rows:
    """The selected judged leaves of the forest as rows."""
    leaf = np.flatnonzero(~np.isnan(forest.reward) & forest.selected)
    row, node = forest.ancestors(leaf, itself=True)
    inner = forest.parent[node] != NO_PARENT
    row, node = row[inner], node[inner]
    order = np.lexsort((forest.offset[node], row))
    row, node = row[order], node[order]
    size = forest.stop[node] - forest.start[node]
    entry = np.repeat(np.arange(len(node)), size)
    within = np.arange(len(entry)) - np.repeat(np.cumsum(size) - size, size)
    token = forest.start[node][entry] + within
    row, node = row[entry], node[entry]
    prompt = forest.stop[forest.root[node]] - forest.start[forest.root[node]]
    position = forest.offset[node] + within - prompt
    trained = forest.mask[token]
    row, node, token, position = row[trained], node[trained], token[trained], position[trained]
    length = np.bincount(row, minlength=len(leaf))
    return Rows(leaf, forest.tree[leaf], length, row, token, node, position)


def suffix_sum(rows: Rows, values: FloatArray) -> FloatArray:
    """Sum of `values` (float, E) from each entry to the end of its row."""
    total = np.concatenate(([0.0], np.cumsum(values)))
    end = np.cumsum(rows.length)[rows.row]
    suffix: FloatArray = total[end] - total[:-1]
    return suffix


def step_end(rows: Rows, forest: Forest, step: int, *, at_node_end: bool) -> IntArray:
    """Index of the last entry of the step that each entry is in (int, E).

    Steps are `step` tokens, counted from the first response token, and end with the row; with
    `at_node_end` also at each node's end, so that no step straddles a fork.
    """
    row, position = rows.row, rows.position
    if len(row) == 0:
        return np.zeros(0, np.int64)
    same = (row[1:] == row[:-1]) & (position[1:] // step == position[:-1] // step)
    if at_node_end:
        same &= rows.node[1:] == rows.node[:-1]
    last = np.flatnonzero(np.concatenate((~same, [True])))
    return np.repeat(last, np.diff(np.concatenate(([-1], last))))
