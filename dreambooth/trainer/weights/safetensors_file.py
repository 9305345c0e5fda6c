"""The safetensors format: eight bytes of length, a JSON header, then the tensors' bytes.

Read and written by ourselves: the reader never maps the file (mapped pages count as resident memory), and the
writer streams, so that one tensor is in memory at a time and a full disk is met as the OSError that it is.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dreambooth.shared.errors import InputError
from dreambooth.trainer.weights.base import (
    Entry,
    OpenedFile,
    RawBytes,
    TensorInfo,
    fill,
    nbytes_of,
    read_whole,
)
from dreambooth.trainer.weights.refusals import AGAIN, not_a_model
from dreambooth.trainer.weights.sink import Sink

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000
METADATA = "__metadata__"


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: absolute offset of its first byte."""

    info: TensorInfo
    offset: int


class SafetensorsFile:
    """A `.safetensors` file, read by offset."""

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = OpenedFile(path)
        header, start = _read_header(self._file)
        self.metadata = _metadata(header.pop(METADATA, {}), path)
        self._stored = {name: self._locate(name, row, start) for name, row in header.items()}
        self.tensors = {name: stored.info for name, stored in self._stored.items()}
        self.extras: dict[str, object] = {}

    def _locate(self, name: str, row: Any, start: int) -> Stored:
        try:
            dtype, shape = DTYPES.get(row["dtype"]), tuple(int(size) for size in row["shape"])
            begin, end = (int(offset) for offset in row["data_offsets"])
        except (TypeError, KeyError, ValueError) as error:
            raise _broken(self.path, f"the header's entry {name!r} is malformed") from error
        if dtype is None:
            raise InputError(
                f"the tensor {name!r} has the dtype {row['dtype']!r}, which is not supported",
                where=str(self.path),
                remedy="convert the file to float16, bfloat16 or float32 with the tool that made it",
            )
        if begin < 0 or end - begin != nbytes_of(dtype, shape):
            raise _broken(self.path, f"the size of {name!r} does not agree with its shape")
        if start + end > self._file.size:
            raise InputError(
                f"the file is truncated: {name!r} should end at byte {start + end}, the file has "
                f"{self._file.size}",
                where=str(self.path),
                remedy=AGAIN,
            )
        return Stored(TensorInfo(dtype, shape, end - begin), start + begin)

    def place(self, name: str) -> tuple[int, int]:
        """Offset and length of a tensor's bytes."""
        stored = self._stored[name]
        return stored.offset, stored.info.nbytes

    def read(self, name: str) -> torch.Tensor:
        """The tensor in memory of its own, in its stored dtype."""
        return read_whole(self, name)

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Fill `out` with the tensor, cast to `out`'s dtype."""
        fill(out, self.tensors[name], self.raw(name))

    def raw(self, name: str) -> RawBytes:
        """What reads the tensor's bytes."""
        offset = self._stored[name].offset
        return lambda start, memory: self._file.read_at(offset + start, memory)

    def mapped(self, name: str) -> torch.Tensor | None:
        """The tensor in the file's own pages, copied where it is written to; None where that cannot be."""
        stored = self._stored[name]
        return self._file.mapped(stored.offset, stored.info)


def _read_header(file: OpenedFile) -> tuple[dict[str, Any], int]:
    with file.open() as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= MAX_HEADER:
            raise not_a_model(file.path, start + stream.read(504))
        if 8 + length > file.size:
            text = stream.read(504)
            if not text.startswith(b"{"):
                raise not_a_model(file.path, start + text)
            raise InputError("the file is truncated within its header", where=str(file.path), remedy=AGAIN)
        text = stream.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(file.path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _broken(file.path, "its header is not a table of tensors")
    return header, 8 + length


def _metadata(found: Any, path: Path) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _broken(path, "its metadata is not a table of texts")
    return found


def _broken(path: Path, what: str) -> InputError:
    return InputError(f"this safetensors file is damaged: {what}", where=str(path), remedy=AGAIN)


def layout(entries: Sequence[Entry], metadata: Mapping[str, str]) -> tuple[bytes, list[int]]:
    """The header of a file with these entries in this order, and each entry's absolute offset.

    The tensors' bytes are ordered by the size of their elements, largest first, so that each is aligned to it
    (readers view them in place); the header keeps the given order.
    """
    placed = sorted(range(len(entries)), key=lambda index: -entries[index].dtype.itemsize)
    offsets, end = [0] * len(entries), 0
    for index in placed:
        offsets[index] = end
        end += entries[index].nbytes
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    for entry, offset in zip(entries, offsets, strict=True):
        header[entry.name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = struct.pack("<Q", len(text)) + text
    return start, [len(start) + offset for offset in offsets]


def write(
    sink: Sink, entries: Sequence[Entry], metadata: Mapping[str, str], extras: Mapping[str, object]
) -> None:
    """Stream a safetensors file into `sink`. `extras` have no place in the format."""
    start, offsets = layout(entries, metadata)
    sink.write(start)
    placed = sorted(range(len(entries)), key=lambda index: (offsets[index], entries[index].nbytes))
    for index in placed:
        sink.write_entry(entries[index])
