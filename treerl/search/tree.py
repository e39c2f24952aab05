"""`Tree`: one search as a struct of numpy arrays; spans of sampled tokens, statistics, verdicts.

A node is a span of tokens. Node ids never change, and a node id names the *end point* of its span: when a
span is split, the new row is the head and the old row stays the tail, so that children, finish, reward and
requests in flight that hang on the end of the span need not move. Token columns are written once, by the
draw that produced them; a split moves a boundary and copies nothing. Growth rules are in the strategies,
the worth of a node in treerl.credit.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from treerl.canon import derive_seed
from treerl.search.columns import Columns, Schema
from treerl.search.sampler import Finish, Origin, Request, Span
from treerl.verifiers.verdict import Verdict

ROOT = 0
NO_PARENT = -1

IntArray = NDArray[Any]
FloatArray = NDArray[Any]


class Nodes(Columns):
    """One row a span. N rows; `start`, `stop` index the token columns.

    offset: tokens on the path before the span, prompt included. reward: NaN = not judged. selected: an ended
    leaf that becomes a training row. chosen_by_token: the branch point was picked because of its sampled
    token, so the original continuation is no fair sample of the point's value.
    """

    SCHEMA: ClassVar[Schema] = {
        "parent": ("i4", NO_PARENT),
        "draw": ("i4", 0),
        "start": ("i8", 0),
        "stop": ("i8", 0),
        "offset": ("i8", 0),
        "visits": ("i8", 0),
        "value_sum": ("f8", 0.0),
        "prior": ("f8", np.nan),
        "finish": ("i1", Finish.OPEN),
        "reward": ("f8", np.nan),
        "origin": ("i1", Origin.SAMPLE),
        "chosen_by_token": ("?", False),
        "selected": ("?", True),
    }
    if TYPE_CHECKING:
        parent: IntArray
        draw: IntArray
        start: IntArray
        stop: IntArray
        offset: IntArray
        visits: IntArray
        value_sum: FloatArray
        prior: FloatArray
        finish: IntArray
        reward: FloatArray
        origin: IntArray
        chosen_by_token: NDArray[np.bool_]
        selected: NDArray[np.bool_]


class Draws(Columns):
    """One row a sampled continuation (draw 0 is the prompt).

    A draw is named by (parent draw, offset of its first token in it, k) and owns the contiguous tokens
    [start, start+length); spans are pieces of draws. source: 0 = drawn for this tree, else the id of the
    stored draw it was taken from.
    """

    SCHEMA: ClassVar[Schema] = {
        "parent": ("i4", NO_PARENT),
        "offset": ("i8", 0),
        "k": ("i4", 0),
        "seed": ("i8", 0),
        "start": ("i8", 0),
        "length": ("i8", 0),
        "finish": ("i1", Finish.OPEN),
        "policy_version": ("i4", 0),
        "source": ("i8", 0),
    }
    if TYPE_CHECKING:
        parent: IntArray
        offset: IntArray
        k: IntArray
        seed: IntArray
        start: IntArray
        length: IntArray
        finish: IntArray
        policy_version: IntArray
        source: IntArray


class Tokens(Columns):
    """One row a unique token. mask: takes gradient (False on the prompt and on observations)."""

    SCHEMA: ClassVar[Schema] = {
        "token": ("i4", 0),
        "logprob": ("f4", np.nan),
        "entropy": ("f4", np.nan),
        "policy_version": ("i4", 0),
        "mask": ("?", True),
    }
    if TYPE_CHECKING:
        token: IntArray
        logprob: FloatArray
        entropy: FloatArray
        policy_version: IntArray
        mask: NDArray[np.bool_]


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
        self.nodes.append(stop=len(tokens), origin=Origin.PROMPT)
        self._children: list[list[int]] = [[]]
        self._draw_rows: list[list[int]] = [[ROOT]]
        self._asked: dict[tuple[int, int], int] = {}
        self._order: IntArray | None = None

    # Shape ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def n_prompt(self) -> int:
        """Prompt tokens."""
        return int(self.draws.length[0])

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
        """Rows of the children in order of arrival (do not modify)."""
        return self._children[node]

    def leaves(self) -> IntArray:
        """Rows of ended paths: no children, finish STOP or LENGTH; ascending."""
        finish = self.nodes.finish
        return np.flatnonzero((finish == Finish.STOP) | (finish == Finish.LENGTH))

    def path(self, node: int) -> list[int]:
        """Rows from the root to `node`."""
        parent = self.nodes.parent
        rows = [node]
        while (node := int(parent[node])) != NO_PARENT:
            rows.append(node)
        return rows[::-1]

    def path_index(self, node: int) -> IntArray:
        """Indices into the token columns along the path, prompt included (int, path length)."""
        start, stop = self.nodes.start, self.nodes.stop
        return np.concatenate([np.arange(start[u], stop[u]) for u in self.path(node)])

    def path_tokens(self, node: int) -> NDArray[np.int32]:
        """Token ids from the first prompt token to the end of `node`."""
        start, stop, token = self.nodes.start, self.nodes.stop, self.tokens.token
        return np.concatenate([token[start[u] : stop[u]] for u in self.path(node)])

    def completion_tokens(self, node: int) -> NDArray[np.int32]:
        """`path_tokens` without the prompt."""
        return self.path_tokens(node)[self.n_prompt :]

    def completion_length(self, node: int) -> int:
        """Tokens on the path beyond the prompt."""
        nodes = self.nodes
        return int(nodes.offset[node] + nodes.stop[node] - nodes.start[node]) - self.n_prompt

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
        if remaining <= 0 or self.nodes.finish[node] in (Finish.STOP, Finish.LENGTH):
            raise ValueError(f"node {node} has ended and cannot be continued")
        draw, offset = self.point(node)
        first = self._asked.get((draw, offset), 0)
        self._asked[draw, offset] = first + count
        ks = tuple(range(first, first + count))
        parent_seed = int(self.draws.seed[draw])
        seeds = tuple(derive_seed(parent_seed, offset, k) for k in ks)
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
        k = -1 - sum(int(self.nodes.origin[c]) == Origin.CACHE for c in self._children[node])
        draw, offset = self.point(node)
        seed = derive_seed(int(self.draws.seed[draw]), offset, k)
        return self._attach(node, span, k, seed, source, Origin.CACHE, False)

    def split(self, node: int, at: int) -> int:
        """Splits the span of `node` after its first `at` tokens; returns the row of the new head.

        `node` stays the tail with its children, finish, reward and verdict. What was backed up through the
        tail passed through the head, so the head takes the tail's visits and value_sum; prior is unknown.
        """
        nodes = self.nodes
        start, stop = int(nodes.start[node]), int(nodes.stop[node])
        if node == ROOT or not 0 < at < stop - start:
            raise ValueError(f"cannot split node {node} of {stop - start} tokens at {at}")
        draw, parent = int(nodes.draw[node]), int(nodes.parent[node])
        head = nodes.append(
            parent=parent,
            draw=draw,
            start=start,
            stop=start + at,
            offset=nodes.offset[node],
            visits=nodes.visits[node],
            value_sum=nodes.value_sum[node],
            origin=nodes.origin[node],
            chosen_by_token=nodes.chosen_by_token[node],
        )
        nodes = self.nodes
        nodes.parent[node] = head
        nodes.start[node] += at
        nodes.offset[node] += at
        nodes.origin[node] = Origin.EXTEND
        nodes.chosen_by_token[node] = False
        siblings = self._children[parent]
        siblings[siblings.index(node)] = head
        self._children.append([node])
        rows = self._draw_rows[draw]
        rows.insert(rows.index(node), head)
        self._order = None
        return head

    def point(self, node: int) -> tuple[int, int]:
        """The end of `node` as (draw, tokens of the draw up to there): stable under later splits."""
        draw = int(self.nodes.draw[node])
        return draw, int(self.nodes.stop[node] - self.draws.start[draw])

    def node_at(self, draw: int, offset: int) -> int:
        """The row that ends after `offset` tokens of `draw` (0: where it branches off); splits if needed."""
        if offset == 0 and draw != 0:
            return self.node_at(int(self.draws.parent[draw]), int(self.draws.offset[draw]))
        target = int(self.draws.start[draw]) + offset
        for row in self._draw_rows[draw]:
            if self.nodes.stop[row] == target:
                return row
            if self.nodes.stop[row] > target:
                return self.split(row, target - int(self.nodes.start[row]))
        raise ValueError(f"draw {draw} has no offset {offset}")

    def judge(self, node: int, verdict: Verdict) -> None:
        """Records a verdict of an ended leaf; only `scored` sets its reward."""
        self.verdicts[node] = verdict
        self.nodes.reward[node] = np.nan if verdict.reward is None else verdict.reward

    def _attach(
        self, node: int, span: Span, k: int, seed: int, source: int, origin: Origin, by_token: bool
    ) -> int:
        count = len(span.tokens)
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
            finish=span.finish,
            policy_version=span.policy_version,
            source=source,
        )
        nodes = self.nodes
        depth = nodes.offset[node] + nodes.stop[node] - nodes.start[node]
        row = nodes.append(
            parent=node,
            draw=new_draw,
            start=start,
            stop=stop,
            offset=depth,
            finish=span.finish,
            origin=origin,
            chosen_by_token=by_token,
        )
        self._children[node].append(row)
        self._children.append([])
        self._draw_rows.append([row])
        self._order = None
        return row

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
            stack.extend(reversed(self._children[row]))

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
        self._children = [[] for _ in range(len(self.nodes))]
        self._draw_rows = [[] for _ in range(len(self.draws))]
        arrival = np.lexsort((self.nodes.start, self.nodes.draw)).tolist()
        for row in arrival:
            self._draw_rows[int(self.nodes.draw[row])].append(row)
            if row != ROOT:
                self._children[int(self.nodes.parent[row])].append(row)
        # A head stands in its parent's list where its tail stood; the tail's draw arrived first.
        for siblings in self._children:
            siblings.sort(key=lambda row: int(self.nodes.draw[row]))
        self._asked = {}
        for draw in range(1, len(self.draws)):
            point = int(self.draws.parent[draw]), int(self.draws.offset[draw])
            self._asked[point] = max(self._asked.get(point, 0), int(self.draws.k[draw]) + 1)
