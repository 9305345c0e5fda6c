"""The `.ckpt` format: torch's zip archive of stored records, read by offset; see `restricted_pickle`."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dreambooth.shared.errors import InputError
from dreambooth.trainer.weights.base import (
    OpenedFile,
    RawBytes,
    TensorInfo,
    bytes_of,
    fill,
    nbytes_of,
    read_whole,
)
from dreambooth.trainer.weights.refusals import AGAIN, not_a_model
from dreambooth.trainer.weights.restricted_pickle import Malformed, Refused, StoredView, load

MAX_PICKLE = 1 << 29
MAX_EXPANDED = 1 << 26
LOCAL_HEADER = 30
METADATA = "metadata"
PLAIN = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Record:
    """A stored record of the archive: where its bytes begin and how many there are."""

    offset: int
    size: int


class CkptFile:
    """A `.ckpt` file. `dropped` names what stands beside its weights and is not plain (callbacks, optimizers)."""

    format = "ckpt"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = OpenedFile(path)
        self._records = _records(self._file)
        top = self._unpickle()
        state = top.get("state_dict", top)
        if not isinstance(state, dict):
            raise InputError("its state_dict is no table of tensors", where=str(path), remedy=AGAIN)
        self._views: dict[str, StoredView] = {}
        for name, value in state.items():
            if isinstance(name, str) and isinstance(value, StoredView):
                self._views[name] = self._checked(name, value)
        if not self._views:
            raise InputError("this .ckpt holds no tensors", where=str(path), remedy="name a checkpoint")
        beside = {key: value for key, value in top.items() if key not in ("state_dict", *self._views)}
        self.extras = {key: value for key, value in beside.items() if isinstance(key, str) and _plain(value)}
        self.dropped = tuple(str(key) for key in beside if key not in self.extras)
        self.metadata = _metadata(self.extras)
        self.tensors = {
            name: TensorInfo(view.dtype, view.shape, nbytes_of(view.dtype, view.shape))
            for name, view in self._views.items()
        }

    def place(self, name: str) -> tuple[int, int]:
        """Offset and length of a tensor's bytes (of the first and up to the last, for a view with gaps)."""
        view = self._views[name]
        size = view.dtype.itemsize
        return self._records[view.storage.key].offset + view.offset * size, _span(view) * size

    def read(self, name: str) -> torch.Tensor:
        """The tensor in memory of its own, contiguous, in its stored dtype."""
        return read_whole(self, name)

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Fill `out` with the tensor, cast to `out`'s dtype."""
        view, info, raw = self._views[name], self.tensors[name], self.raw(name)
        if raw is not None:
            fill(out, info, raw)
        elif info.nbytes:
            span = torch.empty(_span(view), dtype=view.dtype)
            self._file.read_at(self.place(name)[0], bytes_of(span))
            out.copy_(span.as_strided(view.shape, view.stride).reshape(out.shape))

    def raw(self, name: str) -> RawBytes | None:
        """What reads the tensor's bytes; None for a view whose elements do not lie in its own order."""
        if not _is_contiguous(self._views[name]):
            return None
        offset, _ = self.place(name)
        return lambda start, memory: self._file.read_at(offset + start, memory)

    def mapped(self, name: str) -> torch.Tensor | None:
        """The tensor in the file's own pages, copied where it is written to; None where that cannot be."""
        if not _is_contiguous(self._views[name]):
            return None
        return self._file.mapped(self.place(name)[0], self.tensors[name])

    def _unpickle(self) -> dict[Any, Any]:
        record = self._records["data.pkl"]
        if record.size > MAX_PICKLE:
            raise InputError("its pickle is implausibly large", where=str(self.path), remedy=AGAIN)
        data = bytearray(record.size)
        self._file.read_at(record.offset, memoryview(data))
        try:
            top = load(bytes(data))
        except Refused as refused:
            raise InputError(
                f"this .ckpt asks for {refused}, which no checkpoint needs; reading it as others do could run "
                "any program, so it is refused",
                where=str(self.path),
                remedy="do not open it elsewhere; take the .safetensors form from a source that you trust",
            ) from refused
        except Malformed as error:
            raise InputError(f"its pickle is damaged: {error}", where=str(self.path), remedy=AGAIN) from error
        if not isinstance(top, dict):
            raise InputError(
                "this .ckpt is no table of tensors", where=str(self.path), remedy="name a checkpoint"
            )
        return top

    def _checked(self, name: str, view: StoredView) -> StoredView:
        record = self._records.get(view.storage.key)
        nbytes = nbytes_of(view.dtype, view.shape)
        if record is None:
            raise InputError(f"the bytes of {name!r} are missing", where=str(self.path), remedy=AGAIN)
        fits = len(view.shape) == len(view.stride) and (
            (view.offset + _span(view)) * view.dtype.itemsize <= record.size
        )
        if not fits or nbytes > max(record.size, MAX_EXPANDED):
            raise InputError(
                f"the shape of {name!r} does not agree with its bytes", where=str(self.path), remedy=AGAIN
            )
        return view


