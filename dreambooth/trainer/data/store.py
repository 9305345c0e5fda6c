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
# What is kept of earlier runs: 75,000 images of 512 pixels
MOST_BYTES = 10 * 10**9


class TensorStore:
    """Tensors by key. A file is whole or absent; one that is damaged counts as absent.

    A file's time of change is that of its last use, so that `trim` knows which ones nobody has wanted for longest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._used: set[Path] = set()

    def get(self, key: Key) -> torch.Tensor | None:
        """The tensor under a key, None if there is none."""
        name = _name(key)
        path = self._path(name)
        self._used.add(path)
        with contextlib.suppress(OSError):
            found = _unpacked(path.read_bytes(), name)
            os.utime(path)
            return found
        return None

    def has(self, key: Key) -> bool:
        """Whether there is a file for a key; whether it is whole shows when it is read."""
        path = self._path(_name(key))
        self._used.add(path)
        return path.is_file()

    def put(self, key: Key, tensor: torch.Tensor) -> None:
        """Stores a tensor. Raises `DreamboothError` if it cannot be written."""
        name = _name(key)
        path = self._path(name)
        self._used.add(path)
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

    def trim(self, most: int = MOST_BYTES) -> int:
        """Removes what was used longest ago until at most `most` bytes are left, but nothing that this store was asked
        for, and gives the number of bytes removed. Whoever else wants a removed one makes it again."""
        found = []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(OSError):  # gone meanwhile
                about = path.stat()
                found.append((about.st_mtime, about.st_size, path))
        excess = sum(size for _, size, _ in found) - most
        removed = 0
        for _, size, path in sorted(found):
            if removed >= excess:
                break
            if path not in self._used:
                with contextlib.suppress(OSError):  # gone meanwhile, or held open on Windows
                    path.unlink()
                    removed += size
        return removed

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
