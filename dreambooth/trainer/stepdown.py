"""What a run does when memory runs out all the same: it steps down by one rung, says so, and makes the same step again.

The rungs of a training step, each of which leaves it the same step: all blocks of the UNet are computed twice instead
of kept; then the batch goes through the model in parts of half the images, down to one. What a run came to is kept in
its folder, so that it goes on like that when it is resumed.

Only a step that did not reach the weights is made again. Within a backward pass that steps the weights itself
(`fused_backward`) nobody knows which ones were stepped: there the run goes back to its last saved state.
"""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from dreambooth.shared.errors import RunFailed
from dreambooth.shared.events import Emit
from dreambooth.shared.paths import write_json
from dreambooth.shared.settings import Settings
from dreambooth.trainer.memory.remedies import what_a_run_leaves
from dreambooth.trainer.models.tiles import TILE
from dreambooth.trainer.objectives import Losses
from dreambooth.trainer.optim.optimizers import Stepper
from dreambooth.trainer.processes import ALONE, Processes

NAME = "stepped_down.json"
Rung = Mapping[str, Any]  # settings by name, with what a run came to

# What allocators say that have no error of their own: torch's on a CPU (Windows, Linux), CUDA's and its libraries', which
# take memory of their own, Apple's, and Windows when its paging file is full
_SAID = (
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "cublas_status_alloc_failed",
    "cusolver_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "unable to find a valid cudnn algorithm",
    "hiperroroutofmemory",
    "paging file is too small",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, the card's or the computer's."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(said in str(error).lower() for said in _SAID)


def first_line(error: BaseException) -> str:
    """What an allocator says, without its advice."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no more to be had"


def free_memory() -> None:
    """Gives back what nobody holds any more, to the device and to other programs."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


# ---- what a run came to --------------------------------------------------------------------------------------------


def read_rungs(folder: Path) -> dict[str, Any]:
    """What the run in a folder came to, {} where memory never ran out."""
    try:
        found = json.loads((folder / NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if type(value) is _KINDS.get(name)}


def keep_rung(folder: Path, rung: Rung) -> None:
    """Has the run be resumed with this rung, and those before it."""
    write_json(folder / NAME, {**read_rungs(folder), **rung})


def gone_down(settings: Settings, rung: Rung, folder: Path, processes: Processes, where: str) -> Settings:
    """The settings with which a phase before the training goes on, in less memory; the run's folder keeps the rung.

    Several processes end instead, and go on with it when they are resumed: then RunFailed is raised, of what happened
    `where`.
    """
    keep_rung(folder, rung)
    if processes.count > 1:
        raise RunFailed(
            f"process {processes.index}: {where}; several processes cannot step down each by itself",
            remedy=f"`resume` goes on with {described(rung)}",
        )
    return stepped_down(settings, rung)


def stepped_down(settings: Settings, rungs: Rung) -> Settings:
    """The settings as the run goes on with them; one that asks for less by itself stays."""
    training, prior, images = settings.training, settings.prior, settings.images
    if "gradient_checkpointing" in rungs:
        training = dataclasses.replace(training, gradient_checkpointing=rungs["gradient_checkpointing"])
    if "forward_batch_size" in rungs:
        most = min(training.forward_batch_size or rungs["forward_batch_size"], rungs["forward_batch_size"])
        training = dataclasses.replace(training, forward_batch_size=most)
    if "sample_batch_size" in rungs:
        most = min(prior.sample_batch_size, rungs["sample_batch_size"])
        prior = dataclasses.replace(prior, sample_batch_size=most)
    if "vae_tiling" in rungs:
        images = dataclasses.replace(images, vae_tiling=rungs["vae_tiling"])
    return dataclasses.replace(settings, training=training, prior=prior, images=images)


def described(rungs: Rung) -> str:
    """`gradient_checkpointing yes, forward_batch_size 2`, with what each means."""
    return ", ".join(_TITLES[name].format(value) for name, value in rungs.items())


_KINDS = {
    "gradient_checkpointing": str, "forward_batch_size": int, "sample_batch_size": int, "vae_tiling": str,
}  # fmt: skip
_TITLES = {
    "gradient_checkpointing": "gradient_checkpointing: {} (the UNet's blocks are computed twice instead of kept)",
    "forward_batch_size": "forward_batch_size: {} (so many images go through the model at once)",
    "sample_batch_size": "sample_batch_size: {} (so many pictures are made at once)",
    "vae_tiling": "vae_tiling: {} (pictures go through the VAE in tiles)",
}


# ---- the rungs -----------------------------------------------------------------------------------------------------


def next_rung(settings: Settings, images: int) -> dict[str, Any]:
    """What a step that ran out of memory is made with next; {} where there is nothing left.

    `images` go through the model at once where nothing is cut.
    """
    training = settings.training
    if training.gradient_checkpointing != "yes":
        return {"gradient_checkpointing": "yes"}
    if training.fused_backward == "yes":  # parts would need the gradients that it drops
        return {}
    most = min(training.forward_batch_size or images, images)
    return {"forward_batch_size": (most + 1) // 2} if most > 1 else {}


def tiles_help(settings: Settings, side: int) -> bool:
    """Whether tiles are left to step down to, for pictures whose longer side is so many pixels."""
    return settings.images.vae_tiling != "yes" and side > TILE


class GoBack(Exception):
    """A step that may have reached some of the weights cannot be made again."""


class Engine(Protocol):
    """What steps down: `loop.Engine`, with the place where gradients become weights."""

    @property
    def stepper(self) -> Stepper: ...
    @property
    def rate(self) -> float: ...
    def step(self, step: int) -> Losses | None: ...
    def check_finite(self) -> None: ...


class SteppingDown:
    """An engine that makes a step again, in less memory, when memory ran out in it.

    `change` has the engine go on with a rung; the run's `folder` keeps it. `images` go through the model at once where
    nothing is cut. Several processes wait for each other in a step, so they end, and go on with the rung when resumed.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        folder: Path,
        emit: Emit,
        *,
        images: int,
        change: Callable[[Rung], None],
        processes: Processes = ALONE,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._folder = folder
        self._emit = emit
        self._images = images
        self._change = change
        self._processes = processes
        self._known = read_rungs(folder)

    @property
    def rate(self) -> float:
        return self._engine.rate

    def check_finite(self) -> None:
        self._engine.check_finite()

    def step(self, step: int) -> Losses | None:
        """As the engine's. Raises RunFailed when nothing is left to step down to, and GoBack when the step may have
        reached the weights."""
        while True:
            try:
                return self._engine.step(step)
            except Exception as error:
                if not is_out_of_memory(error):
                    self._check_others(step, error)
                    raise
                why = first_line(error)
            self._step_down(step, why)  # only here is what the error held on to free

    def _step_down(self, step: int, why: str) -> None:
        stepper, where = self._engine.stepper, f"memory ran out in step {step + 1} ({why})"
        stepper.optimizer.zero_grad(set_to_none=True)
        free_memory()
        rung = next_rung(self._settings, self._images)
        if not rung or (stepper.touched and self._settings.training.fused_backward != "yes"):
            raise self._last(where)
        keep_rung(self._folder, rung)
        if self._processes.count > 1:
            raise self._together(f"process {self._processes.index}: {where}", rung)
        if stepper.touched:
            raise GoBack(where)
        self._change(rung)
        self._settings = stepped_down(self._settings, rung)
        self._emit(
            "warning",
            text=f"{where}: the step is made again, and the run goes on, with {described(rung)}; nothing is lost",
            memory={"step": step, **rung},
        )

    def _last(self, where: str) -> RunFailed:
        if self._settings.training.fused_backward == "yes":
            when = ", with gradient_checkpointing on"
        elif self._engine.stepper.touched:
            when = ", when the optimizer took its step"
        else:
            when = ", with gradient_checkpointing on and one image at a time"
        return RunFailed(
            where + when,
            remedy=f"what would help: {what_a_run_leaves(self._settings)}, or that other programs leave the card",
        )

    def _together(self, where: str, rung: Rung) -> RunFailed:
        return RunFailed(
            f"{where}; several processes cannot step down within a step",
            remedy=f"`resume` goes on with {described(rung)}",
        )

    def _check_others(self, step: int, error: Exception) -> None:
        """Raises RunFailed if an error means that another process has left, in whose step memory ran out."""
        rungs = read_rungs(self._folder)
        if self._processes.count > 1 and isinstance(error, RuntimeError) and rungs != self._known:
            new = {name: value for name, value in rungs.items() if self._known.get(name) != value}
            raise self._together(f"memory ran out in another process in step {step + 1}", new) from error
