"""Single weight files, whatever their format: opened lazily, read by offset, written one tensor at a time.

Nothing is mapped into memory unless it is asked for (`WeightFile.mapped`), since mapped pages count as resident; and
nothing a file contains is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dreambooth.shared.errors import InputError
from dreambooth.trainer.weights.base import Entry, TensorInfo, WeightFile, Written

__all__ = ["Entry", "TensorInfo", "WeightFile", "Written", "open_weights", "write_weights"]

CKPT_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")


def open_weights(path: str | Path) -> WeightFile:
    """Open a `.safetensors` or `.ckpt` file by what it contains (its name is only a hint).

    Raises InputError naming the file if it is absent, truncated, dangerous or no weight file at all.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("no such model file", where=str(path), remedy="check the path and its spelling")
    if not path.is_file():
        raise InputError("this is not a file", where=str(path), remedy="name a single weight file")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise InputError(f"it cannot be read: {error.strerror}", where=str(path)) from error
    if start[:4] == b"PK\x03\x04" or (path.suffix.lower() in CKPT_SUFFIXES and start[8:9] != b"{"):
        from dreambooth.trainer.weights.ckpt_file import CkptFile

        return CkptFile(path)
    from dreambooth.trainer.weights.safetensors_file import SafetensorsFile

    return SafetensorsFile(path)


def write_weights(
    path: str | Path,
    entries: Sequence[Entry],
    metadata: Mapping[str, str],
    *,
    extras: Mapping[str, object] | None = None,
    overwrite: bool = False,
    verify: bool = True,
    before_rename: Callable[[], None] | None = None,
) -> Written:
    """Write a weight file in the format of `path`'s suffix, whole or not at all.

    The entries are produced one at a time and go to a temporary file in the same folder, which is synced and
    renamed. With `verify`, each piece is read back from the file and compared byte by byte with what was meant, while
    the next one is written, and at the end the header is read again and compared with the entries.
    `extras` is what stands beside the `state_dict` of a `.ckpt` (plain values); `metadata` goes into a
    `.safetensors` header, and into a `.ckpt` under the key `metadata`. `before_rename` is called when the file
    is whole and about to get its name.

    Raises InputError if `path` exists and `overwrite` is not set or its suffix is unknown, DreamboothError
    when the disk is full or the file that was written does not read back as it was meant.
    """
    from dreambooth.trainer.weights.writing import Content, write_whole

    content = Content(entries, metadata, extras or {})
    return write_whole(
        Path(path), content, overwrite=overwrite, verify=verify, before_rename=before_rename or (lambda: None)
    )
