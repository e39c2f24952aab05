"""Views of a tree for people: one `NodeView` a span, with everything a line of the inspector shows.

Plain data out of a Tree; no rich here, no database. Rendering is in treerl.inspect.render.
"""

from collections.abc import Callable, Mapping, Sequence
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

    share = visits / visits of the root. leaves, right_leaves: ended paths below, itself included; spans:
    spans below, itself not. start, stop: into the tree's token columns. entropies: nats, float32[tokens];
    entropy, logprob: their means, None where unknown. version: newest policy version of its tokens (-1:
    prompt); age: versions behind the tree's newest, None on the prompt and on cached spans (versions of
    another run's policy do not compare). cached: taken from the store. answer, outcome, detail: of a leaf's
    verdict; answer is what the verifier parsed, outcome None where there is no verdict.
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
    spans: int
    entropies: NDArray[Any]
    text: str
    origin: str
    finish: str
    start: int
    stop: int
    entropy: float | None = None
    logprob: float | None = None
    version: int = -1
    age: int | None = None
    cached: bool = False
    chosen_by_token: bool = False
    selected: bool = True
    answer: str | None = None
    outcome: str | None = None
    reward: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    best: bool = False

    @property
    def n_tokens(self) -> int:
        """Tokens of the span."""
        return self.stop - self.start

    @property
    def is_cut_point(self) -> bool:
        """The search branched at the end of this span."""
        return len(self.children) > 1


@dataclass(slots=True)
class TreeView:
    """A whole tree; `nodes` by row, depth-first. `best_leaf`: the right leaf of highest mean log-prob, or None.

    version: newest policy version that drew tokens for it (-1: all of it came from the cache).
    """

    nodes: dict[int, NodeView]
    question: str
    truth: str
    n_tokens: int
    n_generated: int
    best_leaf: int | None
    version: int = -1
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def right_leaves(self) -> list[int]:
        """Rows of right leaves, in the order of the lines."""
        return [row for row, node in self.nodes.items() if node.mark == RIGHT]

    def path(self, row: int) -> list[int]:
        """Rows from the root to `row`."""
        rows = [row]
        while row != ROOT:
            row = self.nodes[row].parent
            rows.append(row)
        return rows[::-1]


def view_tree(tree: Tree, decode: Decode, *, question: str = "", truth: str = "") -> TreeView:
    """All spans of a tree as views, keyed by row."""
    judged = ~np.isnan(tree.nodes.reward)
    right = judged & (tree.nodes.reward >= 1.0)
    is_leaf = np.isin(tree.nodes.finish, (Finish.STOP, Finish.LENGTH))
    below = tree.subtree_sum(is_leaf.astype(float))
    judged_below = tree.subtree_sum(judged.astype(float))
    right_below = tree.subtree_sum(right.astype(float))
    reward_below = tree.subtree_sum(np.where(judged, tree.nodes.reward, 0.0))
    spans = tree.subtree_sum(np.ones(len(tree)))
    visits, value_sum = tree.nodes.visits, tree.nodes.value_sum
    if not visits.any():
        visits, value_sum = judged_below.astype(int), reward_below
    best_leaf = _best_leaf(tree, right)
    best_rows = set(tree.path(best_leaf)) if best_leaf is not None else set()
    entropy = span_means(tree, tree.tokens.entropy)
    logprob = span_means(tree, tree.tokens.logprob)
    versions = _over_spans(tree, np.maximum, tree.tokens.policy_version)
    cached = tree.draws.source[tree.nodes.draw] > 0
    newest = int(np.max(versions, initial=-1, where=~cached))
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
            spans=int(spans[row]) - 1,
            entropies=tree.tokens.entropy[start:stop].copy(),
            text=decode(tree.tokens.token[start:stop].tolist()),
            origin=Origin(int(tree.nodes.origin[row])).name.lower(),
            finish=Finish(int(tree.nodes.finish[row])).name.lower(),
            start=start,
            stop=stop,
            entropy=entropy[row],
            logprob=logprob[row],
            version=int(versions[row]),
            age=None if row == ROOT or cached[row] else newest - int(versions[row]),
            cached=bool(cached[row]),
            chosen_by_token=bool(tree.nodes.chosen_by_token[row]),
            selected=bool(tree.nodes.selected[row]),
            answer=verdict.answer if verdict else None,
            outcome=verdict.outcome if verdict else None,
            reward=verdict.reward if verdict else None,
            detail=verdict.detail if verdict else {},
            seconds=verdict.seconds if verdict else None,
            best=row in best_rows,
        )
    return TreeView(
        nodes=nodes,
        question=question,
        truth=truth,
        n_tokens=len(tree.tokens),
        n_generated=tree.n_generated,
        best_leaf=best_leaf,
        version=newest,
        meta=dict(tree.meta),
    )


def span_means(tree: Tree, values: NDArray[Any]) -> list[float | None]:
    """Mean of the finite `values` (float[tokens]) over each span; None where there is none."""
    finite = np.isfinite(values)
    total = _over_spans(tree, np.add, np.where(finite, values, 0.0).astype(np.float64))
    count = _over_spans(tree, np.add, finite.astype(np.int64))
    pairs = zip(total.tolist(), count.tolist(), strict=True)
    return [part / n if n else None for part, n in pairs]


def _over_spans(tree: Tree, combine: np.ufunc, values: NDArray[Any]) -> NDArray[Any]:
    """`combine` over the tokens of each span; spans part the token columns without gap or overlap."""
    starts = tree.nodes.start
    order = np.argsort(starts)
    out = np.empty(len(starts), values.dtype)
    out[order] = combine.reduceat(values, starts[order])
    return out


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
                "tokens": node.n_tokens,
                "entropy": node.entropy,
                "logprob": node.logprob,
                "version": node.version,
                "age": node.age,
                "cached": node.cached,
                "text": node.text,
                "origin": node.origin,
                "finish": node.finish,
                "answer": node.answer,
                "outcome": node.outcome,
                "reward": node.reward,
                "detail": dict(node.detail),
                "best": node.best,
            }
            for node in view.nodes.values()
        ],
    }
