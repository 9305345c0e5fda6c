"""What a run takes in each of its phases, line by line, before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.trainer.families import TITLES
from dreambooth.trainer.machine import DTYPES
from dreambooth.trainer.memory.passes import StepMemory, sampling_step, training_step, vae_pass
from dreambooth.trainer.models.int8 import int8_weights, is_int8
from dreambooth.trainer.optim.optimizer_table import kind_of
from dreambooth.trainer.planning.sizes import largest_tensor, optimizer_bytes, parameters

if TYPE_CHECKING:
    from dreambooth.trainer.planning.plan import Plan

CLASS_IMAGES, TRAINING, SAMPLES, RESULT_SAMPLES = (
    "class images",
    "training",
    "samples",
    "the result's samples",
)
GUIDED = 2  # forward passes of a sampling step, which go together: with the prompt and without
# cuBLAS keeps 8 to 32 MiB for each of two threads, cuDNN's convolutions what they ask for
_WORKSPACE = {"cuda": 256 * 2**20, "mps": 256 * 2**20, "cpu": 0}
# A process with torch, diffusers and accelerate imported, on Linux
_PROGRAM = {"cuda": 0, "mps": 0, "cpu": 550 * 2**20}
# An optimizer that is not torch's fused AdamW makes so many float32 numbers of the tensor at hand, and frees them
_STEP_TENSORS = 4


@dataclass(frozen=True)
class Line:
    """One part of a phase's memory, in bytes."""

    text: str
    bytes: int


@dataclass(frozen=True)
class Phase:
    """A phase of a run, and all that is there in its fullest moment. `in_turn`: text encoders, UNet and VAE are not there
    together, which takes a little longer."""

    name: str
    lines: tuple[Line, ...]
    in_turn: bool = False

    @property
    def bytes(self) -> int:
        return sum(line.bytes for line in self.lines)

    def as_json(self) -> dict[str, Any]:
        """Plain values; sizes in bytes."""
        return {
            "name": self.name,
            "bytes": self.bytes,
            "in_turn": self.in_turn,
            "lines": [{"text": line.text, "bytes": line.bytes} for line in self.lines],
        }


@dataclass(frozen=True)
class Resting:
    """What a phase of pictures needs beside the UNet, but for what is there anyway."""

    texts: list[Line]
    vae: list[Line]
    vae_dtype: torch.dtype


Ways = tuple[
    torch.dtype, torch.dtype | None, bool
]  # a UNet's dtype, autocast's, whether its weights want gradients


