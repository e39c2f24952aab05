"""Tree against flat on the embedded policy: the default recipe and flat GRPO, several seeds.

Each run is a process of its own on one pinned core with one thread; two runs at a time where there are two
cores. Time is the run's own search and training in CPU seconds; evaluation and start are not counted. For
time, generated and trained tokens, both curves are read off where the shorter of the two runs ended.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from queue import Queue

from rich.console import Console
from rich.table import Table

ARMS = {"tree": "quickstart", "flat": "flat"}


def train(recipe: str, seed: int, steps: int, folder: Path, core: int, every: int) -> dict:
    """Runs one arm and returns its summary and curve; a finished run in `folder` is taken as it is."""
    done = folder / "summary.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        settings = [
            f"seed={seed}",
            f"task.seed={seed}",
            f"max_steps={steps}",
            f"eval.every={every}",
            "policy.threads=1",
            f"run.name={folder.name}",
            f"run.output_dir='{folder / 'run'}'",
            f"replay.url='sqlite:///{folder / 'replay.db'}'",
        ]
        command = [
            sys.executable,
            "-c",
            "from treerl.cli import app; app()",
            "train",
            recipe,
            "--json",
        ]
        for setting in settings:
            command += ["--set", setting]
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        if ran.returncode:
            raise SystemExit(f"{folder.name} failed:\n{ran.stderr[-2000:]}")
        done.write_text(ran.stdout)
    summary = json.loads(done.read_text())
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    curve = [row for row in rows if any(key.startswith("eval/avg@") for key in row)]
    return {**summary, "curve": [point(row) for row in curve]}


def point(row: dict) -> dict:
    """One evaluation on a curve."""
    accuracy = next(value for key, value in row.items() if key.startswith("eval/avg@"))
    return {
        "cpu": row.get("train_cpu_time", 0.0),
        "wall": row.get("train_time", 0.0),
        "generated": row.get("num_tokens", 0),
        "trained": row.get("train/total_tokens_trained", 0),
        "accuracy": accuracy,
    }


def read_off(curve: list[dict], axis: str, at: float) -> float:
    """Accuracy at `at` on an axis, linear between evaluations; NaN beyond the end of the curve."""
    for left, right in pairwise(curve):
        if left[axis] <= at <= right[axis]:
            share = (at - left[axis]) / max(right[axis] - left[axis], 1e-9)
            return left["accuracy"] + share * (right["accuracy"] - left["accuracy"])
    return math.nan


def at_equal(tree: list[dict], flat: list[dict], axis: str) -> dict[str, float]:
    """Where the shorter run ends on `axis`, and both accuracies there."""
    at = min(tree[-1][axis], flat[-1][axis])
    return {"at": at, "tree": read_off(tree, axis, at), "flat": read_off(flat, axis, at)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120, help="steps of the tree runs")
    parser.add_argument("--flat-steps", type=int, default=120, help="steps of the flat runs")
    parser.add_argument("--every", type=int, default=15, help="steps between evaluations")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_learning"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cores: Queue[int] = Queue()
    for core in sorted(os.sched_getaffinity(0))[:2]:
        cores.put(core)

    def run(job: tuple[str, int]) -> dict:
        arm, seed = job
        steps = options.steps if arm == "tree" else options.flat_steps
        core = cores.get()
        try:
            folder = (options.out / f"{arm}-seed{seed}").resolve()
            return train(ARMS[arm], seed, steps, folder, core, options.every)
        finally:
            cores.put(core)

    jobs = [(arm, seed) for seed in options.seeds for arm in ARMS]
    with ThreadPoolExecutor(cores.qsize()) as pool:
        results = dict(zip(jobs, pool.map(run, jobs), strict=True))
    rows = [compare(seed, results["tree", seed], results["flat", seed]) for seed in options.seeds]
    if options.json:
        print(json.dumps(rows))
    else:
        show(rows, results["tree", options.seeds[0]])


def compare(seed: int, tree: dict, flat: dict) -> dict:
    """One seed: the tree run, and flat at its time and at its tokens."""
    end = tree["curve"][-1]
    return {
        "seed": seed,
        "before": tree["curve"][0]["accuracy"],
        "after": end["accuracy"],
        "gain": tree["gain"],
        "standard_error": tree["gain_standard_error"],
        "pass@8 before": tree["before"]["eval/pass@8"],
        "pass@8 after": tree["after"]["eval/pass@8"],
        "greedy before": tree["before"]["eval/greedy"],
        "greedy after": tree["after"]["eval/greedy"],
        "cpu_seconds": end["cpu"],
        "generated": end["generated"],
        "trained": end["trained"],
        "equal time": at_equal(tree["curve"], flat["curve"], "cpu"),
        "equal generated": at_equal(tree["curve"], flat["curve"], "generated"),
        "equal trained": at_equal(tree["curve"], flat["curve"], "trained"),
    }


def cell(value: object) -> str:
    """A figure, or `tree / flat` of a comparison."""
    match value:
        case {"tree": tree, "flat": flat}:
            return f"{tree:.3f} / {flat:.3f}"
        case float() if abs(value) < 10:
            return f"{value:.3f}"
    return f"{value:,.0f}"


def show(rows: list[dict], one: dict) -> None:
    table = Table(
        title=f"{one['model']}, {one['task']}, {one['search']}/{one['estimator']}, {one['device']}"
    )
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*[cell(value) for value in row.values()])
    Console().print(table)


if __name__ == "__main__":
    main()
