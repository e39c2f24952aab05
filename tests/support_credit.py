"""Judged trees for the tests of credit: the hand tree of sixteen tokens, and random ones."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from treerl.credit.dense import Signals
from treerl.credit.rows import (
    Forest,
    NodeStatistics,
    Rows,
    node_statistics,
    training_rows,
)
from treerl.search.sampler import Finish, Span
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict

Shape = dict[str, Any]
"""Node name -> (tokens, reward) for a leaf, (tokens, Shape) for an inner node; reward None: skipped."""

PROMPT = [7, 7, 7]

HAND: Shape = {
    "a": (2, {"a1": (2, 1.0), "a2": (1, 0.0), "a3": (3, 0.0)}),
    "b": (1, {"b1": (2, 1.0), "b2": (1, 1.0)}),
    "c": (4, 1.0),
}
HAND_Z = {
    "a": [0.2, -0.1],
    "a1": [0.4, 0.1],
    "a2": [-0.3],
    "a3": [0.1, 0.1, 0.2],
    "b": [0.3],
    "b1": [0.2, -0.2],
    "b2": [0.5],
    "c": [0.1, 0.0, -0.2, 0.1],
}
HAND_SELECTED = ("a1", "a2", "b1", "c")


def span(length: int, *, leaf: bool = True) -> Span:
    tokens = np.arange(length, dtype=np.int32)
    column = np.zeros(length, np.float32)
    return Span(tokens, column, column, 0, Finish.STOP if leaf else Finish.CUT)


def build(shape: Shape, *, max_completion_length: int = 64) -> tuple[Tree, dict[str, int]]:
    """The tree of a shape, and the row of each name (root: `rho`)."""
    tree = Tree(PROMPT, seed=1, max_completion_length=max_completion_length)
    names = {"rho": ROOT}
    _grow(tree, ROOT, shape, names)
    return tree, names


def _grow(tree: Tree, node: int, shape: Shape, names: dict[str, int]) -> None:
    request = tree.request(node, len(shape))
    for which, (name, (length, content)) in enumerate(shape.items()):
        inner = isinstance(content, dict)
        names[name] = tree.append(request, which, span(length, leaf=not inner))
        if inner:
            _grow(tree, names[name], content, names)
        elif content is None:
            tree.judge(names[name], Verdict("skipped"))
        else:
            tree.judge(names[name], Verdict("scored", content))


def hand_tree(*, all_wrong: bool = False) -> tuple[Tree, dict[str, int]]:
    tree, names = build(HAND)
    if all_wrong:
        for leaf in tree.leaves().tolist():
            tree.judge(leaf, Verdict("scored", 0.0))
    return tree, names


def signals_of(tree: Tree, names: dict[str, int], z: dict[str, list[float]]) -> Signals:
    """Signals whose lp_old - lp_ref is `z`; NaN on the prompt."""
    lp_old = np.full(len(tree.tokens), np.nan)
    for name, values in z.items():
        node = names[name]
        lp_old[tree.nodes.start[node] : tree.nodes.stop[node]] = values
    return Signals(lp_old - 1.0, np.where(np.isnan(lp_old), np.nan, -1.0))


@dataclass(frozen=True)
class Case:
    """One tree with everything the estimators need."""

    tree: Tree
    names: dict[str, int]
    forest: Forest
    rows: Rows
    outcome: np.ndarray
    statistics: NodeStatistics

    def nodes(self, entries: np.ndarray) -> dict[str, list[float]]:
        """Mean over its rows of each token, by node name (nodes in no row are absent)."""
        mean = {
            t: entries[self.rows.token == t].mean() for t in np.unique(self.rows.token).tolist()
        }
        found = {}
        for name, node in self.names.items():
            span_ = range(int(self.tree.nodes.start[node]), int(self.tree.nodes.stop[node]))
            if node != ROOT and all(t in mean for t in span_):
                found[name] = [float(mean[t]) for t in span_]
        return found

    def leaf_rows(self, entries: np.ndarray) -> dict[str, list[float]]:
        """The entries of each row, by the leaf's name."""
        by_node = {node: name for name, node in self.names.items()}
        return {
            by_node[int(leaf)]: entries[self.rows.row == i].tolist()
            for i, leaf in enumerate(self.rows.leaf)
        }


def case(tree: Tree, names: dict[str, int], *, reward_low: float = 0.0) -> Case:
    forest = Forest.of([tree])
    outcome = reward_low + (1 - reward_low) * forest.reward
    rows = training_rows(forest)
    return Case(tree, names, forest, rows, outcome, node_statistics(forest, outcome))


def hand_case(*, all_wrong: bool = False, selected: bool = False, reward_low: float = 0.0) -> Case:
    tree, names = hand_tree(all_wrong=all_wrong)
    if selected:
        for name, node in names.items():
            tree.nodes.selected[node] = name in HAND_SELECTED
    return case(tree, names, reward_low=reward_low)


def random_shape(
    rng: np.random.Generator,
    *,
    depth: int = 3,
    rewards: tuple[float, ...] = (0.0, 1.0),
    stop: float = 0.4,
    prefix: str = "n",
) -> Shape:
    """Fan-out 2-3, spans of 1-4 tokens, an inner node with probability 1 - stop."""
    shape: Shape = {}
    for i in range(int(rng.integers(2, 4))):
        name = f"{prefix}{i}"
        length = int(rng.integers(1, 5))
        if depth > 1 and rng.random() > stop:
            shape[name] = (
                length,
                random_shape(rng, depth=depth - 1, rewards=rewards, stop=stop, prefix=name),
            )
        else:
            shape[name] = (length, float(rng.choice(rewards)))
    return shape


def random_tree(seed: int, **how: Any) -> Tree:
    return build(random_shape(np.random.default_rng(seed), **how))[0]


def random_signals(tree: Tree, seed: int) -> Signals:
    rng = np.random.default_rng(seed)
    return Signals(rng.normal(size=len(tree.tokens)), rng.normal(size=len(tree.tokens)))


def future_kl_of_nodes(forest: Forest, rows: Rows, delta: np.ndarray, *, beta: float) -> np.ndarray:
    """The mean over its rows of `future_kl` at step 1, by nodes instead of by rows, float64[E].

    c inside the node + D(u), D(u) = sum over children of s_k/s_u * (sum of delta in k + D(k)).
    """
    prefix = np.concatenate(([0.0], np.cumsum(delta)))
    inside = prefix[forest.stop] - prefix[forest.start]
    _, node = forest.ancestors(rows.leaf, itself=True)
    below = np.bincount(node, minlength=len(forest)).astype(np.float64)
    expected = np.zeros(len(forest))
    for u in forest.order[::-1].tolist():
        p = forest.parent[u]
        if p >= 0 and below[u] > 0:
            expected[p] += below[u] / below[p] * (inside[u] + expected[u])
    rest = prefix[forest.stop[rows.node]] - prefix[rows.token]
    return -beta * (rest + expected[rows.node])