class Memory:
    """The memory of a plan's phases. What is counted once for a plan's passes is kept for others that are alike."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._training = plan.settings.training
        self._family = plan.base.identified.family
        self._compute = plan.machine.compute_dtype
        self._whole = plan.adapter is None
        largest = max(plan.buckets, key=lambda size: size[0] * size[1])
        self._size = largest
        self._tiled = plan.settings.images.vae_tiling == "yes"

    def phases(self, usable: int) -> list[Phase]:
        """Those that the run has, in their order; pictures with all components there if `usable` bytes are enough."""
        found = [self._caching(), self._training_phase(), self._saving()]
        if self._plan.class_images_missing:
            found.insert(0, self._class_images(usable))
        if self._plan.settings.saving.num_validation_images:
            found += [self._samples(usable), self._result_samples(usable)]
        return [replace(phase, lines=(*phase.lines, *self._always())) for phase in found]

    def least(self) -> int:
        """What the training takes at least: what lies there all the time, and the gradients if all come together."""
        there = sum(line.bytes for line in (*self._resident(), *self._always()))
        if self._training.fused_backward == "yes":
            return there
        width = DTYPES[self._training.weights_dtype].itemsize if self._whole else 4
        return there + width * sum(self._plan.trained.values())

    def _always(self) -> Iterator[Line]:
        kind = self._plan.machine.device.type
        for text, size in (
            ("workspaces of torch's libraries", _WORKSPACE),
            ("Python and its libraries", _PROGRAM),
        ):
            if size[kind]:
                yield Line(text, size[kind])

    # ---- weights -----------------------------------------------------------------------------------------------------

    def _weights(self, component: str, dtype: torch.dtype, what: str = "") -> Line:
        count = parameters(self._plan.base, component)
        return Line(f"{TITLES[component]}{what}, {_short(dtype)}", count * dtype.itemsize)

    def _loaded(self, component: str) -> Line:
        """A component as it is trained, or rests while others are."""
        dtype = self._trained_dtype(component)
        if self._trains(component):
            return self._weights(component, dtype, ", trained")
        if not is_int8(self._plan.settings):
            return self._weights(component, dtype)
        count, narrow = parameters(self._plan.base, component), int8_weights(self._plan.base, component)
        return Line(f"{TITLES[component]}, int8", narrow + (count - narrow) * dtype.itemsize)

    def _trained_dtype(self, component: str) -> torch.dtype:
        if self._whole and component in self._plan.trained:
            return DTYPES[self._training.weights_dtype]
        return self._compute

    def _vae_dtype(self, dtype: torch.dtype) -> torch.dtype:
        overflows = self._family.vae_overflows and not self._plan.settings.model.vae
        return torch.float32 if overflows else dtype

    def _texts(self) -> tuple[str, ...]:
        return tuple(part.component for part in self._family.text_encoders)

    def _resident(self) -> list[Line]:
        """What lies on the device all through the training."""
        plan = self._plan
        lines = [self._loaded("unet")]
        if plan.trains_text or plan.settings.captions.shuffle_tags:
            lines += [self._loaded(name) for name in self._texts()]
        if not plan.settings.images.cache_latents:
            lines.append(self._weights("vae", torch.float32))
        if plan.adapter is not None:
            lines.append(Line("adapter, float32", 4 * sum(plan.trained.values())))
        kept = optimizer_bytes(plan.base, plan.trained, self._training.optimizer, plan.adapter)
        kind = kind_of(self._training.optimizer)
        lines.append(Line(f"optimizer ({kind.title})", 0 if kind.paged else round(kept)))
        if self._training.use_ema:
            lines.append(Line("average of the weights (EMA), float32", 4 * sum(plan.trained.values())))
        return lines

    def _trains(self, component: str) -> bool:
        return self._whole and component in self._plan.trained

    # ---- phases ------------------------------------------------------------------------------------------------------

    def _class_images(self, usable: int) -> Phase:
        images = min(self._plan.settings.prior.sample_batch_size, self._plan.class_images_missing)
        drawn = self._plan.machine.picture_dtype
        there = [self._weights("unet", drawn)]
        return self._drawn(CLASS_IMAGES, there, self._resting_apart(), (drawn, None, False), images, usable)

    def _samples(self, usable: int) -> Phase:
        """All of the training, and what rests while it trains."""
        there = self._resident()
        texts = [self._loaded(name) for name in self._texts()]
        resting = Resting(
            [line for line in texts if line not in there],
            [line for line in [self._weights("vae", torch.float32)] if line not in there],
            torch.float32,
        )
        dtype, trained = self._trained_dtype("unet"), self._trains("unet")
        narrow = self._compute if trained and dtype != self._compute else None
        return self._drawn(SAMPLES, there, resting, (dtype, narrow, trained), self._sampled(), usable)

    def _result_samples(self, usable: int) -> Phase:
        there = [self._weights("unet", self._compute)]
        ways = (self._compute, None, False)
        return self._drawn(RESULT_SAMPLES, there, self._resting_apart(), ways, self._sampled(), usable)

    def _sampled(self) -> int:
        settings = self._plan.settings
        return min(settings.prior.sample_batch_size, settings.saving.num_validation_images)

    def _resting_apart(self) -> Resting:
        """What a model that only draws has beside its UNet."""
        vae = self._vae_dtype(self._compute)
        texts = [self._weights(name, self._compute) for name in self._texts()]
        return Resting(texts, [self._weights("vae", vae)], vae)

    def _drawn(
        self, name: str, there: list[Line], resting: Resting, ways: Ways, images: int, usable: int
    ) -> Phase:
        """A phase of pictures: a sampling step of all of them, or the decoding of one; with all components there, or, where
        that is more than is usable, with each in its turn."""
        dtype, narrow, wanted = ways
        side = self._plan.settings.images.resolution
        size, chunks = (side, side), self._plan.chunks
        step = self._counted(
            ("sampling", dtype, narrow, size, wanted, chunks),
            lambda: sampling_step(self._plan.base, dtype, narrow, size, wanted=wanted, chunks=chunks),
        ).at(GUIDED * images)
        decoding = self._counted(
            ("decode", resting.vae_dtype, size, self._tiled),
            lambda: vae_pass(self._plan.base, resting.vae_dtype, size, decode=True, tiled=self._tiled),
        )
        making = f"making pictures, {images} at once"
        together = [*there, *resting.texts, *resting.vae, Line(making, max(step, decoding))]
        if sum(line.bytes for line in (*together, *self._always())) <= usable:
            return Phase(name, tuple(together))
        moments = (
            resting.texts,
            [Line(making, step)],
            [*resting.vae, Line("decoding a picture", decoding)],
        )
        fullest = max(moments, key=lambda lines: sum(line.bytes for line in lines))
        return Phase(name, (*there, *fullest), in_turn=True)

    def _caching(self) -> Phase:
        """Encoders alone: the UNet follows when they are done, but for one that is made in 8 bit on the device."""
        there = ("unet", *self._texts()) if is_int8(self._plan.settings) else self._texts()
        lines = [*(self._loaded(name) for name in there), self._weights("vae", torch.float32)]
        if not self._plan.settings.images.cache_latents:
            return Phase("captions", tuple(lines))
        encoded = self._counted(
            ("encode", self._size, self._tiled),
            lambda: vae_pass(self._plan.base, torch.float32, self._size, decode=False, tiled=self._tiled),
        )
        return Phase("caching", (*lines, Line("encoding a picture", encoded)))

    def _training_phase(self) -> Phase:
        step = self._step()
        images, passes = self._at_once()
        fused = self._training.fused_backward == "yes"
        peak = step.peak(images, passes=passes, fused=fused)
        stepping = (0 if fused else step.gradients) + self._stepping()
        some = f"{images} image{'s' if images > 1 else ''} at once"
        what = "forward and backward pass" if fused else "gradients, forward and backward pass"
        return Phase(TRAINING, (*self._resident(), Line(f"{what}, {some}", max(peak, stepping))))

    def _stepping(self) -> int:
        """What the optimizer's step makes of the tensor at hand."""
        if self._training.optimizer == "adamw" and self._training.weights_dtype == "float32":
            return 0
        largest = largest_tensor(self._plan.base, self._plan.trained, self._plan.adapter)
        return 4 * _STEP_TENSORS * largest

    def _at_once(self) -> tuple[int, int]:
        """Images in a forward pass of one process, and forward passes whose gradients are added up."""
        images = self._training.train_batch_size * (2 if self._plan.prior else 1)
        at_once = min(images, self._training.forward_batch_size or images)
        return at_once, self._training.gradient_accumulation_steps * math.ceil(images / at_once)

    def _step(self) -> StepMemory:
        names = ("unet", *self._texts())
        dtypes = {name: self._trained_dtype(name) for name in names}
        adapter = self._plan.adapter
        key = (
            "training", is_int8(self._plan.settings), tuple(dtypes.items()), self._size, self._compute,
            self._training.gradient_checkpointing, tuple(self._plan.trained), self._plan.settings.model.clip_skip,
            self._plan.chunks,
            adapter and (adapter.kind.name, adapter.dropout, [sorted(layer.shapes.items()) for layer in adapter.layers]),
        )  # fmt: skip
        made: StepMemory = self._counted(key, lambda: training_step(self._plan, dtypes, self._size))
        return made

    def _saving(self) -> Phase:
        """A tensor leaves the device at a time."""
        largest = 4 * largest_tensor(self._plan.base, self._plan.trained, self._plan.adapter)
        return Phase("saving", (*self._resident(), Line("the tensor that is written", largest)))

    # ---- what was counted before ---------------------------------------------------------------------------------------

    def _counted(self, key: Any, count: Any) -> Any:
        configs = {name: self._plan.base.configs[name] for name in sorted(self._plan.base.configs)}
        text = json.dumps([configs, self._family.name, repr(key)], sort_keys=True, default=str)
        name = hashlib.sha256(text.encode()).hexdigest()
        if name not in _known:
            _known[name] = count()
        return _known[name]


_known: dict[str, Any] = {}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
