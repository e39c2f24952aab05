"""Does a cache that another run filled save tokens? The default recipe on an empty and on a filled cache.

Every seed is trained twice on the same problems: on an empty cache, and on a copy of the cache that the run
of the next seed left behind. Counted are generated tokens until pass@1 on the held-out problems reaches a
level, linear between evaluations; tokens of the run that filled the cache and of evaluations are not.
Finished runs in --out are taken as they are.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table


def train(folder: Path, options: argparse.Namespace, seed: int, settings: list[str]) -> dict:
    """Runs the recipe and returns its summary and curve."""
    done = folder / "summary.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        given = [
            f"seed={seed}",
            f"max_steps={options.steps}",
            f"eval.every={options.every}",
            f"eval.num_samples={options.samples}",
            f"eval.k=[1, {options.samples}]",
            "eval.greedy=false",
            "policy.threads=1",
            f"run.name={folder.name}",
            f"run.output_dir='{folder / 'run'}'",
            f"replay.url='sqlite:///{folder / 'replay.db'}'",
            *settings,
        ]
        command = [sys.executable, "-c", "from treerl.cli import app; app()", "train"]
        command += [options.recipe, "--json", *[p for s in given for p in ("--set", s)]]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(command, capture_output=True, text=True, env=environment)
        if ran.returncode:
            raise SystemExit(f"{folder.name} failed:\n{ran.stderr[-2000:]}")
        done.write_text(ran.stdout)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    curve = [point(row) for row in rows if any(key.startswith("eval/avg@") for key in row)]
    return {**json.loads(done.read_text()), "curve": curve, "cpu": rows[-1]["train_cpu_time"]}


def point(row: dict) -> tuple[int, float]:
    """Generated tokens so far and pass@1 of one evaluation."""
    accuracy = next(value for key, value in row.items() if key.startswith("eval/avg@"))
    return row.get("num_tokens", 0), accuracy


def tokens_to(curve: list[tuple[int, float]], level: float) -> float:
    """Generated tokens when pass@1 first reached `level`; NaN if it never did."""
    if curve[0][1] >= level:
        return 0.0
    for (left, low), (right, high) in pairwise(curve):
        if low < level <= high:
            return left + (level - low) / (high - low) * (right - left)
    return math.nan


def pair(seed: int, options: argparse.Namespace) -> tuple[dict, dict]:
    """The runs of one seed on an empty and on a filled cache."""
    out = options.out.resolve()
    seeds = options.seeds
    other = seeds[(seeds.index(seed) + 1) % len(seeds)]
    empty = train(out / f"empty-seed{seed}", options, seed, [])
    train(out / f"empty-seed{other}", options, other, [])
    folder = out / f"{options.arm}-seed{seed}"
    if not (folder / "replay.db").exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(out / f"empty-seed{other}" / "replay.db", folder / "replay.db")
    return empty, train(folder, options, seed, options.set)


def figures(empty: dict, filled: dict, levels: list[float]) -> dict:
    """One seed's row."""
    row: dict = {
        "pass@1 empty": empty["curve"][-1][1],
        "pass@1 filled": filled["curve"][-1][1],
        "generated empty": empty["generated_tokens"],
        "generated filled": filled["generated_tokens"],
        "cached rows": filled["cached_leaves"],
        "cpu empty": empty["cpu"],
        "cpu filled": filled["cpu"],
    }
    for level in levels:
        first, second = (tokens_to(run["curve"], level) for run in (empty, filled))
        row[f"to {level}"] = {"empty": first, "filled": second, "ratio": second / first}
    return row


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return "-"
    shown = ".3f" if abs(mean(known)) < 10 else ",.0f"
    return f"{mean(known):{shown}} ± {stdev(known):{shown}} ({len(known)})"


def show(rows: dict[int, dict]) -> None:
    table = Table(title="tokens to a level: empty / filled / ratio")
    table.add_column("seed", justify="right")
    names = list(next(iter(rows.values())))
    for name in names:
        table.add_column(name, justify="right")
    for seed, row in rows.items():
        table.add_row(str(seed), *[cell(row[name]) for name in names])
    last = []
    for name in names:
        column = [row[name] for row in rows.values()]
        ratios = [value["ratio"] if isinstance(value, dict) else value for value in column]
        last.append(spread(ratios))
    table.add_row("mean ± sd (runs)", *last)
    Console(width=200).print(table)


def cell(value: float | dict) -> str:
    if isinstance(value, dict):
        return f"{value['empty']:,.0f} / {value['filled']:,.0f} / {value['ratio']:.3f}"
    return f"{value:.3f}" if value < 10 else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--every", type=int, default=5, help="steps between evaluations")
    parser.add_argument("--samples", type=int, default=4, help="answers a held-out problem")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.45, 0.5, 0.55, 0.6, 0.65])
    parser.add_argument("--arm", default="filled", help="name of the second run's folders")
    parser.add_argument("--set", action="append", default=[], help="key=value of the second run")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_reuse"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if len(set(options.seeds)) < 2:
        parser.error("--seeds: at least two, for one fills the cache of another")
    rows = {seed: figures(*pair(seed, options), options.levels) for seed in options.seeds}
    if options.json:
        print(json.dumps(rows))
    else:
        show(rows)


if __name__ == "__main__":
    main()
