"""States: everything that a run needs to go on to the same bits, saved and loaded in this one place.

A state is a folder `state/step-N/`, written aside, synced and renamed; only then does `state/latest.json`
point to it. A reader follows the pointer, so a kill at any moment leaves the state before or the state after.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dreambooth.shared.errors import DreamboothError, RunFailed
from dreambooth.shared.paths import disk_full_is_said, fsync_folder, write_json

FORMAT = 1
POINTER = "latest.json"


@dataclass(frozen=True)
class Progress:
    """The named scalars of the loop. `step` counts finished optimizer steps."""

    step: int
    ema_updates: int = 0
    skipped: int = 0


@dataclass
class State:
    """What is saved: weights by component and name (float32), averages likewise, optimizer and loss scaler."""

    progress: Progress
    weights: Mapping[str, Mapping[str, torch.Tensor]]
    averages: Mapping[str, Mapping[str, torch.Tensor]]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]
    threads: int


def _folder(states: Path, step: int) -> Path:
    return states / f"step-{step}"


def _sync_files(folder: Path) -> None:
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    fsync_folder(folder)


def save_state(states: Path, state: State, *, keep: int = 1) -> Path:
    """Writes a state, points to it, and removes all but the newest `keep`. Returns its folder.

    Raises DreamboothError when the disk is full; the state before is intact then.
    """
    states.mkdir(exist_ok=True)
    final = _folder(states, state.progress.step)
    aside = final.with_name(f"{final.name}.partial")
    _remove_partial(states)
    if latest_step(states) == state.progress.step:
        return final  # the same step has the same bits: nothing to write, and the pointer's folder is never touched
    try:
        with disk_full_is_said(aside), _errors_of_writers(aside, _bytes_of(state)):
            aside.mkdir()
            _write(aside, state)
            _sync_files(aside)
            if final.exists():  # left by a kill between the rename and the pointer
                shutil.rmtree(final)
            aside.rename(final)
            fsync_folder(states)
            write_json(states / POINTER, {"format": FORMAT, "step": state.progress.step, "folder": final.name})
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _remove_old(states, keep)
    return final


def _bytes_of(state: State) -> int:
    tensors = [t for part in (state.weights, state.averages) for named in part.values() for t in named.values()]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return weights + sum(
        value.numel() * value.element_size()
        for slot in state.optimizer.get("state", {}).values()
        for value in slot.values()
        if isinstance(value, torch.Tensor)
    )


@contextlib.contextmanager
def _errors_of_writers(path: Path, needed: int) -> Any:
    """safetensors and torch.save lose the error number of a full disk: ask the disk whether that was it."""
    try:
        yield
    except (OSError, DreamboothError):
        raise
    except Exception as error:
        free = shutil.disk_usage(path.parent).free
        if free > needed:
            raise
        raise DreamboothError(
            f"the state could not be saved ({error}); the disk has {free / 2**20:.0f} MB left",
            where=str(path),
            remedy="make room, then go on with `resume`: what was saved before is intact",
        ) from error


def _write(folder: Path, state: State) -> None:
    for kind, parts in (("weights", state.weights), ("average", state.averages)):
        for component, tensors in parts.items():
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(plain, folder / f"{component}.{kind}.safetensors")
    torch.save({"optimizer": dict(state.optimizer), "scaler": dict(state.scaler)}, folder / "optimizer.pt")
    about = {
        "format": FORMAT,
        "progress": vars(state.progress),
        "threads": state.threads,
        "weights": sorted(state.weights),
        "averages": sorted(state.averages),
    }
    write_json(folder / "state.json", about)


def _remove_partial(states: Path) -> None:
    for path in states.glob("*.partial"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _remove_old(states: Path, keep: int) -> None:
    """Removes all but the newest `keep` states. What cannot be removed now goes at the next save."""
    for step in saved_steps(states)[:-keep]:
        shutil.rmtree(_folder(states, step), ignore_errors=True)


def saved_steps(states: Path) -> list[int]:
    """The steps whose states are there, oldest first."""
    if not states.is_dir():
        return []
    names = [path.name for path in states.iterdir() if (path / "state.json").is_file()]
    steps = [name.removeprefix("step-") for name in names if not name.endswith(".partial")]
    return sorted(int(step) for step in steps if step.isdigit())


def latest_step(states: Path) -> int | None:
    """The step that the pointer names; None while nothing was saved."""
    try:
        pointed = json.loads((states / POINTER).read_bytes())
        step = int(pointed["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if (_folder(states, step) / "state.json").is_file() else None


def load_state(states: Path, step: int | None = None, *, device: str | torch.device = "cpu") -> State:
    """The newest state, or that of `step`. Raises RunFailed if it is not there or does not read back whole."""
    chosen = latest_step(states) if step is None else step
    if chosen is None or not (_folder(states, chosen) / "state.json").is_file():
        there = ", ".join(str(number) for number in saved_steps(states)) or "none"
        raise RunFailed(
            f"there is no saved state{'' if step is None else f' of step {step}'}",
            where=str(states),
            remedy=f"states that are there: {there}",
        )
    folder = _folder(states, chosen)
    try:
        about = upgraded(json.loads((folder / "state.json").read_bytes()))
        parts = {
            kind: {name: load_file(folder / f"{name}.{kind}.safetensors") for name in about[listed]}
            for kind, listed in (("weights", "weights"), ("average", "averages"))
        }
        saved = torch.load(folder / "optimizer.pt", map_location=device, weights_only=True)
    except Exception as error:
        raise RunFailed(
            f"the saved state cannot be read ({error})",
            where=str(folder),
            remedy="resume from another state if there is one: remove this folder and latest.json, or start anew",
        ) from error
    return State(
        progress=Progress(**about["progress"]),
        weights=parts["weights"],
        averages=parts["average"],
        optimizer=saved["optimizer"],
        scaler=saved["scaler"],
        threads=int(about["threads"]),
    )


def upgraded(about: dict[str, Any]) -> dict[str, Any]:
    """A state's description in today's format; the place where an older one is brought up to date."""
    if about.get("format") != FORMAT:
        raise ValueError(f"its format {about.get('format')!r} is not known to this version")
    return about
