"""An operating-system lock on a file, held for a process's whole life: the only trustworthy test of life.

The system drops it when the process ends, however it ends, so a lock file that is left behind means nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# Windows locks bytes, and locked bytes cannot be read by others: lock one far behind the text that names the holder.
_LOCKED_BYTE = 1 << 30


def _try_lock(file: IO[bytes], *, shared: bool = False) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(_LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)


class HeldElsewhere(Exception):
    """Another process holds the lock; `pid` is what it wrote about itself, 0 if it is not known."""

    def __init__(self, path: Path, pid: int) -> None:
        super().__init__(f"{path} is held by process {pid or 'unknown'}")
        self.path = path
        self.pid = pid


def _open(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666), "r+b")


def holder(path: Path) -> int:
    """The process id that the last holder wrote into the lock file, 0 if there is none."""
    try:
        return int(path.read_bytes()[:32].split()[0])
    except (OSError, ValueError, IndexError):
        return 0


@contextmanager
def hold(path: Path, *, patience: float = 1.0) -> Iterator[IO[bytes]]:
    """Holds the lock until the block ends; gives the open file, which a child may inherit so that it holds on too.

    It is tried for `patience` seconds, since a reader that only looks (`is_held`) has it for a moment.
    Raises HeldElsewhere if somebody else keeps it.
    """
    with _open(path) as file:
        deadline = time.monotonic() + patience
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise HeldElsewhere(path, holder(path))
            time.sleep(0.02)
        try:
            file.seek(0)
            file.truncate()
            file.write(f"{os.getpid()}\n".encode())
            file.flush()
            yield file
        finally:
            _unlock(file)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock. A path that is not there is not held."""
    if not path.exists():
        return False
    try:
        file = _open(path)
    except PermissionError:  # read-only to us, so not ours to hold; Windows says the same of an open file
        return True
    with file:
        if not _try_lock(file, shared=True):
            return True
        _unlock(file)
        return False
