"""Runs of the real command line for the engine's tests: in this process, or in a child that can be killed.

Children are forked from a server that has torch and transformers imported already (`multiprocessing`'s
forkserver), so that a run of a few tiny steps costs less than a second of CPU time.
"""

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from treerl.cli import app
from treerl.metrics import read_metrics

TINY = (
    "search.trees_per_step=3",
    "search.num_generations=4",
    "search.num_branches=1",
    "search.only_undecided=false",
    "eval.problems=4",
    "eval.num_samples=2",
    "eval.k=[1, 2]",
    "policy.threads=1",
    "max_steps=3",
)
"""Overrides of `quickstart` that leave a run of about a second."""

ROOT = str(Path(__file__).resolve().parents[1])

TIMES = ("seconds", "time", "per_second")
"""Ends or parts of the names of metrics that measure time."""
OF_THIS_PROCESS = (
    "search/trees",
    "search/adopted_trees",
    "search/prefill_tokens",
    "search/reused_tokens",
)
"""Metrics that tell what this process did, and so differ where trees were adopted."""


def sets(*overrides: str) -> list[str]:
    """Arguments `--set ...` of TINY and `overrides`."""
    return [part for override in (*TINY, *overrides) for part in ("--set", override)]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended. exit_code: negative where a signal killed it."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.stdout)


def treerl(*arguments: str) -> Outcome:
    """The command line, in this process and in its working folder."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


# Children --------------------------------------------------------------------------------------------------

Prepare = Callable[..., None]
"""Called in the child before the command: sets limits, arranges for its death."""


def treerl_child(
    folder: Path, *arguments: str, prepare: Prepare | None = None, given: Sequence[Any] = ()
) -> Outcome:
    """The command line in a process of its own, working in `folder`; `prepare(*given)` runs in it first."""
    out, err = folder / "child.out", folder / "child.err"
    code = child_exit_code(folder, arguments, str(out), str(err), prepare, given)
    return Outcome(code, out.read_text(), err.read_text())


def child_exit_code(
    folder: Path,
    arguments: Sequence[str],
    out: str,
    err: str,
    prepare: Prepare | None,
    given: Sequence[Any],
) -> int:
    """`treerl_child` with its streams in the files `out` and `err`, which may be a terminal."""
    context = _forkserver()
    process = context.Process(
        target=_child, args=(str(folder), list(arguments), out, err, prepare, given)
    )
    process.start()
    process.join(300)
    if process.exitcode is None:
        process.kill()
        process.join()
    code = process.exitcode
    process.close()
    assert code is not None
    return int(code)


def _forkserver() -> Any:
    """The context of children; its server, started once, finds `tests` whatever the working folder is."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support_engine_preload"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([ROOT, *filter(None, sys.path)]))
        forkserver.ensure_running()
    if ROOT not in sys.path:
        sys.path.append(ROOT)
    return context


def _child(
    folder: str,
    arguments: list[str],
    out: str,
    err: str,
    prepare: Prepare | None,
    given: Sequence[Any],
) -> None:
    os.chdir(folder)
    for path, stream in ((out, 1), (err, 2)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, stream)
        os.close(handle)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):  # the tests themselves may run under nohup
        signal.signal(number, signal.SIG_DFL)
    code = 1
    try:
        if prepare is not None:
            prepare(*given)
        app(arguments, standalone_mode=True)
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 - the traceback is what a test will look at
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def signal_at(where: str, call: int, number: int, *, after: bool = False) -> None:
    """Arranges that this process gets signal `number` at the `call`-th call of `module:name`.

    `after`: when the call has returned. Code of treerl runs unchanged up to that instant.
    """
    module_name, _, name = where.partition(":")
    owner: Any = __import__(module_name, fromlist=["_"])
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    wrapped, calls = getattr(owner, last), 0

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            os.kill(os.getpid(), number)
        result = wrapped(*args, **kwargs)
        if calls == call and after:
            os.kill(os.getpid(), number)
        return result

    setattr(owner, last, counting)


def kill_after_cpu_seconds(seconds: float) -> None:
    """Arranges that the kernel ends this process, without a word, after so much CPU time of its own."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)


# Results ---------------------------------------------------------------------------------------------------


def is_time(name: str) -> bool:
    """Whether a metric measures time."""
    last = name.rpartition("/")[2]
    return name.startswith("time/") or last.endswith(TIMES)


def steady_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without times and without what depends on the process."""
    return [
        {k: v for k, v in row.items() if not is_time(k) and k not in OF_THIS_PROCESS}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def checkpoint_bytes(run: Path, step: int) -> dict[str, bytes]:
    """Weights, optimizer and random state of a checkpoint, as bytes of their files."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    names = ("model.safetensors", "optimizer.safetensors", "random.safetensors")
    return {name: (folder / name).read_bytes() for name in names}
