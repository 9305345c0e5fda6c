"""Writing a weight file whole or not at all: temporary name, sync, reading back, rename."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dreambooth.shared.aside import aside
from dreambooth.shared.errors import DreamboothError, InputError
from dreambooth.shared.paths import fsync_folder
from dreambooth.trainer.weights import ckpt_file, ckpt_writer, safetensors_file
from dreambooth.trainer.weights.base import Entry, WeightFile, Written
from dreambooth.trainer.weights.sink import Sink

Writer = Callable[[Sink, Sequence[Entry], Mapping[str, str], Mapping[str, object]], None]


class PlacedFile(WeightFile, Protocol):
    """A weight file whose tensors lie each in one run of bytes."""

    def place(self, name: str) -> tuple[int, int]:
        """Offset and length of a tensor's bytes."""
        ...


READERS: dict[str, Callable[[Path], PlacedFile]] = {
    ".safetensors": safetensors_file.SafetensorsFile,
    ".ckpt": ckpt_file.CkptFile,
}
WRITERS: dict[str, Writer] = {".safetensors": safetensors_file.write, ".ckpt": ckpt_writer.write}
FULL = (errno.ENOSPC, errno.EDQUOT)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


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
    _check_free(path, overwrite)
    with errors_are_said(path), aside(path) as temporary:
        written = write_new(temporary, content, verify=verify, final=path)
        _check_free(path, overwrite)  # minutes may have passed
        before_rename()
        os.replace(temporary, path)
        fsync_folder(path.parent)
    return written


def _check_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise InputError(
            "the file exists already",
            where=str(path),
            remedy="choose another name, or replace it (--overwrite)",
        )


def write_new(
    path: Path, content: Content, *, verify: bool, hashed: bool = True, final: Path | None = None
) -> Written:
    """Write a file that is not there yet, synced and, with `verify`, read back; it stays where writing fails.

    `final` is the name that it will get, if that is another: it tells the format and stands in messages.
    Raises OSError; DreamboothError if it does not read back as it was meant.
    """
    final = final or path
    writer = writer_for(final)
    with Sink(path, hashed=hashed, checked=verify) as sink:
        writer(sink, content.entries, content.metadata, content.extras)
        sink.finish()
        wrong = sink.wrong or (_wrong_header(sink, final, content.entries) if verify else "")
    if wrong:
        raise DreamboothError(
            f"the file that was written does not read back as it was meant ({wrong}); it was removed",
            where=str(final),
            remedy="check the disk, then write it again",
        )
    return Written(final, sink.position, sink.hexdigest())


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


def _wrong_header(sink: Sink, final: Path, entries: Sequence[Entry]) -> str:
    """Open the file with the reader that everybody uses: it must find every tensor where its bytes were put.

    The bytes themselves were compared as they were written. What is wrong, "" if nothing.
    """
    found = READERS[final.suffix.lower()](sink.path)
    if [entry.name for entry in entries] != list(found.tensors):
        return "its names"
    for entry in entries:
        info = found.tensors[entry.name]
        same = (info.dtype, info.shape) == (entry.dtype, entry.shape)
        if not same or found.place(entry.name) != sink.places[entry.name]:
            return f"the place of {entry.name!r}"
    return ""


def _write_error(error: OSError, path: Path) -> DreamboothError:
    if error.errno in FULL:
        return DreamboothError(
            "the disk is full; what was written of the file was removed",
            where=str(path),
            remedy="make room, then write it again",
        )
    if error.errno == errno.EFBIG:
        return InputError(
            "the disk's file system cannot hold a file of this size",
            where=str(path),
            remedy="choose a disk with another file system, or a smaller output_dtype",
        )
    if error.errno in DENIED:
        return InputError(
            f"the file cannot be written there: {error.strerror}",
            where=str(path),
            remedy="choose a folder that exists and may be written to",
        )
    return DreamboothError(f"writing failed: {error.strerror or error}", where=str(path))
