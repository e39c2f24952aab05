"""treerl's default recipe against TRL's GRPOTrainer: pass@1 against own training time, one pinned core.

Both start from the embedded policy and get the same problems of the chain task in the same order; optimizer
settings are those of `quickstart` and of scripts/peer_trl.py. Every run is a process of its own with one thread
on one core; the two arms take turns, and who begins changes from pair to pair, or (`--together`, for a machine
with other load) they share the core at the same time. Time is search (generation), judging and training alone,
as wall and as CPU seconds of the training process; start, evaluation and saving do not count. Both arms are
evaluated by the same code on the same held-out problems with the same seed: treerl's in its run, TRL's from the
models it saved. The time to the goal is read off linearly between evaluations.

Every finished run and evaluation is kept in --out and taken from there the next time; a run that fails is
reported, and the others go on.
"""

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PEER = Path(__file__).resolve().with_name("peer_trl.py")
TRL_VERSION = "1.16.0"
TREERL = [sys.executable, "-c", "from treerl.cli import app; app()"]
PROBLEMS_PER_STEP = 32
"""Prompts of one generation in both arms: 256 completions in groups of 8."""
AXES = {"wall": "wall s", "cpu": "CPU s"}

Point = dict[str, float]
"""A place on a curve: wall, cpu, tokens generated, accuracy (pass@1)."""

say = Console(stderr=True).print


class Failed(Exception):
    """A command came back with an error; the message has the end of what it said."""


def main() -> None:
    options = parse_options()
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    say(f"core {options.core}, results in {out}")
    python = options.trl_python or make_environment(out / "trl-env")
    pairs = []
    for seed in range(options.pairs):
        arms = ("treerl", "trl") if seed % 2 == 0 else ("trl", "treerl")
        with ThreadPoolExecutor(2 if options.together else 1) as pool:
            jobs = [pool.submit(run_arm, name, seed, python, options) for name in arms]
            runs = [job.result() for job in jobs]
        found = dict(zip(arms, runs, strict=True))
        curves = {name: run for name, run in found.items() if not isinstance(run, Failed)}
        failures = {name: str(run) for name, run in found.items() if isinstance(run, Failed)}
        pairs.append(compare(seed, curves, failures, options.goal))
    result = {"made_by": made_by(python, options), "pairs": pairs, "median": medians(pairs)}
    (out / "result.json").write_text(json.dumps(result, indent=1))
    if options.json:
        print(json.dumps(result))
    else:
        show(result, options.goal)
    if not any(len(pair["curves"]) == 2 for pair in pairs):
        raise SystemExit(1)


def run_arm(name: str, seed: int, python: str, options: argparse.Namespace) -> list[Point] | Failed:
    """The curve of one arm of a pair, or what went wrong."""
    run = treerl_curve if name == "treerl" else trl_curve
    begun = time.perf_counter()
    try:
        curve = run(options.out.resolve() / f"{name}-seed{seed}", seed, python, options)
    except Failed as error:
        say(f"[red]{name}, seed {seed} failed:[/] ", str(error), highlight=False)
        return error
    say(
        f"{name}, seed {seed}: {curve[-1]['accuracy']:.3f} after {curve[-1]['cpu']:.0f} CPU s of "
        f"training ({time.perf_counter() - begun:.0f} s in all)"
    )
    return curve


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--pairs", type=int, default=3, help="pairs of runs; the pair's number is the seed of both")
    add("--goal", type=float, default=0.6, help="pass@1 whose time is read off")
    add("--every", type=float, default=30.0, help="CPU seconds between models that TRL saves")
    add("--limit", type=float, default=420.0, help="CPU seconds of TRL's training")
    add("--eval-every", type=int, default=10, help="steps between treerl's evaluations")
    add("--steps", type=int, help="steps of treerl's run (default: the recipe's)")
    add("--recipe", default="quickstart")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides for treerl")
    add("--problems", type=int, default=256, help="held-out problems")
    add("--samples", type=int, default=8, help="completions per held-out problem, temperature 1")
    add("--core", type=int, default=max(os.sched_getaffinity(0)), help="the core of all runs")
    add("--trl-lr", type=float, default=4e-4, help="TRL's learning rate")
    add("--trl-grad-clip", type=float, default=1.0, help="norm to which TRL clips its gradients")
    add("--together", action="store_true", help="both arms of a pair at once, sharing the core")
    add("--trl-python", help=f"Python with trl {TRL_VERSION}; without it an environment is made")
    add("--out", type=Path, default=Path("runs/bench_peer"))
    add("--json", action="store_true", help="print JSON instead of tables")
    return parser.parse_args()


# The arms --------------------------------------------------------------------------------------------------