def _records(file: OpenedFile) -> dict[str, Record]:
    """The archive's records by their name within its one folder, storages by their key alone."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            members = archive.infolist()
        folder = _folder(file.path, [member.filename for member in members])
        with file.open() as stream:
            found = {member.filename: _record(file, stream, member) for member in members}
    except zipfile.BadZipFile as error:
        with file.open() as stream:
            start = stream.read(512)
        if start[:4] != b"PK\x03\x04":
            raise not_a_model(file.path, start) from error
        raise InputError("the file is truncated or damaged", where=str(file.path), remedy=AGAIN) from error
    if found.get(f"{folder}byteorder", Record(0, 0)).size == len("big"):
        raise InputError(
            "it was written on a big-endian machine, which is not read",
            where=str(file.path),
            remedy="take the .safetensors form",
        )
    place = len(folder)
    return {name[place:].removeprefix("data/"): record for name, record in found.items()}


def _folder(path: Path, names: list[str]) -> str:
    """The one folder in which torch puts its records, with its slash."""
    folder = next((name[: -len("data.pkl")] for name in names if _is_pickle(name)), None)
    if folder is not None and f"{folder}constants.pkl" not in names:
        return folder
    kind = "a TorchScript program" if folder is not None else "a zip archive"
    raise InputError(f"this is {kind}, not a model", where=str(path), remedy="name a checkpoint")


def _is_pickle(name: str) -> bool:
    return name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)


def _record(file: OpenedFile, stream: Any, member: zipfile.ZipInfo) -> Record:
    stream.seek(member.header_offset)
    header = stream.read(LOCAL_HEADER)
    if len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("a record without a header")
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise InputError(
            f"{member.filename!r} is compressed or encrypted, as torch never writes it",
            where=str(file.path),
            remedy="unpack the archive if it is one",
        )
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    offset = member.header_offset + LOCAL_HEADER + names
    if offset + member.file_size > file.size:
        raise zipfile.BadZipFile("a record beyond the end")
    return Record(offset, member.file_size)


def _span(view: StoredView) -> int:
    """How many elements lie from the view's first to its last."""
    if 0 in view.shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(view.shape, view.stride, strict=True))


def _is_contiguous(view: StoredView) -> bool:
    expected = 1
    for size, step in zip(reversed(view.shape), reversed(view.stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


def _plain(value: object) -> bool:
    if isinstance(value, PLAIN):
        return True
    if isinstance(value, dict):
        return all(isinstance(key, (str, int)) and _plain(item) for key, item in value.items())
    return isinstance(value, (list, tuple)) and all(map(_plain, value))


def _metadata(extras: dict[str, object]) -> dict[str, str]:
    """Our own files keep what a `.safetensors` header would say under one key."""
    found = extras.get(METADATA)
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        return {}
    del extras[METADATA]
    return dict(found)
