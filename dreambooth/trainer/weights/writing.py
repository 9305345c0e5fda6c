"""Writing a weight file whole or not at all: temporary name, sync, reading back, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch

from dreambooth.shared.errors import DreamboothError, InputError
from dreambooth.shared.paths import fsync_folder
from dreambooth.trainer.weights import ckpt_file, ckpt_writer, safetensors_file
from dreambooth.trainer.weights.base import Entry, Scratch, WeightFile, Written

Writer = Callable[[Any, Sequence[Entry], Mapping[str, str], Mapping[str, object]], None]
READERS: dict[str, Callable[[Path], WeightFile]] = {
    ".safetensors": safetensors_file.SafetensorsFile,
    ".ckpt": ckpt_file.CkptFile,
}
WRITERS: dict[str, Writer] = {".safetensors": safetensors_file.write, ".ckpt": ckpt_writer.write}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
LARGE = 1 << 20


def _nothing(data: memoryview) -> None:
    pass


class Sink:
    """An unbuffered file; with `hashed` its sha256 is made on the way, in a thread of its own."""

    def __init__(self, file: BinaryIO, *, hashed: bool = True) -> None:
        self.position = 0
        self._file = file
        self._hash = hashlib.sha256()
        self._update = self._hash.update if hashed else _nothing

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        hashing = threading.Thread(target=self._update, args=(view,)) if len(view) > LARGE else None
        if hashing:
            hashing.start()
        else:
            self._update(view)
        done = 0
        try:
            while done < len(view):
                done += self._file.write(view[done:])
        finally:
            if hashing:
                hashing.join()
        self.position += len(view)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


@dataclass(frozen=True)
class Content:
    """What goes into a file."""

    entries: Sequence[Entry]
    metadata: Mapping[str, str]
    extras: Mapping[str, object]


def write_whole(
    path: Path, content: Content, *, overwrite: bool, verify: bool, before_rename: Callable[[], None]
) -> Written:
    """See `dreambooth.trainer.weights.write_weights`."""
    writer_for(path)
    if path.exists() and not overwrite:
        raise InputError(
            "the file exists already", where=str(path), remedy="choose another name, or allow overwriting"
        )
    temporary = path.with_name(f".{path.stem[:60]}-{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        with errors_are_said(path):
            written = write_new(temporary, content, verify=verify)
            before_rename()
            os.replace(temporary, path)
            fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return replace(written, path=path)


def write_new(path: Path, content: Content, *, verify: bool, hashed: bool = True) -> Written:
    """Write a file that is not there yet, synced and, with `verify`, read back; it stays where writing fails.

    Raises OSError; DreamboothError if it does not read back as it was meant.
    """
    writer = writer_for(path)
    with path.open("xb", buffering=0) as file:
        sink = Sink(file, hashed=hashed)
        writer(sink, content.entries, content.metadata, content.extras)
        os.fsync(file.fileno())
    if verify:
        _verify(path, content.entries)
    return Written(path, sink.position, sink.hexdigest())


@contextlib.contextmanager
def errors_are_said(path: Path) -> Iterator[None]:
    """Turns the system's errors while `path` is written into messages that name it and say what to do."""
    try:
        yield
    except OSError as error:
        raise _write_error(error, path) from error


def writer_for(path: Path) -> Writer:
    """The writer of the suffix's format. Raises InputError if there is none."""
    writer = WRITERS.get(path.suffix.lower())
    if writer is not None:
        return writer
    raise InputError(
        f"the suffix {path.suffix!r} names no format that can be written",
        where=str(path),
        remedy="end the name in .safetensors or .ckpt",
    )


def _verify(path: Path, entries: Sequence[Entry]) -> None:
    """Read the file back through the reader that everybody uses, and compare every tensor bit for bit."""
    found = READERS[path.suffix.lower()](path)
    if {entry.name for entry in entries} != set(found.tensors):
        raise _unfaithful(path, "its names")
    scratch = Scratch()
    for entry in entries:
        info = found.tensors[entry.name]
        if (info.dtype, info.shape) != (entry.dtype, entry.shape):
            raise _unfaithful(path, f"the shape of {entry.name!r}")
        back = scratch.tensor(info.dtype, info.shape)
        found.read_into(entry.name, back)
        if not same_bits(back, entry.data()):
            raise _unfaithful(path, f"the content of {entry.name!r}")


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one dtype hold the same bytes (NaN equals itself, 0.0 is not -0.0)."""
    return torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8)
    )


def _unfaithful(path: Path, what: str) -> DreamboothError:
    return DreamboothError(
        f"the file that was written does not read back as it was meant ({what}); it was removed",
        where=str(path),
        remedy="check the disk, then write it again",
    )


def _write_error(error: OSError, path: Path) -> DreamboothError:
    if error.errno in FULL:
        return DreamboothError(
            "the disk is full; what was written of the file was removed",
            where=str(path),
            remedy="make room, then write it again",
        )
    if error.errno in DENIED:
        return InputError(
            f"the file cannot be written there: {error.strerror}",
            where=str(path),
            remedy="choose a folder that exists and may be written to",
        )
    return DreamboothError(f"writing failed: {error.strerror or error}", where=str(path))
