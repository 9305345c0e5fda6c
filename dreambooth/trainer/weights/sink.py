"""Where a weight file is written: in pieces, each hashed and read back while the next one is written."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np

from dreambooth.shared.errors import DreamboothError

PIECE = 1 << 20
BEHIND = 1 << 26


class Sink:
    """A new file that is written once from front to back.

    With `hashed` its sha256 is made on the way; with `checked` every piece is read back from the file and
    compared with what was given. Both run in a thread of their own, since they let go of Python's lock.
    `places` notes where each tensor went, by name: offset and length in bytes.
    """

    def __init__(self, path: Path, *, hashed: bool, checked: bool) -> None:
        self.path = path
        self.position = 0
        self.places: dict[str, tuple[int, int]] = {}
        self._file = path.open("xb", buffering=0)
        self._back = path.open("rb", buffering=0) if checked else None
        self._hash = hashlib.sha256() if hashed else None
        self._memory = np.empty(PIECE, dtype=np.uint8)
        self._worker = ThreadPoolExecutor(max_workers=1)
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
        """Write bytes; when this returns they are no longer needed. Raises OSError, DreamboothError."""
        view, working = memoryview(data), list[Future[None]]()
        try:
            for start in range(0, len(view), PIECE):
                piece = view[start : start + PIECE]
                self._put(piece)
                if self._hash is not None or self._back is not None:
                    working.append(self._worker.submit(self._look_at, self.position, piece))
                self.position += len(piece)
        finally:
            for future in working:
                future.result()
        self._start_flushing()

    def sync(self) -> None:
        """Wait until everything is on the disk."""
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
        if done < len(piece) or not np.array_equal(held, np.frombuffer(piece, dtype=np.uint8)):
            raise DreamboothError(
                f"what was written does not read back at byte {position}; the file was removed",
                where=str(self.path),
                remedy="check the disk, then write it again",
            )

    def _start_flushing(self) -> None:
        """Let the system begin to write to the disk, so that there is little left for the last sync."""
        count = self.position - self._flushing
        if count >= BEHIND and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), self._flushing, count, os.POSIX_FADV_DONTNEED)
            self._flushing = self.position
