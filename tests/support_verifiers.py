"""Settings, problems and process look-ups shared by the tests of the verifiers."""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from treerl.problem import Problem
from treerl.verifiers.verdict import Completion

HOSTILE = ["9^{9^{9}}", "10^{10^{10}}", r"\sin(9^{9^{9}})", "(x+y+z+w+1)^{300}", "100000000!"]
"""Answers on which math-verify does not return in any useful time."""


def settings(**changes: Any) -> Any:
    """Verifier settings with the recipe's defaults."""
    defaults = {
        "kind": "auto",
        "answer_format": "auto",
        "target": None,
        "parts": (),
        "timeout_s": 5.0,
        "workers": 1,
        "memory_mb": 4096,
    }
    return SimpleNamespace(**{**defaults, **changes})


def math_problem(truth: str = "x+1") -> Problem:
    return Problem("q", truth, "math")


def boxed(answer: str) -> Completion:
    return Completion(rf"so it is \boxed{{{answer}}}.")


def descendants(pid: int) -> set[int]:
    """Process ids below `pid`, from /proc."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    found, frontier = set(), {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: set[int], seconds: float = 10.0) -> set[int]:
    """Those of `pids` that are still alive when the time is up."""
    deadline = time.monotonic() + seconds
    while (alive := {pid for pid in pids if is_alive(pid)}) and time.monotonic() < deadline:
        time.sleep(0.02)
    return alive


def on_linux() -> bool:
    return os.path.isdir("/proc/self")
