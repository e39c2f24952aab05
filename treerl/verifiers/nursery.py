"""The caller's side of the worker processes: starts the nursery, asks it for children, has them ended.

Calls are serialised by a lock and may come from any thread. Which item of which batch is judged, and when
a child is killed, is decided in `workers.py`.
"""

import contextlib
import mmap
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from treerl.errors import ConfigError, TreerlError
from treerl.verifiers.judge import Rules
from treerl.verifiers.worker import ANSWER, COMMAND, FAMILIES, MARK

_HELLO_SECONDS = 120.0
_END_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Child:
    """One judging process. `loaded` are the families that were imported when it was forked."""

    pid: int
    connection: Connection
    marks: mmap.mmap
    shape: str
    loaded: frozenset[str]

    def mark(self) -> tuple[int, float]:
        """Index of the item under way (-1: none yet) and the monotonic time at which it began."""
        index, began = MARK.unpack_from(self.marks)
        while (again := MARK.unpack_from(self.marks)) != (index, began):
            index, began = again  # it was being written
        return index, began

    def is_there(self) -> bool:
        """Whether it waits for work: an idle child sends nothing, so what can be read is its end."""
        try:
            return not self.connection.poll()
        except OSError:
            return False

    def yield_to_others(self, niceness: int) -> None:
        """Lets answers that end be judged before one that may not. The process is not reaped yet."""
        with contextlib.suppress(OSError):
            mine = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, self.pid, min(19, mine + niceness))

    def close(self) -> None:
        """Gives back what the caller holds; the process itself is ended by `Nursery.end`."""
        self.connection.close()
        self.marks.close()


class Nursery:
    """Owns the nursery process; a new one is started where it has died."""

    def __init__(self, rules: Rules, *, memory_mb: int) -> None:
        self._rules = rules
        self._memory_mb = memory_mb
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._loaded: frozenset[str] = frozenset()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Process id of the nursery, None while there is none."""
        return None if self._process is None else self._process.pid

    def spawn(self, needs: frozenset[str]) -> Child:
        """A new child with the families in `needs` imported. Raises ConfigError for a bad target."""
        with self._lock:
            try:
                return self._spawn(needs)
            except (OSError, EOFError):
                self._stop()  # the nursery has died: once more with a new one
                return self._spawn(needs)

    def end(self, child: Child) -> int:
        """Kills and reaps the child; the wait status of `os.waitpid` (0 where nothing is known)."""
        child.close()
        with self._lock:
            if self._process is None:
                return 0
            try:
                return self._ask(b"E", child.pid)
            except (OSError, EOFError):
                return 0

    def close(self) -> None:
        """Ends the nursery and with it all children; returns when they are gone."""
        with self._lock:
            self._closed = True
            self._stop()

    def _spawn(self, needs: frozenset[str]) -> Child:
        if self._closed:
            raise TreerlError("the verifier pool is closed")
        if self._process is None:
            self._start()
        for family in sorted(needs - self._loaded):
            self._ask(b"P", FAMILIES.index(family))
            self._loaded |= {family}
        ours, theirs = socket.socketpair()
        connection = Connection(ours.detach())
        try:
            with tempfile.TemporaryFile() as file, theirs:
                file.write(MARK.pack(-1, 0.0))
                file.flush()
                marks = mmap.mmap(file.fileno(), MARK.size)
                pid = self._ask(b"S", 0, theirs.fileno(), file.fileno())
            if not connection.poll(_HELLO_SECONDS):
                raise EOFError("no hello from a verifier worker")
            shape, error = pickle.loads(connection.recv_bytes())
            if error:
                self._ask(b"E", pid)
                raise ConfigError(error)
        except BaseException:
            connection.close()
            raise
        return Child(pid, connection, marks, shape, self._loaded)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "treerl.verifiers.worker",
                    str(theirs.fileno()),
                    str(self._memory_mb),
                    pickle.dumps(self._rules).hex(),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the caller, who closes the pool
                env=_environment(),
            )
        ours.settimeout(_HELLO_SECONDS)
        self._control, self._loaded = ours, frozenset()

    def _ask(self, operation: bytes, number: int, *fds: int) -> int:
        if self._control is None:
            raise EOFError("no nursery")
        socket.send_fds(self._control, [COMMAND.pack(operation, number)], list(fds))
        reply = b""
        while len(reply) < ANSWER.size:
            part = self._control.recv(ANSWER.size - len(reply))
            if not part:
                raise EOFError("the verifier nursery has ended")
            reply += part
        (answer,) = ANSWER.unpack(reply)
        return int(answer)

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._control = self._process = None


def _environment() -> dict[str, str]:
    """The caller's import path, and one thread for BLAS: the nursery forks and must stay single-threaded."""
    root = str(Path(__file__).resolve().parents[2])
    paths = dict.fromkeys([root, *(path or os.getcwd() for path in sys.path)])
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **single, "PYTHONPATH": os.pathsep.join(paths)}
