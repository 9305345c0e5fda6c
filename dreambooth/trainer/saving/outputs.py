"""Where results go: their names, who has claimed them, how large they will be, whether there is room."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth.shared.aside import remove_leftovers
from dreambooth.shared.claims import CLAIM_SUFFIX, holder
from dreambooth.shared.commands import command_line
from dreambooth.shared.errors import InputError, quoted
from dreambooth.shared.lock import is_held
from dreambooth.shared.paths import (
    check_file_name,
    check_writable,
    existing_parent,
    takes_away,
    write_json,
)
from dreambooth.shared.settings import ResultSettings, Settings
from dreambooth.trainer.adapters.peft_config import DIFFUSERS_FILE, PEFT_CONFIG, PEFT_FILE

# what stands behind the model's name where none is given, for results that are no models
_ENDINGS = (".safetensors", ".ckpt")
_WORDS = {"lora": "lora", "lycoris": "lycoris"}
RUN_ID_KEY, SETTINGS_KEY = "dreambooth.run_id", "dreambooth.settings"
# What a run reads, as it is called when a result would take its place: of models, each file of theirs is needed
_MODELS = {
    "model": "the model that this run begins with",
    "vae": "the VAE that this run uses",
    "init_from": "the adapter that this run goes on from",
}


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


def outputs_of(settings: Settings, *, run: Path | None = None) -> Outputs:
    """Where the results go. Raises InputError for a name that is no file name, is taken, or leaves its folder.

    No result takes the place of what the run reads, whatever `overwrite` says.
    An empty name becomes the model's with "-dreambooth", and a number when that is taken. `run` is the folder of
    a run that is resumed, whose names they are already.
    """
    result, model = settings.result, Path(settings.model.model)
    suffix = _suffix(result)
    folder = Path(result.output_dir) if result.output_dir else model.absolute().parent
    if result.output_name:
        made = Outputs(folder, result.output_name if run is not None else asked_name(result), suffix)
        check_file_name(made.name, setting="output_name")
        _check_inputs(made, settings)
        if run is None:
            _check_free(made, settings)
        else:
            _check_own(made, run)
    else:
        made = _first_free(folder, f"{model.stem}-{_WORDS.get(result.output_kind, 'dreambooth')}", suffix)
        _check_inputs(made, settings)
    check_writable(folder, setting="output_dir")
    return made


def asked_name(result: ResultSettings) -> str:
    """The name that `output_name` means: the ending that is written anyway may stand in it. Raises InputError for what is
    no file name, and for another ending than the result's."""
    name, suffix = check_file_name(result.output_name, setting="output_name"), _suffix(result)
    ending = next((one for one in _ENDINGS if name.lower().endswith(one)), "")
    if ending in ("", suffix):
        return check_file_name(name[: len(name) - len(ending)], setting="output_name")
    if not suffix:
        raise InputError(
            f"{quoted(name)} ends in {ending}, and the result is a folder",
            where="output_name",
            remedy="leave the ending out",
        )
    is_choice = result.output_kind == "checkpoint"
    raise InputError(
        f"{quoted(name)} ends in {ending}, and the result is a {suffix} file",
        where="output_name",
        remedy=f"leave the ending out, or set output_format: {ending[1:]}"
        if is_choice
        else "leave the ending out",
    )


def _suffix(result: ResultSettings) -> str:
    if result.output_kind == "diffusers":
        return ""
    if result.output_kind in _WORDS and result.output_format != "safetensors":
        raise InputError(
            f"an adapter is never written as .{result.output_format}",
            where="output_format",
            remedy="use output_format: safetensors",
        )
    return f".{result.output_format}"


def _first_free(folder: Path, stem: str, suffix: str) -> Outputs:
    number = 1
    while True:
        made = Outputs(folder, stem if number == 1 else f"{stem}-{number}", suffix)
        if not made.final.exists() and claimant(made) is None:
            return made
        number += 1


def _check_free(outputs: Outputs, settings: Settings) -> None:
    claimed = claimant(outputs)
    if claimed is not None:
        raise _claimed(outputs, claimed)
    if outputs.final.is_dir() and outputs.suffix:
        raise InputError(f"{outputs.final} is a folder", where="output_name", remedy="choose another name")
    taken = [outputs.final] if outputs.final.exists() else _taken_steps(outputs, settings)
    if taken and not settings.result.overwrite:
        raise InputError(
            f"{taken[0]} is there already", where="output_name",
            remedy="choose another name, or set overwrite: yes to replace it",
        )  # fmt: skip


def _check_inputs(outputs: Outputs, settings: Settings) -> None:
    for path in (outputs.final, *_taken_steps(outputs, settings)):
        check_takes_nothing_away(path, settings)


