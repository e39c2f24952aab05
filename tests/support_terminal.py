"""The real command line on a pseudo-terminal: what a person's terminal would receive."""

import fcntl
import os
import re
import struct
import termios
import threading
import tty
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support_engine import Prepare, child_exit_code

SHOW_CURSOR, HIDE_CURSOR, ALTERNATE_SCREEN = "\x1b[?25h", "\x1b[?25l", "\x1b[?1049h"


def treerl_on_terminal(
    folder: Path,
    *arguments: str,
    prepare: Prepare | None = None,
    given: Sequence[Any] = (),
    size: tuple[int, int] = (100, 40),
) -> tuple[int, str]:
    """Exit code, and all that was written to the terminal; both streams go there. size: columns, lines."""
    master, slave = os.openpty()
    tty.setraw(slave)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
    received: list[bytes] = []
    reader = threading.Thread(target=_read, args=(master, received))
    reader.start()
    name = os.ttyname(slave)
    try:
        code = child_exit_code(folder, arguments, name, name, _on_terminal, (prepare, given))
    finally:
        os.close(slave)
        reader.join(60)
        os.close(master)
    return code, b"".join(received).decode()


def _on_terminal(prepare: Prepare | None, given: Sequence[Any]) -> None:
    """In the child: a terminal that can do everything, and no word of the test's own environment."""
    os.environ["TERM"] = "xterm-256color"
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE"):
        os.environ.pop(name, None)
    if prepare is not None:
        prepare(*given)


def _read(master: int, received: list[bytes]) -> None:
    while True:
        try:
            received.append(os.read(master, 65536))
        except OSError:  # the other side is closed
            return


def plain(text: str) -> str:
    """`text` without control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)", "", text)
