"""Whether a checkpoint file is whole: the WebUI "loads" a torn one, and what it leaves behind is half detached."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

from ..shared.errors import InputError

_BLOCK = 1 << 22
_LARGEST_HEADER = 100 << 20
_REMEDY = "export it again"


def check_whole(path: Path, *, sha256: str = "") -> None:
    """Raises InputError unless `path` is a whole .safetensors or .ckpt file, of that hash where one is given."""
    try:
        problem = _safetensors_problem(path) if path.suffix.lower() == ".safetensors" else _ckpt_problem(path)
        if not problem and sha256 and file_sha256(path) != sha256.lower():
            problem = "is not the file that was exported: its content has changed"
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
    if problem:
        raise InputError(f"the file {problem}", where=str(path), remedy=_REMEDY)


def metadata(path: Path) -> dict[str, str]:
    """What a whole .safetensors file says of itself; {} for any other file."""
    if path.suffix.lower() != ".safetensors":
        return {}
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    found = header.get("__metadata__") or {}
    return {str(name): str(value) for name, value in found.items()}


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in lower case hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _safetensors_problem(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
            return "is no safetensors file"
        try:
            header = json.loads(file.read(length))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            end = max((entry["data_offsets"][1] for entry in tensors), default=0)
        except (ValueError, TypeError, AttributeError, KeyError, IndexError):
            return "is no safetensors file"
    if not tensors:
        return "holds no weights"
    return "" if size == 8 + length + end else "is not whole"


def _ckpt_problem(path: Path) -> str:
    with path.open("rb"):  # is_zipfile says False of what cannot be read
        pass
    return "" if zipfile.is_zipfile(path) else "is no checkpoint, or not whole"
