"""The nouns of a weight file: what a tensor is, what a file offers, what is written and what was."""

from __future__ import annotations

import hashlib
import mmap
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import torch

from dreambooth.shared.errors import DreamboothError, InputError

RawBytes = Callable[[int, memoryview], None]
"""Called with an offset into a tensor's bytes and memory to be filled from there."""
PIECE = 1 << 22
"""How many elements are cast at a time."""


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: dtype, shape, and its size in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int


class WeightFile(Protocol):
    """A file (or a folder that stands for one) of named tensors, in the file's own order."""

    path: Path
    format: str
    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    extras: dict[str, object]

    def read(self, name: str) -> torch.Tensor:
        """The tensor in memory of its own, contiguous, in its stored dtype."""
        ...

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Fill `out` (contiguous, same number of elements) with the tensor, cast to `out`'s dtype."""
        ...

    def mapped(self, name: str) -> torch.Tensor | None:
        """The tensor in the file's own pages, copied where it is written to; None where that cannot be."""
        ...

    def raw(self, name: str) -> RawBytes | None:
        """What reads the tensor's bytes, row by row; None if they do not lie in this order."""
        ...


def read_whole(file: WeightFile, name: str) -> torch.Tensor:
    """A tensor of a file in memory of its own, contiguous, in its stored dtype: what `read` of each format is."""
    info = file.tensors[name]
    out = torch.empty(info.shape, dtype=info.dtype)
    file.read_into(name, out)
    return out


@dataclass(frozen=True)
class Entry:
    """A tensor to be written; `data` gives it when its turn comes, so that they are not in memory all at once.

    `raw`, where there is one, gives the same bytes piece by piece, so that the tensor never is in memory whole.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    data: Callable[[], torch.Tensor]
    raw: RawBytes | None = None

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.dtype, self.shape)


@dataclass(frozen=True)
class Written:
    """A finished file or folder: where it is, its size in bytes, and the sha256 of all of it.

    `beside` are files written along with it (its `.yaml`), `notes` say what a reader should know of it.
    """

    path: Path
    nbytes: int
    sha256: str
    beside: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def nbytes_of(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """The number of bytes of a dense tensor."""
    count = dtype.itemsize
    for size in shape:
        count *= size
    return count


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, writable, as bytes (any dtype, also those numpy has not)."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def file_sha256(path: Path) -> str:
    """The sha256 of a whole file, as the WebUI computes it, in hexadecimal."""
    digest, memory = hashlib.sha256(), bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(memory):
            digest.update(memoryview(memory)[:count])
    return digest.hexdigest()


def folder_sha256(folder: Path) -> str:
    """One hash for all files of a folder: the sha256 of what `sha256sum` prints of them, a line each, sorted by name
    with the folder's own left out."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    lines = [f"{file_sha256(paths[name])}  {name}\n" for name in sorted(paths)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class OpenedFile:
    """Reads ranges of one file by offset, and notices when the file is no longer the one that was opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        stat = path.stat()
        self.size = stat.st_size
        self._modified = stat.st_mtime_ns
        self._pages: weakref.ref[mmap.mmap] | None = None

    def open(self) -> BinaryIO:
        """The file, unbuffered, after making sure that nobody replaced it since it was opened first."""
        try:
            file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise InputError(f"it cannot be read any more: {error.strerror}", where=str(self.path)) from error
        stat = os.fstat(file.fileno())
        if (stat.st_size, stat.st_mtime_ns) != (self.size, self._modified):
            file.close()
            raise DreamboothError(
                "the file was changed while it was in use", where=str(self.path), remedy="start again"
            )
        return file

    def read_at(self, offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes at `offset`; raises InputError if the file ends before."""
        with self.open() as file:
            file.seek(offset)
            done = 0
            while done < len(out):
                got = file.readinto(out[done:])  # type: ignore[attr-defined]
                if not got:
                    raise InputError(
                        "the file ends too early", where=str(self.path), remedy="download or copy it again"
                    )
                done += got

    def mapped(self, offset: int, stored: TensorInfo) -> torch.Tensor | None:
        """The tensor at `offset` in pages of the file; they are let go with the last tensor that is in them.

        None for the empty, for what is not aligned, and on Windows, where a mapped file can be neither replaced
        nor deleted.
        """
        if os.name == "nt" or not stored.nbytes or offset % stored.dtype.itemsize:
            return None
        pages = self._pages() if self._pages is not None else None
        if pages is None:
            with self.open() as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._pages = weakref.ref(pages)
        count = stored.nbytes // stored.dtype.itemsize
        return torch.frombuffer(pages, dtype=stored.dtype, count=count, offset=offset).reshape(stored.shape)


def fill(out: torch.Tensor, stored: TensorInfo, read: RawBytes) -> None:
    """Read a stored tensor into `out` (contiguous): straight into its memory, or cast piece by piece."""
    if out.dtype == stored.dtype:
        if stored.nbytes:
            read(0, bytes_of(out))
        return
    flat, size = out.view(-1), stored.dtype.itemsize
    held = torch.empty(min(PIECE, flat.numel()), dtype=stored.dtype)
    for start in range(0, flat.numel(), PIECE):
        piece = held[: flat.numel() - start]
        read(start * size, bytes_of(piece))
        flat[start : start + len(piece)].copy_(piece)
