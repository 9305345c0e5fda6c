"""A folder of tensors that were computed once, each in a safetensors file of its own under a hash of its key."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from dreambooth.shared.errors import DreamboothError

Key = Mapping[str, object]  # what a tensor depends on: plain values

# Raised when what is stored under a key changes its meaning
_FORMAT = 1


class TensorStore:
    """Tensors by key. A file is whole or absent; one that is damaged counts as absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: Key) -> torch.Tensor | None:
        """The tensor under a key, None if there is none."""
        name = _name(key)
        with contextlib.suppress(OSError):
            return _unpacked(self._path(name).read_bytes(), name)
        return None

    def has(self, key: Key) -> bool:
        """Whether there is a file for a key; whether it is whole shows when it is read."""
        return self._path(_name(key)).is_file()

    def put(self, key: Key, tensor: torch.Tensor) -> None:
        """Stores a tensor. Raises `DreamboothError` if it cannot be written."""
        name = _name(key)
        path = self._path(name)
        beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(_packed(tensor, name))
            os.replace(beside, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink()
            if isinstance(error, PermissionError) and self.get(key) is not None:
                return  # Windows: another process has just put the same there and holds it open
            raise _cannot_write(self.folder, error) from error

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name[2:]}.safetensors"


def module_id(module: torch.nn.Module) -> str:
    """A hash of a module's weights: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _name(key: Key) -> str:
    text = json.dumps({"format": _FORMAT, **key}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _bytes_of(tensor: torch.Tensor) -> Any:
    """The tensor's memory, as something that hashes and checksums take."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _packed(tensor: torch.Tensor, name: str) -> bytes:
    tensor = tensor.detach().cpu().contiguous()
    about = {"key": name, "crc32": str(zlib.crc32(_bytes_of(tensor)))}
    return safetensors.torch.save({"tensor": tensor}, about)


def _unpacked(data: bytes, name: str) -> torch.Tensor | None:
    # the file is not synced, since it can be made again: after a power cut it may hold anything
    try:
        about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        tensor = safetensors.torch.load(data)["tensor"]
    except (ValueError, LookupError, TypeError, safetensors.SafetensorError):
        return None
    whole = about.get("key") == name and about.get("crc32") == str(zlib.crc32(_bytes_of(tensor)))
    return tensor if whole else None


def _cannot_write(folder: Path, error: OSError) -> DreamboothError:
    if error.errno == errno.ENOSPC:
        return DreamboothError(
            "no space is left on the disk of the cache",
            where=str(folder),
            remedy="Make room, then resume: what is cached already is kept.",
        )
    return DreamboothError(
        f"the cache cannot be written ({error.strerror})",
        where=str(folder),
        remedy="Check the folder's rights.",
    )
