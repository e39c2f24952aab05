"""One process at a time in a run's folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from treerl.errors import ConfigError, StoreError

_NAME = "lock"


@contextmanager
def held(root: Path) -> Iterator[None]:
    """Keeps other processes from training in `root`, which is made if need be; ends with the process.

    Raises ConfigError if another process holds it, StoreError if the folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / _NAME).open("a")
    except OSError as error:
        raise StoreError(
            f"cannot write {root / _NAME}: {error.strerror}; choose another run.output_dir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process trains in {root}: wait for its end, or start a run of another name "
                "(--set run.name='NAME')"
            ) from None
        yield


def is_held(root: Path) -> bool:
    """Whether a process trains in `root`."""
    try:
        with (root / _NAME).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
