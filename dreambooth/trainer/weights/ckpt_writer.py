"""Writing a `.ckpt`: torch's zip of stored records, streamed, each storage aligned to 64 bytes.

The pickle holds nothing but torch's own way of naming a tensor, so that it loads with `weights_only=True` and
under the WebUI's safe unpickler.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dreambooth.shared.errors import InputError
from dreambooth.trainer.weights.base import Entry, bytes_of
from dreambooth.trainer.weights.ckpt_file import METADATA
from dreambooth.trainer.weights.restricted_pickle import STORAGES
from dreambooth.trainer.weights.sink import PIECE, Sink

ALIGNMENT = 64
FOLDER = "archive/"
DATE = 0x21
LIMIT = 0xFFFFFFFF
STORAGE_NAMES = {dtype: name for name, dtype in STORAGES.items()}


@dataclass(frozen=True)
class _Storage:
    key: str
    kind: type
    length: int


class _Tensor:
    """Pickles as the call that rebuilds a contiguous tensor over a storage."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...]) -> None:
        self.storage = storage
        self.shape = shape

    def __reduce__(self) -> Any:
        hooks: OrderedDict[str, object] = OrderedDict()
        arguments = (self.storage, 0, self.shape, _strides(self.shape), False, hooks)
        return torch._utils._rebuild_tensor_v2, arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return ("storage", obj.kind, obj.key, "cpu", obj.length)
        return None


def write(
    sink: Sink, entries: Sequence[Entry], metadata: Mapping[str, str], extras: Mapping[str, object]
) -> None:
    """Stream an archive with a `state_dict` of the entries, the extras and the metadata beside it."""
    archive = _Archive(sink)
    archive.add("data.pkl", _pickle(entries, metadata, extras))
    archive.add("byteorder", sys.byteorder.encode())
    for key, entry in enumerate(entries):
        archive.add_entry(f"data/{key}", entry)
    archive.add("version", b"3\n")
    archive.finish()


def _pickle(entries: Sequence[Entry], metadata: Mapping[str, str], extras: Mapping[str, object]) -> bytes:
    state = {}
    for key, entry in enumerate(entries):
        if entry.dtype not in STORAGE_NAMES:
            raise InputError(
                f"a .ckpt cannot hold {entry.name!r}, which is {entry.dtype}",
                remedy="write a .safetensors file instead",
            )
        kind = getattr(torch, STORAGE_NAMES[entry.dtype])
        state[entry.name] = _Tensor(
            _Storage(str(key), kind, entry.nbytes // entry.dtype.itemsize), entry.shape
        )
    top: dict[str, object] = {"state_dict": state, **extras}
    if metadata:
        top[METADATA] = dict(metadata)
    stream = io.BytesIO()
    _Pickler(stream, protocol=2).dump(top)
    return stream.getvalue()


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


class _Archive:
    """A zip archive whose records are known whole when they are written, so that nothing is patched later."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._directory: list[bytes] = []

    def add(self, name: str, data: bytes) -> None:
        self._begin(name, len(data), zlib.crc32(data))
        self._sink.write(data)

    def add_entry(self, name: str, entry: Entry) -> None:
        if entry.raw is None:
            data = entry.data()  # once, for it may be costly to make
            entry = replace(entry, data=lambda: data)
        self._begin(name, entry.nbytes, _crc(entry))
        self._sink.write_entry(entry)

    def _begin(self, name: str, size: int, crc: int) -> None:
        """The record's header, and its line in the directory."""
        path, start = (FOLDER + name).encode(), self._sink.position
        wide = struct.pack("<HHQQ", 1, 16, size, size) if size >= LIMIT else b""
        padding = -(start + 30 + len(path) + len(wide) + 4) % ALIGNMENT
        shown = min(size, LIMIT)
        common = struct.pack("<HHHHHIII", 45, 0, 0, 0, DATE, crc, shown, shown)
        extra = wide + b"FB" + struct.pack("<H", padding) + b"Z" * padding
        self._sink.write(b"PK\x03\x04" + common + struct.pack("<HH", len(path), len(extra)) + path + extra)
        self._directory.append(_directory_row(path, common, size, start))

    def finish(self) -> None:
        start = self._sink.position
        rows = b"".join(self._directory)
        count = len(self._directory)
        end = start + len(rows)
        tail = b""
        if start >= LIMIT or count >= 0xFFFF:
            tail = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, len(rows), start)
            tail += b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1)
        shown = min(count, 0xFFFF)
        tail += b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, shown, shown, len(rows), min(start, LIMIT), 0)
        self._sink.write(rows + tail)


def _crc(entry: Entry) -> int:
    if entry.raw is None:
        return zlib.crc32(bytes_of(entry.data().contiguous()))
    crc, memory = 0, memoryview(bytearray(min(PIECE, entry.nbytes)))
    for start in range(0, entry.nbytes, PIECE):
        piece = memory[: entry.nbytes - start]
        entry.raw(start, piece)
        crc = zlib.crc32(piece, crc)
    return crc


def _directory_row(path: bytes, common: bytes, size: int, start: int) -> bytes:
    """The record's line in the archive's directory; what does not fit into 32 bits follows in 64."""
    wide = struct.pack("<QQ", size, size) if size >= LIMIT else b""
    wide += struct.pack("<Q", start) if start >= LIMIT else b""
    extra = struct.pack("<HH", 1, len(wide)) + wide if wide else b""
    fields = struct.pack("<HHHHHII", len(path), len(extra), 0, 0, 0, 0, min(start, LIMIT))
    return b"PK\x01\x02" + struct.pack("<H", 45) + common + fields + path + extra
