"""States: everything that a run needs to go on to the same bits, saved and loaded in this one place.

A state is a folder `state/step-N/`, written aside, synced and renamed; only then does `state/latest.json`
point to it. A reader follows the pointer, so a kill at any moment leaves the state before or the state after.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import uuid
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from dreambooth.shared.errors import DreamboothError, RunFailed
from dreambooth.shared.paths import disk_full_is_said, fsync_folder, replace, write_json
from dreambooth.trainer.weights.base import Entry
from dreambooth.trainer.weights.safetensors_file import SafetensorsFile
from dreambooth.trainer.weights.writing import Content, write_new

FORMAT = 1
POINTER = "latest.json"
PARTIAL = ".partial"
_STATE = re.compile(r"step-([0-9]+)")


@dataclass(frozen=True)
class Progress:
    """The named scalars of the loop. `step` counts finished optimizer steps."""

    step: int
    ema_updates: int = 0


@dataclass
class State:
    """What is saved: weights by component and name (float32), averages likewise, optimizer, loss scaler, and what the
    clipping of gradients remembers."""

    progress: Progress
    weights: Mapping[str, Mapping[str, torch.Tensor]]
    averages: Mapping[str, Mapping[str, torch.Tensor]]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]
    clipping: Mapping[str, Any] = field(default_factory=dict)


def _folder(states: Path, step: int) -> Path:
    return states / f"step-{step}"


# ---- saving ----------------------------------------------------------------------------------------------------


def save_state(states: Path, state: State, *, keep: int = 1) -> Path:
    """Writes a state, points to it, and removes all but the newest `keep`. Returns its folder.

    Raises DreamboothError when the disk is full; the state before is intact then.
    """
    step = state.progress.step
    final = _folder(states, step)
    with disk_full_is_said(states):
        states.mkdir(exist_ok=True)
        _remove_partial(states)
        if latest_step(states) == step:
            return final  # the same step has the same bits: a folder that may be pointed to is never touched
        aside = final.with_name(final.name + PARTIAL)
        try:
            _write(aside, state)
            if final.exists():  # a damaged one, or left by a kill between the rename and the pointer
                _discard(final)
            replace(aside, final)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        fsync_folder(states)
        write_json(states / POINTER, {"format": FORMAT, "step": step, "folder": final.name})
    _remove_old(states, step, keep)
    return final


def _write(folder: Path, state: State) -> None:
    folder.mkdir()
    for kind, parts in (("weights", state.weights), ("average", state.averages)):
        for component, tensors in parts.items():
            content = Content([_entry(name, tensor) for name, tensor in tensors.items()], {}, {})
            write_new(folder / f"{component}.{kind}.safetensors", content, verify=False, hashed=False)
    rest = {"optimizer": state.optimizer, "scaler": state.scaler, "clipping": state.clipping}
    _torch_save({name: dict(content) for name, content in rest.items()}, folder / "optimizer.pt")
    about = {
        "format": FORMAT,
        "progress": vars(state.progress),
        "weights": sorted(state.weights),
        "averages": sorted(state.averages),
    }
    write_json(folder / "state.json", about)  # syncs the folder with all that is in it


def _entry(name: str, tensor: torch.Tensor) -> Entry:
    """One tensor of a file; it leaves the card when its turn comes."""
    return Entry(name, tensor.dtype, tuple(tensor.shape), lambda: tensor.detach().cpu())


class _Sink:
    """A file for torch.save, which turns a full disk into an error that says nothing of it: this remembers."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        done = 0
        try:
            while done < len(view):
                done += self._file.write(view[done:])
        except OSError as error:
            self.error = error
            raise
        return done

    def flush(self) -> None:
        """There is nothing between this and the file."""


def _torch_save(content: Any, path: Path) -> None:
    with path.open("xb", buffering=0) as file:
        sink = _Sink(file)
        try:
            torch.save(content, sink)  # type: ignore[arg-type]
        except Exception:
            if sink.error is not None:
                raise sink.error from None
            raise
        os.fsync(file.fileno())


