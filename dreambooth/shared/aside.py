"""Where something large is written before it gets its name: beside it, under a hidden one, with a lock next to that.

The lock is held for as long as the writing lasts. So what a killed process leaves, gigabytes that nobody sees, can be
told from what another process is writing: whoever writes into the folder next removes the one, and never the other.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from .lock import HeldElsewhere, hold, is_held
from .paths import fsync_folder, replace

_MARK = ".lock"
_MARKED = re.compile(r"\..+-[0-9a-f]{8}\.tmp" + re.escape(_MARK))
# of a name of four bytes a letter, the longest that still is a file's with what stands around it
_LETTERS = 58


@contextlib.contextmanager
def aside(target: Path) -> Iterator[Path]:
    """A name beside `target` under which nothing is there yet; what is there when the block ends is removed."""
    temporary = target.with_name(f".{target.name[:_LETTERS]}-{uuid.uuid4().hex[:8]}.tmp")
    mark = _mark_of(temporary)
    with contextlib.ExitStack() as held:
        held.callback(_unmark, temporary)  # last, since Windows removes nothing that is open
        try:
            held.enter_context(hold(mark))
        except (OSError, HeldElsewhere):  # no locks here: without its mark, nobody takes it for a leftover
            _unmark(temporary)
        held.callback(_clear, temporary)
        yield temporary


def put_folder(temporary: Path, target: Path) -> None:
    """Gives a folder that was written aside its name; the one that had it goes when the new one stands there.

    Raises OSError; the old one has its name then.
    """
    old = _old_of(temporary)
    if target.exists():
        replace(target, old)
    try:
        replace(temporary, target)
    except OSError:
        if old.exists():
            replace(old, target)
        raise
    fsync_folder(target.parent)


def remove_leftovers(folder: Path) -> dict[str, int]:
    """Removes what killed processes left in a folder; the bytes that are free now, by name."""
    removed = {}
    for temporary in _marked(folder):
        # somebody is writing it; or the file system has no locks, so that nobody knows
        with contextlib.suppress(HeldElsewhere, OSError):
            with hold(_mark_of(temporary), patience=0, make=False):
                size = _clear(temporary)
            _unmark(temporary)
            if size:
                removed[temporary.name] = size
    return removed


def leftover_bytes(folder: Path) -> int:
    """What `remove_leftovers` would free, about."""
    free = [temporary for temporary in _marked(folder) if not is_held(_mark_of(temporary))]
    return sum(_size(path) for temporary in free for path in _unneeded(temporary))


def _marked(folder: Path) -> list[Path]:
    marks = [path for path in folder.glob(f".*{_MARK}") if _MARKED.fullmatch(path.name)]
    return [mark.with_suffix("") for mark in sorted(marks)]


def _mark_of(temporary: Path) -> Path:
    return temporary.with_name(temporary.name + _MARK)


def _old_of(temporary: Path) -> Path:
    """Where the folder goes whose name is taken over."""
    return temporary.with_suffix(".old")


def _unneeded(temporary: Path) -> list[Path]:
    """What was not finished, or has been replaced. Where both are there, a change of names was cut in the middle, and
    they are all that there is."""
    found = [path for path in (temporary, _old_of(temporary)) if path.exists()]
    return found if len(found) < 2 else []


def _clear(temporary: Path) -> int:
    """Removes what is not needed, and gives the bytes that are free."""
    unneeded = _unneeded(temporary)
    size = sum(map(_size, unneeded))
    for path in unneeded:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # a disk that may not be written any more
                path.unlink(missing_ok=True)
    return size - sum(map(_size, unneeded))


def _unmark(temporary: Path) -> None:
    """Removes the mark, unless there is still something that it marks."""
    with contextlib.suppress(OSError):
        if not temporary.exists() and not _old_of(temporary).exists():
            _mark_of(temporary).unlink(missing_ok=True)


def _size(path: Path) -> int:
    size = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        with contextlib.suppress(OSError):  # gone meanwhile
            size += file.stat().st_size if file.is_file() else 0
    return size
