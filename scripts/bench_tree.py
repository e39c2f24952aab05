"""Cost of building a tree, per node, at growing sizes: it must not rise with the size.

Each tree is grown by appends of 64-token spans to random points (every fourth one in the middle of a span,
which splits it), then counted with one scan and ordered; times are process seconds, best of `--repeat`.
`python scripts/bench_tree.py [--json]`
"""

import argparse
import json
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from treerl.search.sampler import Finish, Span
from treerl.search.tree import Tree
from treerl.verifiers.verdict import Verdict

SIZES = (1_000, 2_500, 5_000, 10_000, 20_000, 40_000)
SPAN = 64
VERDICTS = (Verdict("scored", 0.0), Verdict("scored", 1.0))


def span(rng: np.random.Generator, finish: Finish) -> Span:
    return Span(
        rng.integers(2, 1000, SPAN, dtype=np.int32),
        np.full(SPAN, -1.0, np.float32),
        np.full(SPAN, 1.0, np.float32),
        0,
        finish,
    )


def build(size: int, spans: list[Span], rng: np.random.Generator) -> dict[str, float]:
    """Seconds of appends (with splits), verdicts, statistics and order for one tree."""
    draws = rng.random(size)
    inside = rng.integers(1, SPAN, size)
    tree = Tree([1, 2, 3, 4], seed=0, max_completion_length=size * SPAN)
    begun = time.process_time()
    step = 0
    while len(tree) < size:
        draw = int(draws[step] * len(tree.draws))
        offset = int(inside[step]) if step % 4 == 0 and draw else int(tree.draws.length[draw])
        node = tree.node_at(draw, offset)
        request = tree.request(node, 1)
        tree.append(request, 0, spans[step % len(spans)])
        step += 1
    grown = time.process_time()
    tree.nodes.finish[[u for u in range(1, size) if not tree.children(u)]] = Finish.STOP
    leaves = tree.leaves().tolist()
    judged_from = time.process_time()
    for leaf in leaves:
        tree.judge(leaf, VERDICTS[leaf % 2])
    tree.recount()
    counted = time.process_time()
    assert tree.nodes.visits[0] == len(leaves)
    return {"append": grown - begun, "statistics": counted - judged_from}


def measure(sizes: tuple[int, ...], repeat: int) -> list[dict[str, float]]:
    """Best of `repeat` for each size, with microseconds per node."""
    rng = np.random.default_rng(0)
    spans = [span(rng, Finish.CUT) for _ in range(64)]
    rows = []
    for size in sizes:
        runs = [build(size, spans, np.random.default_rng(i)) for i in range(repeat)]
        best = {name: min(run[name] for run in runs) for name in runs[0]}
        total = sum(best.values())
        rows.append({"nodes": size, **best, "total": total, "us_per_node": total / size * 1e6})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    options = parser.parse_args()
    rows = measure(tuple(options.sizes), options.repeat)
    growth = rows[-1]["us_per_node"] / rows[0]["us_per_node"]
    if options.json:
        print(json.dumps({"span_tokens": SPAN, "rows": rows, "last_over_first": growth}))
        return
    table = Table(title=f"Building a tree of {SPAN}-token spans")
    for heading in ("nodes", "appends s", "statistics s", "total s", "µs a node"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row['nodes']:,}",
            f"{row['append']:.3f}",
            f"{row['statistics']:.3f}",
            f"{row['total']:.3f}",
            f"{row['us_per_node']:.1f}",
        )
    console = Console()
    console.print(table)
    console.print(f"cost per node at {rows[-1]['nodes']:,} over {rows[0]['nodes']:,}: {growth:.2f}")


if __name__ == "__main__":
    main()
