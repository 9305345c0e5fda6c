"""Where a weight file is written: in pieces, each hashed and read back while the next one is written."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

PIECE = 1 << 20
BEHIND = 1 << 26
WORD = 8


class Sink:
    """A new file that is written once from front to back.

    With `hashed` its sha256 is made on the way; with `checked` every piece is read back from the file and
    compared with what was given (`wrong` says what differed, "" if nothing). Both run in a thread of their own,
    since they let go of Python's lock. `places` notes where each tensor went, by name: offset and length in bytes.
    """

    def __init__(self, path: Path, *, hashed: bool, checked: bool) -> None:
        self.path = path
        self.position = 0
        self.wrong = ""
        self.places: dict[str, tuple[int, int]] = {}
        self._file = path.open("xb", buffering=0)
        self._back = path.open("rb", buffering=0) if checked else None
        self._hash = hashlib.sha256() if hashed else None
        self._memory = np.empty(PIECE, dtype=np.uint8)
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._working: list[Future[None]] = []
        self._flushing = 0

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._worker.shutdown(wait=True)
        self._file.close()
        if self._back is not None:
            self._back.close()

    def write_tensor(self, name: str, data: memoryview) -> None:
        """Write a tensor's bytes and note where they went."""
        self.places[name] = (self.position, len(data))
        self.write(data)

    def write(self, data: bytes | memoryview) -> None:
        """Write bytes, which must stay as they are until the next ones have been written.

        Raises OSError.
        """
        view, before = memoryview(data), self._working
        self._working = []
        for start in range(0, len(view), PIECE):
            piece = view[start : start + PIECE]
            self._put(piece)
            if self._hash is not None or self._back is not None:
                self._working.append(self._worker.submit(self._look_at, self.position, piece))
            self.position += len(piece)
        _wait_for(before)
        self._start_flushing()

    def finish(self) -> None:
        """Wait until everything has been looked at and is on the disk."""
        _wait_for(self._working)
        os.fsync(self._file.fileno())

    def hexdigest(self) -> str:
        """The sha256 of everything that was written; "" if it is not hashed."""
        return self._hash.hexdigest() if self._hash is not None else ""

    def _put(self, piece: memoryview) -> None:
        done = 0
        while done < len(piece):
            done += self._file.write(piece[done:])

    def _look_at(self, position: int, piece: memoryview) -> None:
        if self._hash is not None:
            self._hash.update(piece)
        if self._back is None:
            return
        held, done = self._memory[: len(piece)], 0
        self._back.seek(position)
        while done < len(piece):
            count = self._back.readinto(held[done:].data)
            if not count:
                break
            done += count
        if done < len(piece) or not _same(held, np.frombuffer(piece, dtype=np.uint8)):
            self.wrong = self.wrong or f"the bytes from {position} on"

    def _start_flushing(self) -> None:
        """Let the system begin to write to the disk, so that there is little left for the last sync."""
        count = self.position - self._flushing
        if count >= BEHIND and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), self._flushing, count, os.POSIX_FADV_DONTNEED)
            self._flushing = self.position


def _wait_for(working: list[Future[None]]) -> None:
    for future in working:
        future.result()


def _same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    words = len(one) // WORD * WORD  # compared as words, which is several times as fast as bytes
    return np.array_equal(one[:words].view(np.uint64), other[:words].view(np.uint64)) and np.array_equal(
        one[words:], other[words:]
    )
