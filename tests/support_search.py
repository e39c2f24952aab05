"""A sampler without a model for tests of search: a seeded table policy over a dozen tokens.

`grow_trees` runs a search over it and `canonical` says what came out without row numbers.
`FakeSampler` implements `treerl.search.sampler.Sampler`: the next token depends on the last two through a
fixed table of logits, so that log-probabilities and entropies are exact and anybody can recompute them
(`logits`). Continuations end in an order that `order_seed` decides; the tokens do not depend on it.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from treerl.canon import generator
from treerl.config import (
    CureSearch,
    DeepSearchSearch,
    EntropyTopK,
    EntropyWindow,
    FlatSearch,
    SearchSettings,
)
from treerl.errors import DoesNotFit, SamplerError
from treerl.problem import Problem
from treerl.search.judging import Judge
from treerl.search.sampler import Continuation, Finish, Span
from treerl.search.scheduler import Counts, Growth, grow
from treerl.search.strategy import make_strategy
from treerl.search.tree import NO_PARENT, Tree
from treerl.verifiers.verdict import Completion, Verdict

EOS = 1
VOCABULARY = 12
PROMPT = [2, 5, 3]
PROBLEM = Problem("c f d", "a letter before h", "letter")


class FakeSampler:
    """Seeded table policy. Token 0 is never drawn; `EOS` ends a path; other ids are letters.

    eos_bias: added to the logit of EOS; the higher, the shorter the answers. order_seed None: what is
    queued ends first in, first out, one a step; else a random share of the queue ends at each step.
    """

    def __init__(
        self,
        *,
        table_seed: int = 0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        eos_bias: float = 0.0,
        context: int = 4096,
        order_seed: int | None = None,
    ) -> None:
        rng = generator("fake policy", table_seed)
        self._table = 2.0 * rng.standard_normal((VOCABULARY, VOCABULARY, VOCABULARY))
        self._table[:, :, 0] = -np.inf
        self._table[:, :, EOS] += eos_bias
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.context = context
        self.version = 0
        self._order = None if order_seed is None else generator("fake order", order_seed)
        self._queue: dict[int, Continuation] = {}
        self._stats = {
            "generated_tokens": 0,
            "discarded_tokens": 0,
            "prefill_tokens": 0,
            "reused_tokens": 0,
            "seconds": 0.0,
        }

    @property
    def capacity(self) -> int:
        return 64

    @property
    def policy_version(self) -> int:
        return self.version

    @property
    def stats(self) -> dict[str, Any]:
        return dict(self._stats)

    @property
    def queued(self) -> list[int]:
        """Tickets that wait."""
        return list(self._queue)

    def logits(self, prefix: Sequence[int]) -> np.ndarray:
        """Raw logits of the next token, float64[VOCABULARY]."""
        before = int(prefix[-2]) if len(prefix) > 1 else 0
        return self._table[before, int(prefix[-1])]

    def submit(self, ticket: int, work: Continuation) -> None:
        if ticket in self._queue:
            raise SamplerError(f"ticket {ticket} is queued already")
        if len(work.prefix) + work.max_tokens > self.context:
            raise DoesNotFit(
                f"a prefix of {len(work.prefix)} tokens and {work.max_tokens} more do not fit the context "
                f"of {self.context}"
            )
        self._queue[ticket] = work

    def step(self) -> list[tuple[int, Span]]:
        if not self._queue:
            return []
        tickets = list(self._queue)
        if self._order is None:
            chosen = tickets[:1]
        else:
            count = int(self._order.integers(1, len(tickets) + 1))
            chosen = [tickets[i] for i in self._order.permutation(len(tickets))[:count]]
        return [(ticket, self._draw(self._queue.pop(ticket))) for ticket in chosen]

    def abort(self, tickets: Iterable[int]) -> None:
        for ticket in tickets:
            self._queue.pop(ticket, None)

    def distribution(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities that are sampled from: temperature, then top-k, then top-p."""
        if self.temperature == 0:
            return np.eye(VOCABULARY)[int(logits.argmax())]
        p = softmax(logits / self.temperature)
        order = np.argsort(-p, kind="stable")
        if self.top_k:
            p[order[self.top_k :]] = 0.0
            p /= p.sum()
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= self.top_p]] = 0.0
        return p / p.sum()

    def _draw(self, work: Continuation) -> Span:
        rng = generator("fake draw", work.seed)
        path = work.prefix.tolist()
        room = work.max_tokens
        logprobs, entropies = [], []
        while len(logprobs) < room:
            logits = self.logits(path)
            p = self.distribution(logits)
            token = min(
                int(np.searchsorted(np.cumsum(p), rng.random(), side="right")), VOCABULARY - 1
            )
            path.append(token)
            logprobs.append(np.log(p[token]))
            entropies.append(entropy(softmax(logits)))
            if token == EOS:
                break
        if path[-1] == EOS:
            finish = Finish.STOP
        elif work.last:
            finish = Finish.LENGTH
        else:
            finish = Finish.CUT
        self._stats["generated_tokens"] += len(logprobs)
        self._stats["prefill_tokens"] += len(work.prefix)
        return Span(
            np.array(path[len(work.prefix) :], dtype=np.int32),
            np.array(logprobs, dtype=np.float32),
            np.array(entropies, dtype=np.float32),
            self.version,
            finish,
        )


