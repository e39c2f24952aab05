"""`Tree`: one search as a struct of numpy arrays; spans of sampled tokens, statistics, verdicts.

A node is a span of tokens. Node ids never change, and a node id names the *end point* of its span: when a
span is split, the new row is the head and the old row stays the tail, so that children, finish, reward and
requests in flight that hang on the end of the span need not move. Token columns are written once, by the
draw that produced them; a split moves a boundary and copies nothing. Growth rules are in the strategies,
the worth of a node in treerl.credit.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treerl.canon import derive_seed, derive_seeds
from treerl.search.columns import NO_PARENT, Draws, Nodes, Tokens
from treerl.search.sampler import Finish, Origin, Request, Span
from treerl.verifiers.verdict import Verdict

__all__ = ["NO_PARENT", "ROOT", "Tree"]

ROOT = 0

_ENDS = (int(Finish.STOP), int(Finish.LENGTH))
_EXTEND = int(Origin.EXTEND)
"""Plain numbers: numpy takes an IntEnum several times slower."""

IntArray = NDArray[Any]
FloatArray = NDArray[Any]


class Tree:
    """A growing search tree of one problem.

    prompt: int32[n], at least one token. seed: names the random stream of the whole tree.
    max_completion_length: tokens a path may grow beyond the prompt.
    """

    def __init__(
        self, prompt: NDArray[np.int32] | list[int], *, seed: int, max_completion_length: int
    ) -> None:
        tokens = np.asarray(prompt, dtype=np.int32)
        if tokens.ndim != 1 or len(tokens) == 0:
            raise ValueError("a tree needs a prompt of at least one token")
        self.seed = seed
        self.max_completion_length = max_completion_length
        self.nodes, self.draws, self.tokens = Nodes(), Draws(), Tokens()
        self.verdicts: dict[int, Verdict] = {}
        self.meta: dict[str, Any] = {}
        self.tokens.extend(len(tokens), token=tokens, mask=False, policy_version=NO_PARENT)
        self.draws.append(length=len(tokens), seed=seed)
        self.nodes.append(stop=len(tokens), origin=int(Origin.PROMPT))
        # By draw: no two children are of one, and the head of a split takes its tail's place.
        self._children: list[dict[int, int]] = [{}]
        self._draw_rows: list[list[int]] = [[ROOT]]
        self._asked: dict[tuple[int, int], int] = {}
        self._order: IntArray | None = None

    # Shape ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def n_prompt(self) -> int:
        """Prompt tokens."""
        return int(self.draws.at("length", 0))

    @property
    def n_generated(self) -> int:
        """Tokens sampled for this tree: prompt and cached draws excluded."""
        own = self.draws.source == 0
        return int(self.draws.length[own].sum()) - self.n_prompt

    @property
    def order(self) -> IntArray:
        """Rows, parents before children (int, N). Spans are never empty, so depth in tokens orders them."""
        if self._order is None:
            self._order = np.argsort(self.nodes.offset, kind="stable")
        return self._order

    def children(self, node: int) -> list[int]:
        """Rows of the children in order of arrival."""
        return list(self._children[node].values())

    def leaves(self) -> IntArray:
        """Rows of ended paths: no children, finish STOP or LENGTH; ascending."""
        finish = self.nodes.finish
        return np.flatnonzero((finish == Finish.STOP) | (finish == Finish.LENGTH))

    def path(self, node: int) -> list[int]:
        """Rows from the root to `node`."""
        at = self.nodes.at
        rows = [node]
        while (node := at("parent", node)) != NO_PARENT:
            rows.append(node)
        return rows[::-1]

    def path_index(self, node: int) -> IntArray:
        """Indices into the token columns along the path, prompt included (int, path length)."""
        at = self.nodes.at
        return np.concatenate([np.arange(at("start", u), at("stop", u)) for u in self.path(node)])

    def path_tokens(self, node: int) -> NDArray[np.int32]:
        """Token ids from the first prompt token to the end of `node`."""
        at, token = self.nodes.at, self.tokens.token
        return np.concatenate([token[at("start", u) : at("stop", u)] for u in self.path(node)])

    def completion_tokens(self, node: int) -> NDArray[np.int32]:
        """`path_tokens` without the prompt."""
        return self.path_tokens(node)[self.n_prompt :]

    def completion_length(self, node: int) -> int:
        """Tokens on the path beyond the prompt."""
        return self._depth(node) - self.n_prompt

    def depth(self) -> int:
        """Spans on the longest path (most spans), the prompt's not counted."""
        parent = self.nodes.parent.tolist()
        depths = [0] * len(parent)
        for row in self.order[1:].tolist():
            depths[row] = depths[parent[row]] + 1
        return max(depths)

    def is_uniform(self) -> bool:
        """All judged leaves have the same reward (decided by min == max), or none is judged."""
        rewards = self.nodes.reward[~np.isnan(self.nodes.reward)]
        return len(rewards) == 0 or bool(rewards.min() == rewards.max())

    # Growth -----------------------------------------------------------------------------------------

    def request(
        self,
        node: int,
        count: int,
        *,
        max_tokens: int | None = None,
        origin: Origin = Origin.SAMPLE,
        chosen_by_token: bool = False,
    ) -> Request:
        """Names the next `count` draws from the end of `node`, with their seeds.

        A seed depends on the tree's seed and the chain of (offset, k) that leads to the draw alone: not on
        arrival order, row numbers or later splits. Raises ValueError where the path cannot grow.
        """
        remaining = self.max_completion_length - self.completion_length(node)
        if remaining <= 0 or self.nodes.at("finish", node) in _ENDS:
            raise ValueError(f"node {node} has ended and cannot be continued")
        draw, offset = self.point(node)
        first = self._asked.get((draw, offset), 0)
        self._asked[draw, offset] = first + count
        ks = tuple(range(first, first + count))
        seeds = derive_seeds(self.draws.at("seed", draw), offset, numbers=ks)
        tokens = remaining if max_tokens is None else min(max_tokens, remaining)
        return Request(node, ks, seeds, tokens, tokens == remaining, origin, chosen_by_token)

    def append(self, request: Request, which: int, span: Span) -> int:
        """Attaches the continuation of `request.seeds[which]`; returns its row."""
        k, seed = request.ks[which], request.seeds[which]
        flags = (request.origin, request.chosen_by_token)
        return self._attach(request.node, span, k, seed, 0, *flags)

    def graft(self, node: int, span: Span, *, source: int) -> int:
        """Attaches a stored draw (origin CACHE, its own log-probs and policy version); returns its row.

        `source` is the stored draw's id (> 0). Its k counts from the top so that fresh draws keep theirs; its
        seed only names the stream of branches that may hang on it.
        """
        k = -1 - sum(self.nodes.at("origin", c) == Origin.CACHE for c in self.children(node))
        draw, offset = self.point(node)
        seed = derive_seed(self.draws.at("seed", draw), offset, k)
        return self._attach(node, span, k, seed, source, Origin.CACHE, False)

    def split(self, node: int, length: int) -> int:
        """Splits the span of `node` after its first `length` tokens; returns the row of the new head.

        `node` stays the tail with its children, finish, reward and verdict. What was backed up through the
        tail passed through the head, so the head takes the tail's visits and value_sum; prior is unknown.
        """
        nodes, at = self.nodes, self.nodes.at
        start, stop = at("start", node), at("stop", node)
        if node == ROOT or not 0 < length < stop - start:
            raise ValueError(f"cannot split node {node} of {stop - start} tokens at {length}")
        draw, parent, offset = at("draw", node), at("parent", node), at("offset", node)
        head = nodes.append(
            parent=parent,
            draw=draw,
            start=start,
            stop=start + length,
            offset=offset,
            visits=at("visits", node),
            value_sum=at("value_sum", node),
            origin=at("origin", node),
            chosen_by_token=at("chosen_by_token", node),
        )
        nodes.set("parent", node, head)
        nodes.set("start", node, start + length)
        nodes.set("offset", node, offset + length)
        nodes.set("origin", node, _EXTEND)
        nodes.set("chosen_by_token", node, False)
        self._children[parent][draw] = head
        self._children.append({draw: node})
        rows = self._draw_rows[draw]
        rows.insert(rows.index(node), head)
        self._order = None
        return head

    def point(self, node: int) -> tuple[int, int]:
        """The end of `node` as (draw, tokens of the draw up to there): stable under later splits."""
        draw: int = self.nodes.at("draw", node)
        return draw, self.nodes.at("stop", node) - self.draws.at("start", draw)

    def node_at(self, draw: int, offset: int) -> int:
        """The row that ends after `offset` tokens of `draw` (0: where it branches off); splits if needed."""
        if offset == 0 and draw != 0:
            return self.node_at(self.draws.at("parent", draw), self.draws.at("offset", draw))
        at = self.nodes.at
        target = self.draws.at("start", draw) + offset
        for row in self._draw_rows[draw]:
            stop = at("stop", row)
            if stop == target:
                return row
            if stop > target:
                return self.split(row, target - at("start", row))
        raise ValueError(f"draw {draw} has no offset {offset}")

    def judge(self, node: int, verdict: Verdict) -> None:
        """Records a verdict of an ended leaf; only `scored` sets its reward."""
        self.verdicts[node] = verdict
        self.nodes.set("reward", node, np.nan if verdict.reward is None else verdict.reward)

    def _attach(
        self, node: int, span: Span, k: int, seed: int, source: int, origin: Origin, by_token: bool
    ) -> int:
        count, finish = len(span.tokens), int(span.finish)
        start, stop = self.tokens.extend(
            count,
            token=span.tokens,
            logprob=span.logprobs,
            entropy=span.entropies,
            policy_version=span.policy_version,
        )
        draw, offset = self.point(node)
        new_draw = self.draws.append(
            parent=draw,
            offset=offset,
            k=k,
            seed=seed,
            start=start,
            length=count,
            finish=finish,
            policy_version=span.policy_version,
            source=source,
        )
        row = self.nodes.append(
            parent=node,
            draw=new_draw,
            start=start,
            stop=stop,
            offset=self._depth(node),
            finish=finish,
            origin=int(origin),
            chosen_by_token=by_token,
        )
        self._children[node][new_draw] = row
        self._children.append({})
        self._draw_rows.append([row])
        self._order = None
        return row

    def _depth(self, node: int) -> int:
        """Tokens on the path, prompt included."""
        at = self.nodes.at
        depth: int = at("offset", node) + at("stop", node) - at("start", node)
        return depth

    # Scans ------------------------------------------------------------------------------------------

    def subtree_sum(self, values: FloatArray) -> FloatArray:
        """Sum of `values` (float, N) over each node and all below it: one scan, children first."""
        total = np.asarray(values, dtype=np.float64).tolist()
        parent = self.nodes.parent.tolist()
        for row in self.order[:0:-1].tolist():
            total[parent[row]] += total[row]
        return np.array(total)

    def recount(self) -> None:
        """Sets visits and value_sum to the number and the reward sum of the judged leaves below."""
        judged = ~np.isnan(self.nodes.reward)
        self.nodes.visits[:] = self.subtree_sum(judged.astype(np.float64)).astype(np.int64)
        self.nodes.value_sum[:] = self.subtree_sum(np.where(judged, self.nodes.reward, 0.0))

    def walk(self) -> Iterator[int]:
        """Rows depth-first, children in order of arrival."""
        stack = [ROOT]
        while stack:
            row = stack.pop()
            yield row
            stack.extend(reversed(self._children[row].values()))

    # In and out -------------------------------------------------------------------------------------

    def to_networkx(self) -> Any:
        """A networkx.DiGraph, one node a span with its scalar columns, edges from parent to child."""
        import networkx as nx

        graph = nx.DiGraph(seed=self.seed, max_completion_length=self.max_completion_length)
        columns = self.nodes.arrays()
        for row in self.order.tolist():
            graph.add_node(row, **{name: column[row].item() for name, column in columns.items()})
            if row != ROOT:
                graph.add_edge(int(columns["parent"][row]), row)
        return graph

    @classmethod
    def from_columns(
        cls,
        nodes: Mapping[str, NDArray[Any]],
        draws: Mapping[str, NDArray[Any]],
        tokens: Mapping[str, NDArray[Any]],
        *,
        seed: int,
        max_completion_length: int,
    ) -> "Tree":
        """A tree from its three column sets (`columns.arrays()`), indices rebuilt."""
        tree = cls([0], seed=seed, max_completion_length=max_completion_length)
        tree.nodes.load(dict(nodes))
        tree.draws.load(dict(draws))
        tree.tokens.load(dict(tokens))
        tree.reindex()
        return tree

    def reindex(self) -> None:
        """Rebuilds what is derived from the columns: children, rows of a draw, numbers of draws asked for."""
        self._order = None
        self._children = [{} for _ in range(len(self.nodes))]
        self._draw_rows = [[] for _ in range(len(self.draws))]
        # By draw, which is the order of arrival; a head stands where its tail stood.
        for row in np.lexsort((self.nodes.start, self.nodes.draw)).tolist():
            draw = self.nodes.at("draw", row)
            self._draw_rows[draw].append(row)
            if row != ROOT:
                self._children[self.nodes.at("parent", row)][draw] = row
        self._asked = {}
        for draw in range(1, len(self.draws)):
            point = int(self.draws.parent[draw]), int(self.draws.offset[draw])
            self._asked[point] = max(self._asked.get(point, 0), int(self.draws.k[draw]) + 1)