def treerl_curve(folder: Path, seed: int, python: str, options: argparse.Namespace) -> list[Point]:
    """The default recipe, evaluated every few steps; the clock stands still while it is evaluated."""
    del python
    done = folder / "summary.json"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        settings = [
            f"seed={seed}",
            f"task.seed={seed}",
            "policy.threads=1",
            f"eval.every={options.eval_every}",
            f"run.name='{folder.name}'",
            f"run.output_dir='{folder / 'run'}'",
            f"replay.url='sqlite:///{folder / 'replay.db'}'",
            *eval_settings(options),
        ]
        if options.steps is not None:
            settings.append(f"max_steps={options.steps}")
        ran = treerl(
            "train",
            options.recipe,
            "--json",
            overrides=[*settings, *options.set],
            core=options.core,
        )
        write_whole(done, ran)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    key = f"eval/avg@{options.samples}"
    curve = [
        {
            "wall": row.get("train_time", 0.0),
            "cpu": row.get("train_cpu_time", 0.0),
            "tokens": row.get("num_tokens", 0),
            "accuracy": row[key],
        }
        for row in rows
        if key in row
    ]
    last, after = rows[-1], json.loads(done.read_text())["after"]
    if key not in last and last["step"]:
        curve.append(
            {
                "wall": last["train_time"],
                "cpu": last["train_cpu_time"],
                "tokens": last["num_tokens"],
                "accuracy": after[key],
            }
        )
    return curve


def trl_curve(folder: Path, seed: int, python: str, options: argparse.Namespace) -> list[Point]:
    """GRPOTrainer for `--limit` CPU seconds, then `treerl eval` on the start and on every saved model."""
    done = folder / "finished.json"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        problems = folder / "problems.jsonl"
        write_problems(problems, seed, options)
        command = [python, str(PEER), "--model", str(embedded()), "--problems", str(problems)]
        command += ["--out", str(folder), "--every", str(options.every)]
        command += ["--limit", str(options.limit), "--seed", str(seed)]
        command += ["--lr", str(options.trl_lr), "--grad-clip", str(options.trl_grad_clip)]
        execute(command, core=options.core)
        write_whole(done, (folder / "saved.json").read_text())
    start = {"folder": str(embedded()), "seconds": 0.0, "cpu_seconds": 0.0, "tokens": 0}
    curve = []
    for row in [start, *json.loads(done.read_text())]:
        name = Path(row["folder"]).name
        curve.append(
            {
                "wall": row["seconds"],
                "cpu": row["cpu_seconds"],
                "tokens": row["tokens"],
                "accuracy": accuracy(Path(row["folder"]), folder / f"eval-{name}.json", options),
            }
        )
    return curve


def accuracy(weights: Path, kept: Path, options: argparse.Namespace) -> float:
    """pass@1 of a model folder, by `treerl eval`; taken from `kept` if it is there."""
    if not kept.exists():
        settings = ["policy.threads=1", *eval_settings(options)]
        found = treerl(
            "eval",
            options.recipe,
            "--weights",
            str(weights),
            "--json",
            overrides=settings,
            core=options.core,
        )
        write_whole(kept, found)
    return float(json.loads(kept.read_text())[f"avg@{options.samples}"])


def eval_settings(options: argparse.Namespace) -> list[str]:
    return [
        f"eval.problems={options.problems}",
        f"eval.num_samples={options.samples}",
        "eval.k=[1]",
        "eval.temperature=1.0",
        "eval.greedy=false",
    ]


def write_problems(path: Path, seed: int, options: argparse.Namespace) -> None:
    """The recipe's training problems, in its order, as many as TRL may see in its time."""
    from treerl.recipe import load_recipe
    from treerl.tasks.load import load_task

    task = load_task(load_recipe(options.recipe, [f"task.seed={seed}", *options.set]).task)
    steps = max(10, math.ceil(options.limit))
    rows = (
        {"question": problem.question, "truth": problem.truth}
        for step in range(steps)
        for problem in task.problems_for_step(step, PROBLEMS_PER_STEP)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def embedded() -> Path:
    import treerl

    return Path(treerl.__file__).parent / "assets" / "chain-0.4m"


# Commands --------------------------------------------------------------------------------------------------


def treerl(*arguments: str, overrides: Sequence[str], core: int) -> str:
    command = [*TREERL, *arguments]
    for override in overrides:
        command += ["--set", override]
    return execute(command, core=core)


def execute(command: Sequence[str], *, core: int | None = None) -> str:
    """Runs a command, on one core with one thread if a core is given; returns its stdout. Raises Failed."""
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    pinned = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **quiet} if core is not None else {}
    ran = subprocess.run(
        list(command),
        capture_output=True,
        text=True,
        env={**os.environ, **pinned},
        preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
    )
    if ran.returncode:
        raise Failed(f"exit code {ran.returncode}: ...{(ran.stderr or ran.stdout)[-1500:]}")
    return ran.stdout


