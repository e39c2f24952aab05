"""Speed of the replay cache: whole trees written, training batches read, and what growth costs.

Throughput: trees of eight 30-token spans by the writer thread against (a) JSON lines, appended and scanned,
and (b) one transaction a node; a batch is up to 4 right solutions of each of 8 problems, out of a cache of
`--trees` trees. Growth: the hot queries at 10^3 draws and up, on one cache that is filled by plain inserts;
problems, runs and policies grow with it, what one query returns stays. Times are CPU seconds on SQLite, and
on PostgreSQL (`--url`, an empty database), which works in another process, of the clock; best of `--repeat`.

`python scripts/bench_replay.py [--sizes 1000 10000 100000 1000000] [--json]`
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from treerl.problem import Problem
from treerl.replay import rows, schema
from treerl.replay.bound import ReadBound
from treerl.replay.entry import insert_rows
from treerl.replay.keys import PolicyRef, Provenance, VerifierRef, prompt_key
from treerl.replay.lease import claim_tree, queue_trees, release
from treerl.replay.pool import Pool, PoolSettings
from treerl.replay.rates import pass_rates, policy_rates
from treerl.replay.reuse import Asked, cached_solutions
from treerl.replay.store import Store
from treerl.replay.writer import Writer
from treerl.search.sampler import Finish, Span
from treerl.search.tree import ROOT, Tree
from treerl.verifiers.verdict import Verdict

LEAVES, LENGTH, BATCH_PROBLEMS, PER_PROBLEM = 8, 30, 8, 4
PROMPT = np.array([1, 2, 3], np.int32)
VERIFIER = VerifierRef("bench", "1")
SOURCE = Provenance("bench", PolicyRef("bench", "0"), {"temperature": 1.0}, VERIFIER)
BLOCK = 1000
"""Draws that growth adds at once: 25 problems, 5 trees each, one policy; a run has ten blocks."""


def problem(number: int) -> Problem:
    return Problem(f"{number}+1=", str(number + 1), "chain")


def make_tree(number: int, leaves: int = LEAVES) -> Tree:
    rng = np.random.default_rng(number)
    tree = Tree(PROMPT, seed=number, max_completion_length=64)
    request = tree.request(ROOT, leaves)
    for k in range(leaves):
        span = Span(
            rng.integers(3, 40, LENGTH).astype(np.int32),
            np.log(rng.uniform(0.1, 1, LENGTH)).astype(np.float32),
            rng.uniform(0, 2, LENGTH).astype(np.float32),
            0,
            Finish.STOP,
        )
        tree.judge(tree.append(request, k, span), Verdict("scored", float(k % 2), "12"))
    return tree


# Throughput ----------------------------------------------------------------------------------------------


def write_trees(folder: Path, trees: list[Tree], clock: Callable[[], float]) -> float:
    with Store.open(f"sqlite:///{folder}/{next(_NAMES)}.db") as store:
        run = store.start_run("bench", {})
        begun = clock()
        with Writer(store, run) as writer:
            for step, tree in enumerate(trees):
                writer.put(tree, step=step, problem=problem(step), provenance=SOURCE)
        return clock() - begun


def write_nodes(folder: Path, trees: list[Tree], clock: Callable[[], float]) -> float:
    """The same rows, with a transaction for each node as it comes."""
    with Store.open(f"sqlite:///{folder}/{next(_NAMES)}.db") as store:
        run = store.start_run("bench", {})
        singles = [make_tree(number, 1) for number in range(len(trees) * LEAVES)]
        begun = clock()
        for number, single in enumerate(singles):
            step, leaf = divmod(number, LEAVES)
            of = problem(step)
            store.put_tree(run, single, step=step, number=leaf, problem=of, provenance=SOURCE)
        return clock() - begun


def write_lines(folder: Path, trees: list[Tree], clock: Callable[[], float]) -> tuple[float, Path]:
    path = folder / f"{next(_NAMES)}.jsonl"
    begun = clock()
    with path.open("w") as stream:
        for step, tree in enumerate(trees):
            for leaf in tree.leaves().tolist():
                at = tree.path_index(leaf)[tree.n_prompt :]
                line = {
                    "problem": problem(step).key,
                    "reward": tree.nodes.reward[leaf],
                    "tokens": tree.tokens.token[at].tolist(),
                    "logprobs": tree.tokens.logprob[at].tolist(),
                    "entropies": tree.tokens.entropy[at].tolist(),
                }
                stream.write(json.dumps(line) + "\n")
            stream.flush()
    return clock() - begun, path


def read_batch(store: Store, numbers: np.ndarray) -> int:
    found = cached_solutions(
        store,
        [Asked(problem(int(n)), PROMPT) for n in numbers],
        tokenizer="bench",
        verifier=VERIFIER,
        bound=ReadBound("reader", 10**12),
        max_per_problem=PER_PROBLEM,
    )
    return sum(len(each) for each in found)


def scan_lines(path: Path, numbers: np.ndarray) -> int:
    wanted = {problem(int(n)).key: PER_PROBLEM for n in numbers}
    found = 0
    with path.open() as stream:
        for text in stream:
            line = json.loads(text)
            if wanted.get(line["problem"], 0) and line["reward"] >= 1:
                wanted[line["problem"]] -= 1
                found += 1
    return found


_NAMES = count()


def throughput(folder: Path, n_trees: int, repeat: int) -> dict[str, float]:
    """Trees written and batches read per CPU second."""
    clock = time.process_time
    trees = [make_tree(number) for number in range(n_trees)]
    few = trees[: max(20, n_trees // 20)]
    rng = np.random.default_rng(0)
    best: dict[str, float] = {}

    def keep(name: str, rate: float) -> None:
        best[name] = max(best.get(name, 0.0), rate)

    for _ in range(repeat):
        keep("trees/s, writer", n_trees / write_trees(folder, trees, clock))
        keep("trees/s, one transaction a node", len(few) / write_nodes(folder, few, clock))
        seconds, path = write_lines(folder, trees, clock)
        keep("trees/s, JSON lines", n_trees / seconds)
    with Store.open(f"sqlite:///{folder}/{next(_NAMES)}.db") as store:
        run = store.start_run("bench", {})
        with Writer(store, run) as writer:
            for step, tree in enumerate(trees):
                writer.put(tree, step=step, problem=problem(step), provenance=SOURCE)
        for _ in range(max(5, repeat)):
            numbers = rng.choice(n_trees, BATCH_PROBLEMS, replace=False)
            begun = clock()
            read = read_batch(store, numbers)
            keep("batches/s, cache", 1 / (clock() - begun))
            begun = clock()
            assert scan_lines(path, numbers) == read == BATCH_PROBLEMS * PER_PROBLEM
            keep("batches/s, JSON lines", 1 / (clock() - begun))
    return best


# Growth --------------------------------------------------------------------------------------------------


class Grown:
    """A cache filled by plain inserts, block by block; ids are counted here, keys are counters."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.blocks = 0
        self.run = ""
        with store.write() as connection:
            one = {"id": [1], "key": [SOURCE.sampler_key], "params": [SOURCE.sampler_json]}
            insert_rows(connection, schema.sampler, [one])
            judge = {"id": [1], "key": [VERIFIER.key], "name": ["bench"]}
            judge |= {"version": ["1"], "config": [VERIFIER.config_json]}
            insert_rows(connection, schema.verifier, [judge])

    def grow(self, draws: int) -> None:
        """Adds blocks until the cache has this many draws."""
        while self.blocks * BLOCK < draws:
            if self.blocks % 10 == 0:
                self.run = self.store.start_run("bench", {})
            with self.store.write() as connection:
                self._block(connection, self.blocks)
            self.blocks += 1
        if self.store.engine.dialect.name == "postgresql":
            with self.store.write() as connection:
                for table in ("tree", "draw"):
                    newest = f"SELECT setval('{table}_id_seq', max(id)) FROM {table}"
                    connection.exec_driver_sql(newest)
                connection.exec_driver_sql("ANALYZE")

    def _block(self, connection: sa.Connection, block: int) -> None:
        n_problems, n_trees, n = BLOCK // 40, BLOCK // LEAVES, BLOCK
        policy = block + 1
        insert_rows(connection, schema.policy, [_policy(policy, block)])
        p0, t0, d0 = block * n_problems, block * n_trees, block * n
        made = [problem(p0 + i) for i in range(n_problems)]
        facts = [rows.problem_row(each) for each in made]
        ids = list(range(p0 + 1, p0 + 1 + n_problems))
        columns = {name: [fact[name] for fact in facts] for name in facts[0]} | {"id": ids}
        insert_rows(connection, schema.problem, [columns])
        prompts = {
            "id": ids,
            "key": [prompt_key(fact["key"], "bench", PROMPT) for fact in facts],
            "problem_id": ids,
            "tokenizer": ["bench"] * n_problems,
            "n_tokens": [3] * n_problems,
            "tokens": [PROMPT.tobytes()] * n_problems,
        }
        insert_rows(connection, schema.prompt, [prompts])
        of_tree = [ids[i % n_problems] for i in range(n_trees)]
        insert_rows(connection, schema.tree, [self._trees(t0, of_tree, block)])
        of_draw = [of_tree[i // LEAVES] for i in range(n)]
        draw_ids = list(range(d0 + 1, d0 + 1 + n))
        keys = [value.to_bytes(16, "big") for value in draw_ids]
        tokens = np.arange(8, dtype="<i4").tobytes()
        same = {"path_key": keys, "prompt_id": of_draw, "id": draw_ids, "n_tokens": [8] * n}
        nodes = same | {"start": [0] * n, "tokens": [tokens] * n}
        insert_rows(connection, schema.node, [nodes])
        insert_rows(connection, schema.solution, [same | {"text": ["12"] * n}])
        insert_rows(connection, schema.draw, [_draws(draw_ids, t0, policy)])
        verdicts = {
            "solution_id": draw_ids,
            "verifier_id": [1] * n,
            "outcome": ["scored"] * n,
            "reward": [float(i % 2) for i in draw_ids],
            "answer": ["12"] * n,
            "detail": [None] * n,
            "seconds": [0.0] * n,
            "position": [t0 + 1 + i // LEAVES for i in range(n)],
        }
        insert_rows(connection, schema.verdict, [verdicts])

    def _trees(self, first: int, problems: list[int], block: int) -> rows.Columns:
        n = len(problems)
        zeros = ("seed", "max_completion_length", "n_generated", "n_cached")
        return {
            "id": list(range(first + 1, first + 1 + n)),
            "run_id": [self.run] * n,
            "problem_id": problems,
            "prompt_id": problems,
            "step": [block] * n,
            "number": [i // (BLOCK // 40) for i in range(n)],
            "meta": ["{}"] * n,
            "content_key": [b"0" * 16] * n,
            "n_nodes": [LEAVES + 1] * n,
            "n_leaves": [LEAVES] * n,
            "n_right": [LEAVES // 2] * n,
            "state": ["done"] * n,
            "attempts": [1] * n,
            "created_us": [1] * n,
            **{name: [0] * n for name in zeros},
        }


def _policy(policy: int, block: int) -> rows.Columns:
    key = SOURCE.policy.key(block)
    return {
        "id": [policy],
        "key": [key],
        "name": ["bench"],
        "digest": ["0"],
        "version": [block],
    }


def _draws(ids: list[int], first_tree: int, policy: int) -> rows.Columns:
    n = len(ids)
    values = np.full(8, -1.0, "<f4").tobytes()
    return {
        "id": ids,
        "tree_id": [first_tree + 1 + i // LEAVES for i in range(n)],
        "row": [1 + i % LEAVES for i in range(n)],
        "node_id": ids,
        "solution_id": ids,
        "policy_id": [policy] * n,
        "sampler_id": [1] * n,
        "parent": [0] * n,
        "offset": [0] * n,
        "k": [i % LEAVES for i in range(n)],
        "seed": ids,
        "finish": ["stop"] * n,
        "policy_version": [policy - 1] * n,
        "source": [0] * n,
        "logprobs": [values] * n,
        "entropies": [values] * n,
    }


def hot_queries(grown: Grown) -> dict[str, Callable[[], Any]]:
    """What training asks of the cache all the time, over what is there now."""
    store = grown.store
    rng = np.random.default_rng(grown.blocks)
    n_problems = grown.blocks * (BLOCK // 40)
    numbers = rng.integers(0, n_problems, BATCH_PROBLEMS)
    some = [problem(int(n)) for n in dict.fromkeys(numbers.tolist())]
    bound = ReadBound("reader", 10**12)
    key = SOURCE.policy.key(grown.blocks // 2)
    newest = list(range(grown.blocks * BLOCK - 511, grown.blocks * BLOCK + 1))
    # Not under the ids that the next block will be given: what is measured must not be in its way.
    run = store.start_run("workers", {})
    pool = Pool(store, run, "pool", PoolSettings("prioritised", max_size=512))
    pool.put(dict.fromkeys(newest, 1.0), step=0)
    queue_trees(store, run, some, step=0)
    steps = count(1)

    def claim() -> None:
        taken = claim_tree(store, run, "bench", lease_s=60)
        assert taken is not None
        release(store, taken)
        with store.write() as connection:
            reset = sa.update(schema.tree).where(schema.tree.c.id == taken.ticket)
            connection.execute(reset.values(attempts=0))

    return {
        "claim": claim,
        "look-up of 8 problems": lambda: read_batch(store, numbers),
        "pass rate of 8 problems": lambda: pass_rates(store, some, verifier=VERIFIER, bound=bound),
        "pass rate of a policy": lambda: policy_rates(store, [key], verifier=VERIFIER),
        "8 items of a pool of 512": lambda: pool.draw(8, step=next(steps), generator=rng),
    }


def forget(grown: Grown) -> None:
    """Removes what `hot_queries` made."""
    with grown.store.write() as connection:
        mine = schema.run.c.name.startswith("workers")
        connection.execute(sa.delete(schema.run).where(mine))


def growth(store: Store, sizes: list[int], repeat: int) -> list[dict[str, float]]:
    """Milliseconds of each hot query at each size, best of `repeat`."""
    clock = time.process_time if store.engine.dialect.name == "sqlite" else time.perf_counter
    grown, table = Grown(store), []
    for size in sizes:
        grown.grow(size)
        row: dict[str, float] = {"draws": size}
        for name, query in hot_queries(grown).items():
            query()
            times = []
            for _ in range(repeat):
                begun = clock()
                query()
                times.append(clock() - begun)
            row[name] = min(times) * 1e3
        forget(grown)
        table.append(row)
    return table


@contextmanager
def opened(url: str | None, folder: Path) -> Iterator[Store]:
    with Store.open(url or f"sqlite:///{folder}/grown.db") as store:
        yield store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", help="empty database for growth; default a SQLite file")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--trees", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rates = throughput(folder, options.trees, 3)
        with opened(options.url, folder) as store:
            table = growth(store, sorted(options.sizes), options.repeat)
    if options.json:
        print(json.dumps({"throughput": rates, "growth": table}))
        return
    console = Console()
    for label, rate in rates.items():
        console.print(f"{label:34}{rate:10.1f}")
    shown = Table("draws", *list(table[0])[1:])
    for row in table:
        shown.add_row(f"{int(row['draws']):,}", *(f"{row[n]:.2f} ms" for n in list(row)[1:]))
    last = {n: table[-1][n] / table[0][n] for n in list(table[0])[1:]}
    shown.add_row("last / first", *(f"{value:.2f}" for value in last.values()))
    console.print(shown)


if __name__ == "__main__":
    main()