def check_takes_nothing_away(path: Path, settings: Settings) -> None:
    """Raises InputError if writing `path` would take away, or change, what the run reads."""
    named = {
        "model": settings.model.model,
        "vae": settings.model.vae,
        "init_from": settings.adapters.init_from,
    }
    models = [
        (read, _MODELS[key]) for key, name in named.items() if name for read in _read_of(key, Path(name))
    ]
    for read, what in models:
        if takes_away(path, read) or takes_away(read, path):
            raise _would_take(path, f"{what}: {read}")
    for concept in settings.concepts.concepts:
        for folder in filter(None, (concept.instance_data_dir, concept.class_data_dir)):
            if takes_away(path, Path(folder)):
                raise _would_take(path, f"images of this run: {folder}")


def _read_of(key: str, named: Path) -> list[Path]:
    """What is read of a model or an adapter: of an adapter's folder, which may hold other things too, its own files."""
    if key != "init_from" or not named.is_dir():
        return [named]
    return [named / name for name in (PEFT_FILE, PEFT_CONFIG, DIFFUSERS_FILE)]


def _would_take(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} would take the place of {what}",
        where="output_name",
        remedy="choose another name, or another output_dir",
    )


def _check_own(outputs: Outputs, run: Path) -> None:
    claimed = claimant(outputs)
    if claimed is not None and claimed.resolve() != run.resolve():
        raise _claimed(outputs, claimed)


def _taken_steps(outputs: Outputs, settings: Settings) -> list[Path]:
    """The files that have the name of a checkpoint that this run would write on the way."""
    every, steps = settings.result.export_steps, settings.training.max_train_steps
    if not every or not outputs.folder.is_dir():
        return []
    # letters' case is left to the file system, which may see none
    name = re.compile(re.escape(outputs.name) + r"-(\d+)" + re.escape(outputs.suffix), re.IGNORECASE)
    found = [int(match[1]) for path in outputs.folder.iterdir() if (match := name.fullmatch(path.name))]
    written = {outputs.at_step(step) for step in found if step % every == 0 and step < steps}
    return sorted(path for path in written if path.exists())


def _claimed(outputs: Outputs, run: Path) -> InputError:
    if is_held(run / "lock"):
        return InputError(
            f"{quoted(outputs.final.name)} is being made at this moment by the run {quoted(run.name)}",
            where="output_name",
            remedy=f"choose another name, wait until that run ends, or stop it (`stop {command_line(run)}`)",
        )
    return InputError(
        f"{quoted(outputs.final.name)} belongs to the run {quoted(run.name)}, which has not ended",
        where="output_name",
        remedy=f"choose another name, go on with that run (`resume {command_line(run)}`), or delete that run",
    )


def claimant(outputs: Outputs) -> Path | None:
    """The run folder that has claimed these names; None if nobody has, or that run was deleted."""
    run = holder(outputs.claim)
    return run if run is not None and run.is_dir() else None


def claim(outputs: Outputs, run: Path) -> None:
    """Claims the names for a run; `release` gives them back when its result is written.

    A run's own claim, made in an earlier life, is taken over. Raises InputError if another run has the names.
    """
    outputs.folder.mkdir(parents=True, exist_ok=True)
    content = {"run": str(run)}
    try:
        with outputs.claim.open("x", encoding="utf-8") as file:  # of two that come at once, one is refused
            json.dump(content, file)
    except FileExistsError:
        _check_own(outputs, run)
        write_json(outputs.claim, content)


def remove_half_written(folder: Path, say: Callable[[str], None]) -> None:
    """Removes what killed processes left in a folder that is written into, whole gigabytes, and says each."""
    for name, size in remove_leftovers(folder).items():
        say(f"removed {name} ({size_text(size)}), which a killed process had left half written")


def release(outputs: Outputs) -> None:
    """Ends a claim."""
    outputs.claim.unlink(missing_ok=True)


def release_own(outputs: Outputs, run: Path) -> None:
    """Ends a claim if it is this run's."""
    claimed = claimant(outputs)
    if claimed is not None and claimed.resolve() == run.resolve():
        release(outputs)


@dataclass(frozen=True)
class PlannedFile:
    """A file or folder that a run will write: the bytes of all of it that is there at once, and those of them that
    an earlier life of the run has written."""

    path: Path
    size: int
    what: str
    there: int = 0


@dataclass(frozen=True)
class Volume:
    """One disk that is written to: what is needed on it at most at once, and what is free, in bytes."""

    path: Path
    needed: int
    free: int


def volumes(files: Sequence[PlannedFile]) -> list[Volume]:
    """The disks that `files` go to, each once, with the sum of what is still to be written there."""
    found: dict[int, Volume] = {}
    for file in files:
        place = existing_parent(file.path)
        place = place if place.is_dir() else place.parent  # it is there and will be replaced
        device = place.stat().st_dev
        before = found.get(device)
        needed = max(0, file.size - file.there) + (before.needed if before else 0)
        found[device] = Volume(before.path if before else place, needed, shutil.disk_usage(place).free)
    return list(found.values())


def check_room(files: Sequence[PlannedFile]) -> list[Volume]:
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
