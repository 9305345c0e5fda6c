"""Checkpoints in and out: loading, exporting a trained one, and `convert` between the forms they come in."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dreambooth.shared.errors import InputError
from dreambooth.shared.paths import check_writable, existing_parent, takes_away
from dreambooth.trainer.adapters.merging import Request, notes_on_adapters, with_adapters
from dreambooth.trainer.families import Identified
from dreambooth.trainer.models.export_file import export_entries, export_single_file, yaml_beside
from dreambooth.trainer.models.loading import (
    LoadedModel,
    canonical_state,
    check_shapes,
    load_model,
    understand,
)
from dreambooth.trainer.models.modelspec import completed
from dreambooth.trainer.models.sources import EMA_PREFIX, open_model
from dreambooth.trainer.models.write_folder import folder_bytes, write_folder
from dreambooth.trainer.saving.outputs import remove_half_written, size_text
from dreambooth.trainer.weights import Entry, WeightFile, write_weights
from dreambooth.trainer.weights.ckpt_file import CkptFile

__all__ = [
    "Conversion",
    "LoadedModel",
    "canonical_state",
    "convert",
    "export_single_file",
    "load_model",
]

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
FILE_SUFFIXES = (".safetensors", ".ckpt")
OTHER_SUFFIXES = (".pt", ".pth", ".bin", ".zip", ".onnx", ".gguf", ".yaml", ".json")
UNUSABLE_IN_CKPT = (torch.bool, torch.int16, torch.int8)


@dataclass(frozen=True)
class Conversion:
    """What `convert` did: `files` were written, `sha256` is the file's (a folder has none)."""

    identified: Identified
    files: tuple[Path, ...]
    nbytes: int
    sha256: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        found = self.identified
        lines = [
            f"{found.family.title}, {found.prediction_type}: {found.told_by}",
            f"wrote {self.files[0]} ({self.nbytes / 1e6:.1f} MB)",
            *(f"wrote {path}" for path in self.files[1:]),
            *([f"sha256 {self.sha256}"] if self.sha256 else []),
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    overwrite: bool = False,
    use_ema_weights: bool = False,
    prediction_type: str = "auto",
    adapters: Sequence[Request] = (),
    say: Callable[[str], None] = lambda note: None,
) -> Conversion:
    """Convert between single files and diffusers folders; a `dst` without .safetensors or .ckpt is a folder.

    Without a `dtype` every tensor keeps its own, bit for bit, and so does everything else that is in a file;
    with one, floating-point weights take it. `adapters` are merged into the weights in float32, and averaged weights,
    which know nothing of them, are left out then. What a killed process left half written beside `dst` is removed, which
    `say` is told. Raises InputError for whatever is wrong with the input,
    DreamboothError when the disk is full; then nothing is left behind.
    """
    src, dst = Path(src), Path(dst)
    _check_paths(src, dst, adapters)
    opened = open_model(src, use_ema_weights=use_ema_weights)
    source, description = understand(opened, prediction_type)
    description.check_complete(source)
    check_shapes(source, description)
    source = with_adapters(source, description, adapters)
    dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
    entries = export_entries(source, description, {}, dtype, keep_ema=not adapters)
    remove_half_written(dst.absolute().parent, say)
    is_folder = dst.suffix.lower() not in FILE_SUFFIXES
    needed = sum(entry.nbytes for entry in entries)
    _check_room(dst, folder_bytes(source, description, dtype) if is_folder else needed)
    notes = (
        *_notes_on_adapters(source, adapters, description.identified),
        *_notes(source, dst, entries),
        *_notes_on_marks(source, dst, entries),
    )
    if is_folder:
        nbytes = write_folder(dst, source, description, dtype=dtype, overwrite=overwrite)
        return Conversion(description.identified, (dst,), nbytes, "", notes)
    beside = yaml_beside(dst, source, description, overwrite=overwrite)
    dst.parent.mkdir(parents=True, exist_ok=True)
    written = write_weights(
        dst,
        entries,
        completed(source.metadata, description.identified, title=dst.stem),
        extras=source.extras,
        overwrite=overwrite,
        before_rename=beside.write,
    )
    files = (dst, *beside.paths)
    return Conversion(description.identified, files, written.nbytes, written.sha256, notes)


def _check_paths(src: Path, dst: Path, adapters: Sequence[Request]) -> None:
    if dst.suffix.lower() in OTHER_SUFFIXES:
        raise InputError(
            f"the suffix {dst.suffix!r} names no format that can be written",
            where=str(dst),
            remedy="end the name in .safetensors or .ckpt, or name a folder",
        )
    near = difflib.get_close_matches(dst.suffix.lower(), FILE_SUFFIXES, n=1, cutoff=0.7)
    if near and near[0] != dst.suffix.lower() and not dst.is_dir():
        raise InputError(
            f"the suffix {dst.suffix!r} is nearly {near[0]}, and would make a folder",
            where=str(dst),
            remedy=f"end the name in {near[0]} for a file, or name the folder otherwise",
        )
    read = {src: "the source", **{request.path: "the adapter" for request in adapters}}
    for path, what in read.items():
        if takes_away(dst, path) or takes_away(path, dst):
            raise InputError(
                f"this is {what} itself"
                if dst.samefile(path)
                else f"writing this would change {what}, {path}",
                where=str(dst),
                remedy="choose another name",
            )
    if dst.is_dir() and dst.suffix.lower() in FILE_SUFFIXES:
        raise InputError("this is a folder", where=str(dst), remedy="choose another name")
    check_writable(dst.absolute().parent, setting=str(dst))


def _check_room(dst: Path, needed: int) -> None:
    free = shutil.disk_usage(existing_parent(dst)).free
    if free < needed:
        raise InputError(
            f"{size_text(needed)} are to be written and {size_text(free)} are free",
            where=str(dst),
            remedy="make room, or choose another disk",
        )


def _notes_on_marks(source: WeightFile, dst: Path, entries: Sequence[Entry]) -> list[str]:
    if dst.suffix.lower() not in FILE_SUFFIXES:
        return []
    written = {entry.name for entry in entries}
    said = {
        "added, by which other programs know what it predicts": written - source.tensors.keys(),
        "left out, since it predicts something else": (source.tensors.keys() - written),
    }
    return [f"{what}: {', '.join(sorted(names))}" for what, names in said.items() if names]


def _notes_on_adapters(source: WeightFile, adapters: Sequence[Request], identified: Identified) -> list[str]:
    notes = [f"merged in: {request.path.name}, weight {request.weight:g}" for request in adapters]
    notes += notes_on_adapters(source, identified)
    if adapters and any(name.startswith(EMA_PREFIX) for name in source.tensors):
        notes.append("the averaged (EMA) weights were left out: the adapter is not in them")
    return notes


def _notes(source: WeightFile, dst: Path, entries: Sequence[Entry]) -> tuple[str, ...]:
    notes = []
    if isinstance(source, CkptFile) and source.dropped:
        notes.append(f"left out, since it is no weights: {', '.join(source.dropped)}")
    if dst.suffix.lower() == ".safetensors" and source.extras:
        notes.append(f"a .safetensors has no place for: {', '.join(source.extras)}")
    unusual = [entry.name for entry in entries if entry.dtype in UNUSABLE_IN_CKPT]
    if dst.suffix.lower() == ".ckpt" and unusual:
        notes.append(f"the WebUI refuses a .ckpt with {unusual[0]!r}, which is no ordinary number")
    return tuple(notes)
