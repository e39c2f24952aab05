"""What search itself costs for each continuation, in growing trees: it must not rise with their size.

A null sampler returns spans that were drawn beforehand and a null judge rewards them, so that what is left
is the search: the ask and the tell of the strategy, seeds, the rows of the tree, splits and statistics. Two
ways: `ask+tell` drives the strategy alone and tells every result by itself; `scheduler` is
`treerl.search.scheduler.grow`, with prefixes, tickets and verdicts. Process seconds, best of `--repeat`.
`python scripts/bench_asktell.py [--json]`
"""

import argparse
import gc
import json
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from treerl.config import (
    CureSearch,
    DeepSearchSearch,
    EntropyTopK,
    FlatSearch,
    SearchSettings,
)
from treerl.problem import Problem
from treerl.search.asktell import Result
from treerl.search.sampler import CUT, LENGTH, STOP, Continuation, Finish, Span
from treerl.search.scheduler import Growth, Limits, grow
from treerl.search.strategy import make_strategy
from treerl.search.tree import Tree
from treerl.verifiers.verdict import Completion, Verdict

SIZES = (100, 1_000, 10_000)
ENDLESS = 10**6
LONGEST = 1024
CHUNK = 64
PROMPT = list(range(2, 66))
VERDICTS = (Verdict("scored", 0.0), Verdict("scored", 1.0))
PROBLEM = Problem("question", "truth", "exact")