def _discard(folder: Path) -> None:
    """Removes a state. It loses its name first, so that half of one is never taken for a state."""
    aside = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    replace(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _remove_partial(states: Path) -> None:
    for path in states.glob(f"*{PARTIAL}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _remove_old(states: Path, step: int, keep: int) -> None:
    """Removes all but the newest `keep` states up to `step`. What cannot be removed now goes at the next save.

    A state behind `step` was left by a kill before its pointer was written: it will be made again.
    """
    there = saved_steps(states)
    kept = [number for number in there if number <= step][-keep:]
    for number in there:
        if number not in kept:
            with contextlib.suppress(OSError):  # Windows, while somebody looks into it
                _discard(_folder(states, number))


# ---- loading ---------------------------------------------------------------------------------------------------


def saved_steps(states: Path) -> list[int]:
    """The steps whose states are there, oldest first."""
    if not states.is_dir():
        return []
    names = (_STATE.fullmatch(path.name) for path in states.iterdir() if (path / "state.json").is_file())
    return sorted(int(name[1]) for name in names if name)


def latest_step(states: Path) -> int | None:
    """The step that the pointer names, or of the newest state where that is gone; None while nothing was saved."""
    there = saved_steps(states)
    try:
        pointed = int(json.loads((states / POINTER).read_bytes())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        pointed = -1
    return pointed if pointed in there else max(there, default=None)


def load_state(
    states: Path,
    step: int | None = None,
    *,
    device: str | torch.device = "cpu",
    weights_alone: bool = False,
) -> State:
    """The newest state, or that of `step`. Raises RunFailed if it is not there or does not read back whole.

    `weights_alone`: without optimizer and scaler, which only who trains on needs (and the library they came from).
    """
    chosen = latest_step(states) if step is None else step
    there = saved_steps(states)
    if chosen is None or chosen not in there:
        raise RunFailed(
            f"there is no saved state{'' if step is None else f' of step {step}'}",
            where=str(states),
            remedy=f"states that are there: {', '.join(map(str, there)) or 'none'}",
        )
    about, folder = _about(states, chosen), _folder(states, chosen)
    try:
        weights, averages = (
            {name: _read_all(folder / f"{name}.{kind}.safetensors") for name in about[listed]}
            for kind, listed in (("weights", "weights"), ("average", "averages"))
        )
        saved: dict[str, Any] = {"optimizer": {}, "scaler": {}}
        if not weights_alone:
            saved = _read_optimizer(folder / "optimizer.pt", device)
        return State(
            progress=Progress(**about["progress"]),
            weights=weights,
            averages=averages,
            optimizer=saved["optimizer"],
            scaler=saved["scaler"],
            clipping=saved.get("clipping", {}),  # older versions had none to save
        )
    except DreamboothError as error:  # of a file, which it names
        raise _damaged(states, chosen, f"{Path(error.where).name}: {error.what}") from error
    except Exception as error:
        raise _damaged(states, chosen, str(error)) from error


def _read_optimizer(path: Path, device: str | torch.device) -> dict[str, Any]:
    """What lies beside the weights. Raises ValueError if the file is not whole, and whatever torch does otherwise."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "TypedStorage is deprecated"
            )  # torch 2.1 warns of its own loading
            saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        is_disks = (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        )  # which a cut file leads torch to
        if is_disks or _is_whole(path):
            raise
        raise ValueError(f"{path.name} is damaged") from error  # torch's own words are about its unpacking
    return saved


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error):
        return False


def _read_all(path: Path) -> dict[str, torch.Tensor]:
    file = SafetensorsFile(path)
    return {name: file.read(name) for name in file.tensors}


def _about(states: Path, step: int) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((_folder(states, step) / "state.json").read_bytes())
        return upgraded(about)
    except (OSError, ValueError, AttributeError) as error:
        raise _damaged(states, step, f"state.json: {error}") from error


def _damaged(states: Path, step: int, why: str) -> RunFailed:
    others = [number for number in saved_steps(states) if number != step]
    goes_on = f"from step {others[-1]}" if others else "from the beginning, since there is no other state"
    return RunFailed(
        f"the saved state cannot be read ({why})",
        where=str(_folder(states, step)),
        remedy=f"delete this folder: `resume` then goes on {goes_on}",
    )


def upgraded(about: dict[str, Any]) -> dict[str, Any]:
    """A state's description in today's format; the place where an older one is brought up to date."""
    if about.get("format") != FORMAT:
        raise ValueError(f"its format {about.get('format')!r} is not known to this version")
    missing = {"progress", "weights", "averages"} - about.keys()
    if missing:
        raise ValueError(f"it does not say its {', '.join(sorted(missing))}")
    return about
