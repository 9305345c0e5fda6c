"""An operating-system lock on a file, held for a process's whole life: the only trustworthy test of life.

The system drops it when the process ends, however it ends, so a lock file that is left behind means nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

# Windows locks bytes, and locked bytes cannot be read by others: lock one far behind the text that names the holder.
_LOCKED_BYTE = 1 << 30
_HOLDER_BYTES = 32
# What this process holds. A forked child has the same lock without a right to it: it would keep it alive after
# the trainer's death.
_held: set[FileIO] = set()


def _try_lock(file: FileIO, *, shared: bool = False) -> bool:
    """Whether the lock was free and is ours now. Raises OSError where the file system has no locks."""
    try:
        if sys.platform == "win32":
            _lock_byte(file, "LK_NBLCK")
        else:
            import fcntl

            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # "held by another", as POSIX and as Windows says it
        return False
    return True


def _unlock(file: FileIO) -> None:
    if sys.platform == "win32":
        _lock_byte(file, "LK_UNLCK")
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)


def _lock_byte(file: FileIO, mode: str) -> None:
    """Windows only. Its locks are exclusive, whatever they are asked for."""
    import msvcrt

    file.seek(_LOCKED_BYTE)
    msvcrt.locking(file.fileno(), getattr(msvcrt, mode), 1)  # type: ignore[attr-defined,unused-ignore]


def _let_go_of_inherited() -> None:
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_of_inherited)


class HeldElsewhere(Exception):
    """Another process holds the lock; `pid` is what it wrote about itself, 0 if it is not known."""

    def __init__(self, path: Path, pid: int) -> None:
        super().__init__(f"{path} is held by process {pid or 'unknown'}")
        self.path = path
        self.pid = pid


def _open(path: Path, flags: int) -> FileIO:
    """Unbuffered, since the locked byte is where the file's own position is."""
    flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    return FileIO(os.open(path, flags, 0o666), "r+" if flags & os.O_RDWR else "r")


def holder(path: Path) -> int:
    """The process id that the last holder wrote into the lock file, 0 if there is none."""
    try:
        with path.open("rb") as file:
            return int(file.read(_HOLDER_BYTES).split()[0])
    except (OSError, ValueError, IndexError):
        return 0


@contextmanager
def hold(path: Path, *, patience: float = 1.0, make: bool = True) -> Iterator[None]:
    """Holds the lock until the block ends; without `make`, only of a file that is there.

    It is tried for `patience` seconds, since a reader that only looks (`is_held`) has it for a moment.
    Raises HeldElsewhere if somebody else keeps it, OSError if the file cannot be made or locked at all.
    """
    with _open(path, os.O_RDWR | (os.O_CREAT if make else 0)) as file:
        deadline = time.monotonic() + patience
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise HeldElsewhere(path, holder(path))
            time.sleep(0.02)
        _held.add(file)
        try:
            file.seek(0)
            file.write(f"{os.getpid():<{_HOLDER_BYTES - 1}}\n".encode())
            yield
        finally:
            _held.discard(file)
            if not file.closed:
                _unlock(file)


def is_held(path: Path, *, looks: int = 3) -> bool:
    """Whether a living process holds the lock. A path that is not there is not held.

    On Windows two that look at once are in each other's way for a moment: it looks `looks` times.
    """
    try:
        file = _open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:  # not even ours to read; Windows says the same of a file that is being deleted
        return True
    with file:
        for look in range(looks if sys.platform == "win32" else 1):
            time.sleep(0.01 * look)
            try:
                free = _try_lock(file, shared=True)
            except OSError:  # a file system without locks, where nobody can hold one
                return False
            if free:
                _unlock(file)
                return False
        return True