def settings_of(kind: str, size: int) -> SearchSettings:
    """A search that grows a tree of at least `size` nodes."""
    match kind:
        case "flat":
            return FlatSearch(num_generations=size)
        case "cure":  # a rollout makes five nodes: itself, its head, three branches
            cut = EntropyTopK(min_characters=1)
            return CureSearch(num_generations=4 * (size // 5 + 1), cut=cut)
        case "deepsearch":
            return DeepSearchSearch(num_generations=ENDLESS, chunk_tokens=CHUNK)
        case _:
            return DeepSearchSearch(
                form="faithful", num_generations=ENDLESS, chunk_tokens=CHUNK, max_depth=16
            )


KINDS = ("flat", "cure", "deepsearch", "deepsearch faithful")


class NullSampler:
    """Answers of 64 to 512 tokens, cut out of columns drawn beforehand; up to `batch` a step."""

    def __init__(self, batch: int) -> None:
        rng = np.random.default_rng(0)
        self._tokens = rng.integers(2, 1000, (64, LONGEST), dtype=np.int32)
        self._logprobs = -rng.exponential(1.0, (64, LONGEST)).astype(np.float32)
        self._entropies = rng.exponential(1.0, (64, LONGEST)).astype(np.float32)
        self._lengths = rng.integers(64, 512, 1021).tolist()
        self._spans: dict[tuple[int, Finish], Span] = {}
        self._queue: deque[tuple[int, Continuation]] = deque()
        self._batch, self._count = batch, 0

    capacity = 64
    policy_version = 0
    stats: dict[str, Any] = {}  # noqa: RUF012

    def submit(self, ticket: int, work: Continuation) -> None:
        self._queue.append((ticket, work))

    def step(self) -> list[tuple[int, Span]]:
        queue, count = self._queue, min(self._batch, len(self._queue))
        return [
            (ticket, self.span(work.max_tokens, work.last))
            for ticket, work in (queue.popleft() for _ in range(count))
        ]

    def abort(self, tickets: Iterable[int]) -> None:
        self._queue.clear()

    def span(self, max_tokens: int, last: bool) -> Span:
        """Made once for each length and end."""
        self._count += 1
        length, finish = self._lengths[self._count % 1021], STOP
        if length > max_tokens:
            length, finish = max_tokens, LENGTH if last else CUT
        made = self._spans.get((length, finish))
        if made is None:
            row, own = length % 64, slice(0, length)
            columns = self._tokens[row, own], self._logprobs[row, own], self._entropies[row, own]
            made = self._spans[length, finish] = Span(*columns, 0, finish)
        return made


def decode_each(tokens: Sequence[int]) -> list[str]:
    return ["xy"] * len(tokens)


def ask_and_tell(kind: str, size: int) -> tuple[int, float, float]:
    """Continuations of one tree, seconds for all, and seconds each for the last tenth of them."""
    strategy = make_strategy(settings_of(kind, size), decode_each)
    sampler = NullSampler(1)
    tree = Tree(PROMPT, seed=1, max_completion_length=LONGEST)
    queue: deque[tuple[Any, int]] = deque()
    times, count = {}, 0
    begun = time.process_time()
    state = strategy.start(tree)
    while len(tree) < size and state.exit is None:
        for request in strategy.ask(tree, state, None):
            queue.extend((request, which) for which in range(len(request.seeds)))
        if not queue:
            break
        request, which = queue.popleft()
        span = sampler.span(request.max_tokens, request.last)
        row = tree.append(request, which, span)
        verdict = None
        if span.finish != CUT:
            verdict = VERDICTS[row % 2]
            tree.judge(row, verdict)
        strategy.tell(tree, state, [Result(row, verdict)])
        count += 1
        if len(tree) >= size - size // 10 and not times:
            times[count] = time.process_time()
    end = time.process_time()
    strategy.close(tree, state)
    seconds = time.process_time() - begun
    assert len(tree) >= size, f"{kind} ended at {len(tree)} nodes by {state.exit}"
    ((at, mark),) = times.items()
    return count, seconds, (end - mark) / max(1, count - at)


def judge(problems: list[Problem], completions: list[Completion]) -> "Future[list[Verdict]]":
    done: Future[list[Verdict]] = Future()
    done.set_result([VERDICTS[len(completion.token_ids) % 2] for completion in completions])
    return done


class Enough(Exception):
    """The tree has its size."""


def through_the_scheduler(kind: str, size: int) -> tuple[int, float]:
    """Continuations of one tree grown by `grow`, and seconds for all."""
    strategy = make_strategy(settings_of(kind, size), decode_each)
    tree = Tree(PROMPT, seed=1, max_completion_length=LONGEST)

    class Stopping(NullSampler):
        def step(self) -> list[tuple[int, Span]]:
            if len(tree) >= size:
                raise Enough
            return super().step()

    begun = time.process_time()
    try:
        growths = [Growth(tree, strategy, PROBLEM)]
        list(grow(growths, Stopping(8), judge, lambda ids: "text", limits=Limits(in_flight=64)))
    except Enough:
        pass
    return len(tree.draws) - 1, time.process_time() - begun


def measure(kind: str, size: int, repeat: int) -> dict[str, Any]:
    """Microseconds for each continuation, the best of `repeat`."""
    alone = [ask_and_tell(kind, size) for _ in range(repeat)]
    scheduled = [through_the_scheduler(kind, size) for _ in range(repeat)]
    whole = min(seconds / count for count, seconds, _ in alone)
    return {
        "search": kind,
        "nodes": size,
        "us": whole * 1e6,
        "us_last_tenth": min(last for _, _, last in alone) * 1e6,
        "per_second": 1 / whole,
        "us_scheduler": min(seconds / count for count, seconds in scheduled) * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    options = parser.parse_args()
    gc.freeze()
    rows = [measure(kind, size, options.repeat) for kind in options.kinds for size in options.sizes]
    if options.json:
        print(json.dumps({"rows": rows}))
        return
    table = Table(title="Search for each continuation, µs of one core")
    for heading in ("search", "nodes", "ask+tell", "of the last tenth", "per second", "scheduler"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["search"],
            f"{row['nodes']:,}",
            f"{row['us']:.1f}",
            f"{row['us_last_tenth']:.1f}",
            f"{row['per_second']:,.0f}",
            f"{row['us_scheduler']:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