class ScriptedSampler(FakeSampler):
    """`answer(continuation)` gives the tokens; they end at EOS or at the request's limit.

    works: every continuation that was asked for, in order of their end.
    """

    def __init__(self, answer: Callable[[Continuation], Sequence[int]], **more: Any) -> None:
        super().__init__(**more)
        self.answer = answer
        self.works: list[Continuation] = []

    def _draw(self, work: Continuation) -> Span:
        self.works.append(work)
        tokens = list(self.answer(work))[: work.max_tokens]
        if EOS in tokens:
            return span(tokens[: tokens.index(EOS) + 1])
        assert len(tokens) == work.max_tokens, "an answer without EOS must reach the limit"
        return span(tokens, Finish.LENGTH if work.last else Finish.CUT)


class InterruptedSampler(FakeSampler):
    """Ctrl-C after some steps."""

    def __init__(self, steps: int, **more: Any) -> None:
        super().__init__(**more)
        self.left = steps

    def step(self) -> list[tuple[int, Span]]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().step()


class WaveSampler(FakeSampler):
    """Ends all that is queued in one step, and counts steps in `waves`."""

    waves = 0

    def step(self) -> list[tuple[int, Span]]:
        self.waves += 1
        return [(ticket, self._draw(self._queue.pop(ticket))) for ticket in self.queued]


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def entropy(p: np.ndarray) -> float:
    inside = p[p > 0]
    return float(-(inside * np.log(inside)).sum())


def decode_text(ids: Sequence[int]) -> str:
    """Letters, special tokens skipped."""
    return "".join(decode_tokens(ids))


def decode_tokens(ids: Sequence[int]) -> list[str]:
    """One text a token: "" for the special ids 0 and 1, one letter for 2..6, two for the others."""
    texts = [chr(97 + i) if i < 7 else chr(97 + i) * 2 for i in range(VOCABULARY)]
    texts[0] = texts[EOS] = ""
    return [texts[i] for i in ids]


def last_letter_verdict(completion: Completion) -> Verdict:
    """Right iff the answer ended by itself on a letter of the first half of the alphabet in use."""
    letter = completion.text[-1:]
    right = completion.finish == "stop" and letter != "" and letter < "h"
    return Verdict("scored", float(right), answer=letter or None)


def judge_with(
    verdict: Callable[[Completion], Verdict] = last_letter_verdict,
) -> Callable[[list[Problem], list[Completion]], "Future[list[Verdict]]"]:
    """A judge whose futures are done at once."""

    def judge(problems: list[Problem], completions: list[Completion]) -> "Future[list[Verdict]]":
        future: Future[list[Verdict]] = Future()
        future.set_result([verdict(completion) for completion in completions])
        return future

    return judge


def grow_trees(
    settings: SearchSettings,
    *,
    sampler: FakeSampler | None = None,
    trees: int = 8,
    max_completion_length: int = 24,
    judge: Judge | None = None,
    counts: Counts | None = None,
) -> list[Tree]:
    """Finished trees with seeds 0, 1, ..."""
    strategy = make_strategy(settings, decode_tokens)
    grown = [
        Tree(PROMPT, seed=seed, max_completion_length=max_completion_length)
        for seed in range(trees)
    ]
    growths = [Growth(tree, strategy, PROBLEM) for tree in grown]
    done = list(grow(growths, sampler or FakeSampler(), judge or judge_with(), decode_text, counts))
    assert len(done) == trees
    return grown


