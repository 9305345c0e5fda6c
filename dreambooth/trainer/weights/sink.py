"""Where a weight file is written: in pieces that are gathered, written, hashed and read back beside each other."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from dreambooth.trainer.weights.base import Entry, bytes_of

PIECE = 1 << 22
PIECES = 8
FLUSHED = 1 << 26
WORD = 8


class Piece:
    """Memory for some bytes of the file, and what is still done with them; a whole piece may be `given` where it lies."""

    def __init__(self) -> None:
        self.memory = _memory()
        self.given: memoryview | None = None
        self.length = 0
        self.working: list[Future[None]] = []

    @property
    def filled(self) -> memoryview:
        return self.memory[: self.length] if self.given is None else self.given

    @property
    def room(self) -> memoryview:
        return self.memory[self.length :]

    def empty(self) -> None:
        """Wait until nothing is done with it any more, and begin anew. Raises what went wrong, an OSError where writing
        failed."""
        for done in self.working:
            done.result()
        self.working, self.given, self.length = [], None, 0


class Sink:
    """A new file that is written once from front to back.

    With `hashed` its sha256 is made on the way; with `checked` every piece is read back from the file and
    compared with what was given (`wrong` says what differed, "" if nothing). The caller gathers the pieces; writing,
    hashing and looking at what was written each have a thread, since all of them let go of Python's lock: the file is
    done when the slowest of them is, which is the writing, or the hash where the disk is fast. `position` counts what
    was taken, `places` notes where each tensor goes, by name: offset and length in bytes.
    """

    def __init__(self, path: Path, *, hashed: bool, checked: bool) -> None:
        self.path = path
        self.position = 0
        self.wrong = ""
        self.places: dict[str, tuple[int, int]] = {}
        self._file = path.open("xb", buffering=0)
        self._back = path.open("rb", buffering=0) if checked else None
        self._hash = hashlib.sha256() if hashed else None
        self._memory = _memory()
        self._flushed = 0
        self._writer, self._hasher, self._looker = (ThreadPoolExecutor(max_workers=1) for _ in range(3))
        self._pieces = deque(Piece() for _ in range(PIECES))

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for thread in (self._writer, self._hasher, self._looker):
            thread.shutdown(wait=True, cancel_futures=error is not None)
        self._file.close()
        if self._back is not None:
            self._back.close()

    def write_entry(self, entry: Entry) -> None:
        """Take a tensor's bytes and note where they go. Raises OSError, also for what was taken before."""
        self.places[entry.name] = (self.position, entry.nbytes)
        if entry.raw is None:
            return self.write(bytes_of(entry.data().contiguous()))
        done = 0
        while done < entry.nbytes:
            room = self._room(entry.nbytes - done)
            entry.raw(done, room)
            done += self._took(room)

    def write(self, data: bytes | memoryview) -> None:
        """Take bytes, which must not change any more. Raises OSError, also for what was taken before."""
        view, done = memoryview(data), 0
        while done < len(view):
            room = self._room(len(view) - done)
            if len(room) == PIECE:
                self._pieces[0].given = view[done : done + PIECE]
            else:
                room[:] = view[done : done + len(room)]
            done += self._took(room)

    def finish(self) -> None:
        """Wait until everything is written, looked at and on the disk. Raises OSError."""
        self._pass_on(self._pieces[0])
        for piece in self._pieces:
            piece.empty()
        os.fsync(self._file.fileno())

    def hexdigest(self) -> str:
        """The sha256 of everything that was written; "" if it is not hashed."""
        return self._hash.hexdigest() if self._hash is not None else ""

    def _room(self, wanted: int) -> memoryview:
        """Memory for the next bytes, at most as many as wanted: what is left of the piece that is being filled."""
        return self._pieces[0].room[:wanted]

    def _took(self, room: memoryview) -> int:
        piece, count = self._pieces[0], len(room)
        piece.length += count
        self.position += count
        if piece.length == PIECE:
            self._pass_on(piece)
        return count

    def _pass_on(self, piece: Piece) -> None:
        """Let a piece be written, and go on with the one that was passed on longest ago, once that is free."""
        data, start = piece.filled, self.position - piece.length
        written = self._writer.submit(self._put, data)
        piece.working.append(written)
        if self._hash is not None:
            piece.working.append(self._hasher.submit(self._hash.update, data))
        piece.working.append(self._looker.submit(self._look_at, start, data, written))
        self._pieces.rotate(-1)
        self._pieces[0].empty()

    def _put(self, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += self._file.write(data[done:])

    def _look_at(self, start: int, data: memoryview, written: Future[None]) -> None:
        """Read what was written back and compare it; let the disk begin with it, so that little is left to sync."""
        written.result()
        if self._back is not None and not _same(self._read_back(start, len(data)), data):
            self.wrong = self.wrong or f"the bytes from {start} on"
        if hasattr(os, "posix_fadvise") and start + len(data) - self._flushed >= FLUSHED:
            count = start + len(data) - self._flushed
            os.posix_fadvise(self._file.fileno(), self._flushed, count, os.POSIX_FADV_DONTNEED)
            self._flushed += count

    def _read_back(self, start: int, length: int) -> memoryview:
        """As many of the bytes as the file has."""
        assert self._back is not None
        held, done = self._memory[:length], 0
        self._back.seek(start)
        while done < length and (count := self._back.readinto(held[done:])):
            done += count
        return held[:done]


def _memory() -> memoryview:
    """Of a piece's size; what is never written to takes none, so that small files cost little."""
    return bytes_of(torch.empty(PIECE, dtype=torch.uint8))


def _same(one: memoryview, other: memoryview) -> bool:
    words = len(one) // WORD * WORD  # compared as words, which is several times as fast as bytes
    return (
        len(one) == len(other)
        and np.array_equal(_words(one[:words]), _words(other[:words]))
        and one[words:] == other[words:]
    )


def _words(data: memoryview) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, dtype=np.uint64) if len(data) else np.empty(0, dtype=np.uint64)
