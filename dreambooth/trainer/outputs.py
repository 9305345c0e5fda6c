"""Where results go: their names, who has claimed them, how large they will be, whether there is room."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from dreambooth.shared.errors import InputError
from dreambooth.shared.lock import is_held
from dreambooth.shared.paths import check_file_name, check_writable, existing_parent, write_json
from dreambooth.shared.settings import Settings

CLAIM_SUFFIX = ".claimed-by-a-run"
RUN_ID_KEY = "dreambooth.run_id"


@dataclass(frozen=True)
class Outputs:
    """The result's files: `final`, and one for each step that is exported on the way."""

    folder: Path
    name: str
    suffix: str

    @property
    def final(self) -> Path:
        return self.folder / f"{self.name}{self.suffix}"

    def at_step(self, step: int) -> Path:
        return self.folder / f"{self.name}-{step}{self.suffix}"

    @property
    def claim(self) -> Path:
        return self.folder / f"{self.name}{CLAIM_SUFFIX}"


def outputs_of(settings: Settings, *, resumed: bool) -> Outputs:
    """Where the results go. Raises InputError for a name that is no file name, is taken, or leaves its folder.

    An empty name becomes the model's with "-dreambooth", and a number when that is taken.
    """
    result, model = settings.result, Path(settings.model.model)
    suffix = "" if result.output_kind == "diffusers" else f".{result.output_format}"
    folder = Path(result.output_dir) if result.output_dir else model.absolute().parent
    if result.output_name:
        name = check_file_name(result.output_name, setting="output_name")
        made = Outputs(folder, name, suffix)
        if not resumed:
            _check_free(made, overwrite=result.overwrite)
    else:
        made = _first_free(folder, f"{model.stem}-dreambooth", suffix)
    check_writable(folder, setting="output_dir")
    return made


def _first_free(folder: Path, stem: str, suffix: str) -> Outputs:
    number = 1
    while True:
        made = Outputs(folder, stem if number == 1 else f"{stem}-{number}", suffix)
        if not made.final.exists() and claimant(made) is None:
            return made
        number += 1


def _check_free(outputs: Outputs, *, overwrite: bool) -> None:
    claimed = claimant(outputs)
    if claimed is not None and (is_held(claimed / "lock") or not overwrite):
        raise InputError(
            f"{outputs.final.name} is being made by the run {claimed.name}",
            where="output_name",
            remedy=f"choose another name, go on with that run (`resume {claimed}`), or delete its folder",
        )
    if outputs.final.exists() and not overwrite:
        raise InputError(
            f"{outputs.final} is there already", where="output_name",
            remedy="choose another name, or set overwrite: yes to replace it",
        )  # fmt: skip
    if outputs.final.is_dir() and outputs.suffix:
        raise InputError(f"{outputs.final} is a folder", where="output_name", remedy="choose another name")


def claimant(outputs: Outputs) -> Path | None:
    """The run folder that has claimed these names; None if nobody has, or that run was deleted."""
    try:
        run = Path(json.loads(outputs.claim.read_bytes())["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return run if run.is_dir() else None


def claim(outputs: Outputs, run: Path) -> None:
    """Claims the names for a run; `release` gives them back when its result is written."""
    outputs.folder.mkdir(parents=True, exist_ok=True)
    write_json(outputs.claim, {"run": str(run)})


def release(outputs: Outputs) -> None:
    """Ends a claim."""
    outputs.claim.unlink(missing_ok=True)


@dataclass(frozen=True)
class PlannedFile:
    """A file or folder that a run will write; `size` in bytes, `copies` at most at once."""

    path: Path
    size: int
    what: str


@dataclass(frozen=True)
class Volume:
    """One disk that is written to: what is needed on it at most at once, and what is free, in bytes."""

    path: Path
    needed: int
    free: int


def volumes(files: list[PlannedFile]) -> list[Volume]:
    """The disks that `files` go to, each once, with the sum of what they need there."""
    found: dict[int, Volume] = {}
    for file in files:
        place = existing_parent(file.path)
        device = place.stat().st_dev
        before = found.get(device)
        needed = file.size + (before.needed if before else 0)
        found[device] = Volume(before.path if before else place, needed, shutil.disk_usage(place).free)
    return list(found.values())


def check_room(files: list[PlannedFile]) -> list[Volume]:
    """Raises InputError if a disk has not the room that `files` need; returns the volumes."""
    found = volumes(files)
    for volume in found:
        if volume.needed > volume.free:
            raise InputError(
                f"the disk has {size_text(volume.free)} free, and this run needs {size_text(volume.needed)}",
                where=str(volume.path),
                remedy="make room, or put output_dir and runs_dir on another disk",
            )
    return found


def size_text(size: float) -> str:
    """`2130000000` is "2.13 GB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{int(size)} bytes"
