"""Where a weight file is written: in pieces, each hashed and read back while the next one is written."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from dreambooth.trainer.weights.base import Entry, bytes_of

PIECE = 1 << 20
BEHIND = 4
FLUSHED = 1 << 26
WORD = 8


class Sink:
    """A new file that is written once from front to back.

    With `hashed` its sha256 is made on the way; with `checked` every piece is read back from the file and
    compared with what was given (`wrong` says what differed, "" if nothing). Each runs in a thread of its own, since
    they let go of Python's lock and the hash alone takes longer than the copying. `places` notes where each tensor
    went, by name: offset and length in bytes.
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
        self._hasher, self._checker = ThreadPoolExecutor(max_workers=1), ThreadPoolExecutor(max_workers=1)
        self._working: deque[list[Future[None]]] = deque()
        self._pieces = [memoryview(bytearray(PIECE)) for _ in range(BEHIND + 2)]
        self._turn = 0
        self._flushed = 0

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hasher.shutdown(wait=True)
        self._checker.shutdown(wait=True)
        self._file.close()
        if self._back is not None:
            self._back.close()

    def write_entry(self, entry: Entry) -> None:
        """Write a tensor's bytes and note where they went. Raises OSError."""
        self.places[entry.name] = (self.position, entry.nbytes)
        if entry.raw is None:
            return self.write(bytes_of(entry.data().contiguous()))
        for start in range(0, entry.nbytes, PIECE):
            piece = self._free_memory()[: min(PIECE, entry.nbytes - start)]
            entry.raw(start, piece)
            self._write_piece(piece)

    def write(self, data: bytes | memoryview) -> None:
        """Write bytes, which must not change any more. Raises OSError."""
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            self._write_piece(view[start : start + PIECE])

    def finish(self) -> None:
        """Wait until everything has been looked at and is on the disk."""
        self._wait(0)
        os.fsync(self._file.fileno())

    def hexdigest(self) -> str:
        """The sha256 of everything that was written; "" if it is not hashed."""
        return self._hash.hexdigest() if self._hash is not None else ""

    def _write_piece(self, piece: memoryview) -> None:
        self._put(piece)
        working = []
        if self._hash is not None:
            working.append(self._hasher.submit(self._hash.update, piece))
        if self._back is not None:
            working.append(self._checker.submit(self._look_at, self._back, self.position, piece))
        self._working.append(working)
        self.position += len(piece)
        self._wait(BEHIND)
        if self.position - self._flushed >= FLUSHED:
            self._start_flushing()

    def _wait(self, count: int) -> None:
        """Wait until no more than this many pieces are still looked at."""
        while len(self._working) > count:
            for done in self._working.popleft():
                done.result()

    def _free_memory(self) -> memoryview:
        """Memory for the next piece, in turn: what is in it is written and looked at before it comes again."""
        self._turn = (self._turn + 1) % len(self._pieces)
        return self._pieces[self._turn]

    def _put(self, piece: memoryview) -> None:
        done = 0
        while done < len(piece):
            done += self._file.write(piece[done:])

    def _look_at(self, back: BinaryIO, position: int, piece: memoryview) -> None:
        held, done = self._memory[: len(piece)], 0
        back.seek(position)
        while done < len(piece):
            count = back.readinto(held[done:].data)  # type: ignore[attr-defined]
            if not count:
                break
            done += count
        if done < len(piece) or not _same(held, np.frombuffer(piece, dtype=np.uint8)):
            self.wrong = self.wrong or f"the bytes from {position} on"

    def _start_flushing(self) -> None:
        """Let the system begin to write to the disk, so that there is little left for the last sync."""
        if hasattr(os, "posix_fadvise"):
            count = self.position - self._flushed
            os.posix_fadvise(self._file.fileno(), self._flushed, count, os.POSIX_FADV_DONTNEED)
        self._flushed = self.position


def _same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    words = len(one) // WORD * WORD  # compared as words, which is several times as fast as bytes
    return np.array_equal(one[:words].view(np.uint64), other[:words].view(np.uint64)) and np.array_equal(
        one[words:], other[words:]
    )
