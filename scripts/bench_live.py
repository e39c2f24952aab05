"""What the live view of `treerl train` costs: its CPU seconds as a share of the whole run's.

    python scripts/bench_live.py [--steps 90] [--width 130] [--height 42] [--json FILE]

Trains `quickstart` in a folder of its own on a console that takes itself for a terminal. CPU seconds of the
drawing thread and of the calls that fill the view are summed as they are spent; no two runs are compared.
"""

import argparse
import functools
import json
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from treerl.engine.display import Display
from treerl.engine.train import train_run
from treerl.recipe import load_recipe

FILLING = ("advance", "searching", "searched", "step", "evaluated")


def measured(owner: Any, name: str, into: dict[str, float]) -> None:
    """Adds the CPU seconds of each outermost call of `owner.name` in its thread to `into`."""
    wrapped = getattr(owner, name)
    inside = f"{owner.__name__} inside"

    @functools.wraps(wrapped)
    def timed(*args: Any, **kwargs: Any) -> Any:
        into[inside] += 1
        begun = time.thread_time()
        try:
            return wrapped(*args, **kwargs)
        finally:
            into[inside] -= 1
            if not into[inside]:
                into[owner.__name__] += time.thread_time() - begun
                into[f"{owner.__name__} calls"] += 1

    setattr(owner, name, timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--width", type=int, default=130)
    parser.add_argument("--height", type=int, default=42)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    spent: dict[str, float] = defaultdict(float)
    measured(Live, "refresh", spent)
    for name in FILLING:
        measured(Display, name, spent)
    json_file = options.json and options.json.absolute()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as sink:
        os.chdir(folder)
        recipe = load_recipe("quickstart", [f"max_steps={options.steps}", "eval.problems=64"])
        console = Console(
            file=sink, force_terminal=True, width=options.width, height=options.height
        )
        begun, cpu_begun = time.perf_counter(), time.process_time()
        train_run(recipe, resume=False, console=console, quiet=False)
        cpu, seconds = time.process_time() - cpu_begun, time.perf_counter() - begun
        os.chdir("/")
    result = {
        "steps": options.steps,
        "cpu_seconds": round(cpu, 2),
        "redraws": spent["Live calls"],
        "redraws_per_second": round(spent["Live calls"] / seconds, 2),
        "drawing_share": round(spent["Live"] / cpu, 5),
        "filling_share": round(spent["Display"] / cpu, 5),
        "milliseconds_a_redraw": round(1000 * spent["Live"] / max(1, spent["Live calls"]), 2),
    }
    for name, value in result.items():
        print(f"{name:24s} {value}")
    if json_file:
        json_file.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
