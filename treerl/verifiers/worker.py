"""The processes that judge: a small parent that forks, and children that each own their main thread.

Run as `python -m treerl.verifiers.worker FD MEMORY_MB RULES` by `workers.py`. The *nursery* imports sympy
or reasoning-gym once, stays single-threaded, never judges, and forks a child in milliseconds whenever one
is asked for: replacing a child that was killed costs no second import. Children judge batches and are
killed with SIGKILL when the caller's clock says so. torch is never imported here.

Nothing outlives the caller: the nursery ends when its control socket closes or its parent is gone, and
kills its children; a child gets SIGKILL from the kernel when the nursery dies (Linux), and every batch
has a limit of CPU seconds.
"""

import contextlib
import ctypes
import logging
import mmap
import os
import pickle
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from treerl.errors import ConfigError
from treerl.problem import Problem
from treerl.verifiers import user
from treerl.verifiers.judge import Rules, judge
from treerl.verifiers.verdict import Completion, Verdict

COMMAND = struct.Struct("<cq")
"""Control message: operation (b"S" spawn, b"E" end, b"P" preload) and a pid or a family's index."""
ANSWER = struct.Struct("<q")
"""Control reply: pid, wait status, or 0."""
MARK = struct.Struct("<qd")
"""Shared memory of a child: index of the item being judged (-1: none yet), and when it began."""
FAMILIES = ("math", "reasoning_gym")

_PR_SET_PDEATHSIG = 1
_FLUSH_SECONDS = 0.02


def main() -> None:
    """Entry of the nursery process."""
    control = socket.socket(fileno=int(sys.argv[1]))
    memory_bytes = int(sys.argv[2]) * 2**20
    rules: Rules = pickle.loads(bytes.fromhex(sys.argv[3]))
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    os.dup2(2, 1)  # a reward function's print must not reach the caller's stdout
    _nurse(control, lambda connection, marks: _serve(connection, marks, rules, memory_bytes))


def _nurse(control: socket.socket, serve: Callable[[Connection, mmap.mmap], None]) -> None:
    parent = os.getppid()
    children: set[int] = set()
    try:
        while os.getppid() == parent:
            if not select.select([control], [], [], 1.0)[0]:
                continue
            message, fds, _, _ = socket.recv_fds(control, COMMAND.size, 2)
            if not message:
                return
            operation, number = COMMAND.unpack(message)
            if operation == b"S":
                answer = _spawn(control, fds, serve)
                children.add(answer)
            elif operation == b"E":
                answer = _end(number) if number in children else 0
                children.discard(number)
            else:
                answer = _preload(FAMILIES[number])
            control.sendall(ANSWER.pack(answer))
    except (ConnectionError, BrokenPipeError):
        return
    finally:
        for pid in children:
            _end(pid)


def _spawn(
    control: socket.socket, fds: Sequence[int], serve: Callable[[Connection, mmap.mmap], None]
) -> int:
    nursery = os.getpid()
    pid = os.fork()
    if pid:
        for fd in fds:
            os.close(fd)
        return pid
    code = 1
    try:
        _die_with(nursery)
        control.close()
        serve(Connection(fds[0]), mmap.mmap(fds[1], MARK.size))
        code = 0
    except (EOFError, ConnectionError):
        code = 0  # the caller has closed
    except BaseException as error:  # noqa: BLE001  the last frame of a process: say it and go
        with contextlib.suppress(OSError):
            sys.stderr.write(f"verifier worker: {type(error).__name__}: {error}\n")
    finally:
        os._exit(code)


def _end(pid: int) -> int:
    """Kills and reaps; gives the wait status (of its own death where it was dead before)."""
    with contextlib.suppress(ProcessLookupError):
        finished, status = os.waitpid(pid, os.WNOHANG)
        if finished:
            return status
        os.kill(pid, signal.SIGKILL)
        return os.waitpid(pid, 0)[1]
    return 0


def _preload(family: str) -> int:
    if family == "math":
        from treerl.verifiers import math

        math.warm()
    else:
        import reasoning_gym  # noqa: F401
    return 0


def _die_with(nursery: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != nursery:
        os._exit(1)


def _serve(connection: Connection, marks: mmap.mmap, rules: Rules, memory_bytes: int) -> None:
    """A child: says hello (shape, error), then judges batches until the connection closes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    reward: user.UserReward | None = None
    shape, error = "item", ""
    if rules.kind == "import":
        try:
            reward = user.load(rules.target or "")
            shape = reward.shape
        except ConfigError as problem:
            error = str(problem)
    connection.send_bytes(pickle.dumps((shape, error)))
    while True:
        problems, completions, seconds = pickle.loads(connection.recv_bytes())
        _limit_cpu(seconds)
        _judge_batch(connection, marks, problems, completions, rules, reward)


def _judge_batch(
    connection: Connection,
    marks: mmap.mmap,
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    rules: Rules,
    reward: user.UserReward | None,
) -> None:
    """Sends lists of verdicts in order; a mark in shared memory names the item under way.

    Verdicts travel together, except that none waits behind a slow item (and a user's function, which may
    count its calls, is never called a second time for an item: each verdict goes out at once).
    """
    if reward is not None and reward.shape == "batch":
        MARK.pack_into(marks, 0, 0, time.monotonic())
        connection.send_bytes(pickle.dumps(reward.judge(problems, completions)))
        return
    ready: list[Verdict] = []
    flushed = time.monotonic()
    for index, (problem, completion) in enumerate(zip(problems, completions, strict=True)):
        now = time.monotonic()
        if ready and (reward is not None or now - flushed > _FLUSH_SECONDS):
            connection.send_bytes(pickle.dumps(ready))
            ready, flushed = [], now
        MARK.pack_into(marks, 0, index, now)
        if reward is not None:
            ready += reward.judge([problem], [completion])
        else:
            ready.append(_judge_one(problem, completion, rules))
    connection.send_bytes(pickle.dumps(ready))


def _judge_one(problem: Problem, completion: Completion, rules: Rules) -> Verdict:
    try:
        return judge(problem, completion, rules)
    except Exception as error:  # noqa: BLE001  a boundary: a defect in a judgement is data, never 0
        reason = f"{type(error).__name__}: {error}"[:500]
        return Verdict("error", detail={"kind": rules.kind, "reason": reason})


def _limit_cpu(seconds: float) -> None:
    """A backstop for the case that nobody is left to kill: SIGXCPU after what the batch may take."""
    used: Any = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 2
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard == resource.RLIM_INFINITY or soft < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


if __name__ == "__main__":
    main()