def span(
    tokens: Sequence[int],
    finish: Finish = Finish.STOP,
    *,
    logprobs: Sequence[float] | None = None,
    entropies: Sequence[float] | None = None,
) -> Span:
    """A hand-made span; log-probability -1 and entropy 1 where not given."""
    return Span(
        np.array(tokens, np.int32),
        np.array([-1.0] * len(tokens) if logprobs is None else logprobs, np.float32),
        np.array([1.0] * len(tokens) if entropies is None else entropies, np.float32),
        0,
        finish,
    )


def draw_name(tree: Tree, draw: int) -> list[list[int]]:
    """[[offset, k], ...] from the prompt to a draw: what names it whatever its row."""
    name = []
    while int(tree.draws.parent[draw]) != NO_PARENT:
        name.append([int(tree.draws.offset[draw]), int(tree.draws.k[draw])])
        draw = int(tree.draws.parent[draw])
    return name[::-1]


def canonical(tree: Tree) -> list[dict[str, Any]]:
    """Everything that a search decided, by name instead of row; floats at 1e-6, NaN as None."""
    nodes, tokens = tree.nodes, tree.tokens
    rows = []
    for row in range(len(tree)):
        own = slice(int(nodes.start[row]), int(nodes.stop[row]))
        draw, end = tree.point(row)
        parent = int(nodes.parent[row])
        rows.append(
            {
                "draw": draw_name(tree, draw),
                "end": end,
                "parent": None if parent == NO_PARENT else list(_point_name(tree, parent)),
                "offset": int(nodes.offset[row]),
                "tokens": tokens.token[own].tolist(),
                "logprobs": [_number(x) for x in tokens.logprob[own]],
                "entropies": [_number(x) for x in tokens.entropy[own]],
                "finish": int(nodes.finish[row]),
                "reward": _number(nodes.reward[row]),
                "visits": int(nodes.visits[row]),
                "value_sum": _number(nodes.value_sum[row]),
                "origin": int(nodes.origin[row]),
                "chosen_by_token": bool(nodes.chosen_by_token[row]),
                "selected": bool(nodes.selected[row]),
            }
        )
    return sorted(rows, key=lambda row: (row["draw"], row["end"]))


def _point_name(tree: Tree, row: int) -> tuple[list[list[int]], int]:
    draw, end = tree.point(row)
    return draw_name(tree, draw), end


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def check_invariants(tree: Tree) -> None:
    """Shape of a tree: parents first in `order`, spans tile their draws, offsets and children agree."""
    nodes, draws = tree.nodes, tree.draws
    place = {row: i for i, row in enumerate(tree.order.tolist())}
    assert sorted(place) == list(range(len(tree)))
    ends = nodes.offset + nodes.stop - nodes.start
    for row in range(1, len(tree)):
        parent = int(nodes.parent[row])
        assert place[parent] < place[row]
        assert nodes.offset[row] == ends[parent]
        assert nodes.stop[row] > nodes.start[row]
        assert tree.children(parent).count(row) == 1
        same = nodes.draw[parent] == nodes.draw[row]
        first = nodes.start[row] == draws.start[nodes.draw[row]]
        assert nodes.stop[parent] == nodes.start[row] if same else first
    assert sum(len(tree.children(row)) for row in range(len(tree))) == len(tree) - 1
    by_draw = np.bincount(nodes.draw, nodes.stop - nodes.start, minlength=len(draws))
    assert by_draw.tolist() == draws.length.tolist()
    assert len(tree.tokens) == int(draws.length.sum())
    for leaf in tree.leaves().tolist():
        assert tree.children(leaf) == []


GOLDEN: dict[str, SearchSettings] = {
    "flat": FlatSearch(num_generations=4),
    "cure": CureSearch(num_generations=8, num_branches=1, cut=EntropyTopK(top_k=3)),
    "cure_window": CureSearch(
        num_generations=9, num_branches=2, cut=EntropyWindow(width=3, quantile=0.6)
    ),
    "deepsearch": DeepSearchSearch(chunk_tokens=3, uncertainty_weight=0.1),
    "deepsearch_faithful": DeepSearchSearch(
        form="faithful", chunk_tokens=3, width=2, max_depth=6, num_generations=3
    ),
}
"""Searches whose whole trees are kept in tests/golden."""


def golden_record(name: str) -> dict[str, Any]:
    """Two whole trees of one search as JSON values."""
    trees = grow_trees(
        GOLDEN[name], sampler=FakeSampler(eos_bias=-2.0), trees=2, max_completion_length=18
    )
    return {
        "settings": GOLDEN[name].model_dump(mode="json"),
        "trees": [{"meta": tree.meta, "nodes": canonical(tree)} for tree in trees],
    }
