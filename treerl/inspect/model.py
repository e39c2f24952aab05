"""Views of a tree for people: one `NodeView` a span, with everything a line of the inspector shows.

Plain data out of a Tree; no rich here, no database. Rendering is in treerl.inspect.render.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treerl.search.sampler import Finish, Origin
from treerl.search.tree import ROOT, Tree

RIGHT, WRONG, INNER, UNJUDGED, TRUNCATED = "◆", "◇", "●", "○", "▲"

Decode = Callable[[Sequence[int]], str]


@dataclass(slots=True)
class NodeView:
    """One span. q = value_sum / visits (None without visits); value = mean reward of the leaves below.

    share = visits / visits of the root. entropies: nats, float32[tokens]. answer: what the verifier
    extracted at a leaf. outcome: of its verdict, None where there is none.
    """

    row: int
    parent: int
    children: list[int]
    mark: str
    q: float | None
    value: float | None
    visits: int
    share: float
    leaves: int
    right_leaves: int
    entropies: NDArray[Any]
    text: str
    origin: str
    finish: str
    answer: str | None = None
    outcome: str | None = None
    reward: float | None = None
    best: bool = False


@dataclass(slots=True)
class TreeView:
    """A whole tree. `best_leaf`: the right leaf of highest mean log-prob, else None."""

    nodes: dict[int, NodeView]
    question: str
    truth: str
    n_tokens: int
    n_generated: int
    best_leaf: int | None
    meta: dict[str, Any] = field(default_factory=dict)


def view_tree(tree: Tree, decode: Decode, *, question: str = "", truth: str = "") -> TreeView:
    """All spans of a tree as views, keyed by row."""
    judged = ~np.isnan(tree.nodes.reward)
    right = judged & (tree.nodes.reward >= 1.0)
    is_leaf = np.isin(tree.nodes.finish, (Finish.STOP, Finish.LENGTH))
    below = tree.subtree_sum(is_leaf.astype(float))
    judged_below = tree.subtree_sum(judged.astype(float))
    right_below = tree.subtree_sum(right.astype(float))
    reward_below = tree.subtree_sum(np.where(judged, tree.nodes.reward, 0.0))
    visits, value_sum = tree.nodes.visits, tree.nodes.value_sum
    if not visits.any():
        visits, value_sum = judged_below.astype(int), reward_below
    best_leaf = _best_leaf(tree, right)
    best_rows = set(tree.path(best_leaf)) if best_leaf is not None else set()
    nodes: dict[int, NodeView] = {}
    for row in tree.walk():
        verdict = tree.verdicts.get(row)
        start, stop = int(tree.nodes.start[row]), int(tree.nodes.stop[row])
        count = int(visits[row])
        nodes[row] = NodeView(
            row=row,
            parent=int(tree.nodes.parent[row]),
            children=list(tree.children(row)),
            mark=_mark(tree, row, bool(is_leaf[row])),
            q=float(value_sum[row]) / count if count else None,
            value=float(reward_below[row] / judged_below[row]) if judged_below[row] else None,
            visits=count,
            share=count / max(1, int(visits[ROOT])),
            leaves=int(below[row]),
            right_leaves=int(right_below[row]),
            entropies=tree.tokens.entropy[start:stop].copy(),
            text=decode(tree.tokens.token[start:stop].tolist()),
            origin=Origin(int(tree.nodes.origin[row])).name.lower(),
            finish=Finish(int(tree.nodes.finish[row])).name.lower(),
            answer=verdict.answer if verdict else None,
            outcome=verdict.outcome if verdict else None,
            reward=verdict.reward if verdict else None,
            best=row in best_rows,
        )
    return TreeView(
        nodes, question, truth, len(tree.tokens), tree.n_generated, best_leaf, dict(tree.meta)
    )


def _mark(tree: Tree, row: int, is_leaf: bool) -> str:
    if not is_leaf:
        return INNER
    reward = tree.nodes.reward[row]
    if np.isnan(reward):
        return UNJUDGED
    if reward >= 1.0:
        return RIGHT
    return TRUNCATED if tree.nodes.finish[row] == Finish.LENGTH else WRONG


def _best_leaf(tree: Tree, right: NDArray[np.bool_]) -> int | None:
    best, best_score = None, -np.inf
    for leaf in np.flatnonzero(right).tolist():
        score = float(np.mean(tree.tokens.logprob[tree.path_index(leaf)[tree.n_prompt :]]))
        if score > best_score:
            best, best_score = leaf, score
    return best


def as_json(view: TreeView) -> dict[str, Any]:
    """The view as JSON values, for `--json`."""
    return {
        "question": view.question,
        "truth": view.truth,
        "tokens": view.n_tokens,
        "generated": view.n_generated,
        "best_leaf": view.best_leaf,
        "meta": view.meta,
        "nodes": [
            {
                "row": node.row,
                "parent": node.parent,
                "mark": node.mark,
                "q": node.q,
                "value": node.value,
                "visits": node.visits,
                "leaves": node.leaves,
                "right_leaves": node.right_leaves,
                "entropy": _finite_mean(node.entropies),
                "text": node.text,
                "origin": node.origin,
                "finish": node.finish,
                "answer": node.answer,
                "outcome": node.outcome,
                "reward": node.reward,
                "best": node.best,
            }
            for node in view.nodes.values()
        ],
    }


def _finite_mean(values: NDArray[Any]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None