def write_whole(path: Path, text: str) -> None:
    """A file that is there only when it is whole, so that it can stand for a finished run."""
    draft = path.with_suffix(".tmp")
    draft.write_text(text)
    draft.replace(path)


def make_environment(folder: Path) -> str:
    """An environment with TRL beside this Python's torch and transformers; returns its interpreter."""
    python = folder / "bin" / "python"
    mark = folder / "finished"
    if not mark.exists():
        say(f"installing trl {TRL_VERSION} into {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        pip = [str(python), "-m", "pip", "-qq", "--disable-pip-version-check", "install"]
        torch, _, build = version("torch").partition("+")
        execute([sys.executable, "-m", "venv", str(folder)])
        try:
            index = f"https://download.pytorch.org/whl/{build or 'cpu'}"
            execute(
                [*pip, f"torch=={torch}", "--index-url", index, "--timeout", "5", "--retries", "0"]
            )
        except Failed:
            execute([*pip, f"torch=={torch}"])
        execute([*pip, f"trl=={TRL_VERSION}", f"transformers=={version('transformers')}"])
        mark.touch()
    return str(python)


# Figures ---------------------------------------------------------------------------------------------------


def compare(
    seed: int, curves: dict[str, list[Point]], failures: dict[str, str], goal: float
) -> dict[str, Any]:
    """One pair: time of each arm to the goal and treerl's share of TRL's, None where one is not there."""
    pair: dict[str, Any] = {"seed": seed, "curves": curves, "failures": failures}
    for axis in AXES:
        times = {name: time_to(curve, axis, goal) for name, curve in curves.items()}
        ours, theirs = times.get("treerl"), times.get("trl")
        pair[axis] = {
            "treerl": ours,
            "trl": theirs,
            "ratio": ours / theirs if ours is not None and theirs else None,
        }
    return pair


def time_to(curve: Sequence[Point], axis: str, goal: float) -> float | None:
    """Where the curve first reaches the goal, linear between its points; None if it does not."""
    if curve and curve[0]["accuracy"] >= goal:
        return curve[0][axis]
    for left, right in pairwise(curve):
        if right["accuracy"] >= goal:
            share = (goal - left["accuracy"]) / (right["accuracy"] - left["accuracy"])
            return left[axis] + share * (right[axis] - left[axis])
    return None


def medians(pairs: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Median ratio of each axis over the pairs that have one."""
    found = {
        axis: [p[axis]["ratio"] for p in pairs if p[axis]["ratio"] is not None] for axis in AXES
    }
    return {axis: statistics.median(ratios) if ratios else None for axis, ratios in found.items()}


def made_by(python: str, options: argparse.Namespace) -> dict[str, Any]:
    names = ("trl", "torch", "transformers")
    code = f"from importlib.metadata import version as v; print(*map(v, {names}))"
    theirs = execute([python, "-c", code]).split()
    return {
        "treerl": {name: version(name) for name in names[1:]},
        "trl": dict(zip(names, theirs, strict=True)),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "options": {name: str(value) for name, value in vars(options).items()},
    }


def show(result: dict[str, Any], goal: float) -> None:
    versions = result["made_by"]
    table = Table(
        title=f"training time to pass@1 {goal:.2f}: treerl {versions['options']['recipe']} against "
        f"TRL {versions['trl']['trl']}, torch {versions['trl']['torch']}, one core, one thread"
    )
    for name in ("pair", "unit", "treerl", "TRL", "ratio", "treerl's curve", "TRL's curve"):
        table.add_column(name, justify="left" if "curve" in name else "right")
    for pair in result["pairs"]:
        for axis, unit in AXES.items():
            row = pair[axis]
            table.add_row(
                str(pair["seed"]),
                unit,
                *(shown(row[name], 1) for name in ("treerl", "trl")),
                shown(row["ratio"], 2),
                *(curve_text(pair, name, axis) for name in ("treerl", "trl")),
            )
    table.add_section()
    for axis, unit in AXES.items():
        table.add_row("median", unit, "", "", shown(result["median"][axis], 2), "", "")
    Console().print(table)


def curve_text(pair: dict[str, Any], name: str, axis: str) -> str:
    """The curve at its start, its end and three places between, `seconds:accuracy`."""
    if name in pair["failures"]:
        return "failed"
    curve = pair["curves"][name]
    places = sorted({round(i * (len(curve) - 1) / 4) for i in range(5)})
    return " ".join(f"{curve[i][axis]:.0f}:{curve[i]['accuracy']:.2f}" for i in places)


def shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
