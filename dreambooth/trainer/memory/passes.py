"""What the passes of a run take beside the weights: the training step's, a sampling step's, the VAE's.

The very modules and functions that a run uses are run on the meta device, with a number of images that tells what is there
for each image from what is there anyway: what is said for any number is what they really ask for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from dreambooth.trainer.memory.counting import STORAGES_ARE_NOTICED, Count, counting
from dreambooth.trainer.memory.curve import Curve, Moment, curve_of, repeated
from dreambooth.trainer.memory.models import blocks_twice, in_training, resting, telling
from dreambooth.trainer.memory.repeats import Row, shortened
from dreambooth.trainer.models.convert import LoadedModel
from dreambooth.trainer.models.embeddings import Embeddings, unet_arguments
from dreambooth.trainer.models.tiles import use_tiles

if TYPE_CHECKING:
    from dreambooth.trainer.planning.plan import Plan

DOWNSCALE = 8
LATENTS = 4
TOKENS = 77
Size = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True)
class StepMemory:
    """A training step's forward and backward pass, in bytes beside weights, optimizer and averages.

    `together`: with the gradients of all tensors that are there at each moment, as they come. `apart`: without those that
    are complete: what is there where each is used up at once, or where all are there from an earlier batch.
    `gradients`: all of them.
    """

    together: Curve
    apart: Curve
    gradients: int

    def peak(self, images: int, *, passes: int, fused: bool) -> int:
        """With so many images in each of `passes` passes; `fused`: gradients are used up as soon as they are there."""
        if fused:
            return self.apart.at(images)
        return self.together.at(images) if passes == 1 else self.apart.at(images) + self.gradients


def training_step(
    plan: Plan, dtypes: Mapping[str, torch.dtype], size: Size, *, every_block: bool = False
) -> StepMemory:
    """The step of a plan whose components are loaded as `dtypes` says, for images of `size`.

    `every_block`: blocks that do what their neighbours do are computed too, which says the same and takes longer.
    """
    denoiser = in_training(plan, dtypes)
    images = telling([denoiser])
    inputs = _inputs(plan, images, size, told=not plan.trains_text)
    narrow = None if plan.machine.mixed_precision == "no" else plan.machine.compute_dtype
    if every_block or not STORAGES_ARE_NOTICED:  # there no part of a history is exact enough to be repeated
        live, complete = _history(denoiser, inputs, narrow, images, [])
    else:
        with shortened(denoiser, blocks_twice(plan, denoiser)) as rows:
            live, complete = _history(denoiser, inputs, narrow, images, rows)
    without = [(fixed - done, each) for (fixed, each), (done, _) in zip(live, complete, strict=True)]
    return StepMemory(curve_of(live), curve_of(without), complete[-1][0])


def _history(
    denoiser: nn.Module,
    inputs: tuple[Any, ...],
    narrow: torch.dtype | None,
    images: int,
    rows: list[Row],
) -> tuple[list[Moment], list[Moment]]:
    """One forward and backward pass: what is there after each operation, and how much of that is complete gradients."""
    weights = [*denoiser.parameters(), *denoiser.buffers()]
    marks: list[tuple[int, int]] = []  # after how many operations another gradient was complete, and its size
    with counting(narrow, images) as (count, autocast):
        for tensor in weights:
            count.hold(tensor)
        there = count.live
        handles = [
            tensor.register_post_accumulate_grad_hook(functools.partial(_note, count, marks))  # type: ignore[no-untyped-call]
            for tensor in denoiser.parameters()
            if tensor.requires_grad
        ]
        for row in rows:
            row.watch(count)
        prediction = denoiser(*inputs)
        loss = functional.mse_loss(prediction.float(), torch.empty_like(prediction).float())
        for row in rows:
            row.forgotten(count, autocast)
        autocast.end()
        loss.backward()  # type: ignore[no-untyped-call]
        count.note()
    for handle in handles:
        handle.remove()
    for tensor in weights:
        tensor.grad = None
    live = [(size - there - images * each, each) for size, each in count.history]
    parts = [part for row in rows for part in row.parts()]
    return repeated(live, parts), repeated(_complete(marks, len(live)), parts)


def _note(count: Count, marks: list[tuple[int, int]], parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    marks.append((len(count.history), count.hold(parameter.grad)))


def _complete(marks: list[tuple[int, int]], operations: int) -> list[Moment]:
    """How much of gradients was complete at each operation."""
    found: list[Moment] = []
    complete = 0
    for when, size in marks:
        found += [(complete, 0)] * (when - len(found))
        complete += size
    return found + [(complete, 0)] * (operations - len(found))


def _inputs(plan: Plan, images: int, size: Size, *, told: bool) -> tuple[Any, ...]:
    """What the denoiser is fed; `told`: text encoders' output, else token ids."""
    family, unet = plan.base.identified.family, plan.base.configs["unet"]
    with torch.device("meta"):
        noisy = torch.empty(images, int(unet["in_channels"]), size[1] // DOWNSCALE, size[0] // DOWNSCALE)
        timesteps = torch.empty(images, dtype=torch.int64)
        sizes = torch.empty(images, 6) if family.sized else None
        condition: Any = torch.empty(images, plan.chunks, TOKENS, dtype=torch.int64)
        if told:
            condition = embeddings(plan.base, images, plan.chunks, torch.float32)
    return noisy, timesteps, condition, sizes


def embeddings(base: LoadedModel, prompts: int, chunks: int, dtype: torch.dtype) -> Embeddings:
    """Text encoders' output of prompts with so many chunks of 75 tokens, without memory."""
    family = base.identified.family
    width = int(base.configs["unet"]["cross_attention_dim"])
    pooled = [base.configs[part.component] for part in family.text_encoders if part.pooled]
    with torch.device("meta"):
        context = torch.empty(prompts, chunks * TOKENS, width, dtype=dtype)
        end = torch.empty(prompts, int(pooled[-1]["projection_dim"]), dtype=dtype) if pooled else None
    return Embeddings(context, end)


def sampling_step(
    base: LoadedModel,
    dtype: torch.dtype,
    narrow: torch.dtype | None,
    size: Size,
    *,
    wanted: bool,
    chunks: int = 1,
) -> Curve:
    """A UNet's forward pass alone, by the images that it takes at once (with guidance two for each picture).

    `wanted`: its weights want gradients, so that autocast keeps what it casts. `chunks` are those of the prompts.
    """
    unet = resting(base, "unet", dtype).requires_grad_(wanted)
    family = base.identified.family

    def predict(images: int) -> None:
        with torch.device("meta"):
            seen = torch.empty(
                images, int(base.configs["unet"]["in_channels"]), size[1] // DOWNSCALE, size[0] // DOWNSCALE, dtype=dtype
            )  # fmt: skip
            timestep = torch.empty((), dtype=torch.int64)
            sizes = torch.empty(images, 6) if family.sized else None
        unet(
            seen,
            timestep,
            **unet_arguments(embeddings(base, images, chunks, dtype), sizes),
            return_dict=False,
        )

    return _forward_curve(unet, predict, narrow, telling([unet]))


def vae_pass(base: LoadedModel, dtype: torch.dtype, size: Size, *, decode: bool, tiled: bool = False) -> int:
    """The peak of encoding a picture, or of decoding one; they go one at a time."""
    vae = resting(base, "vae", dtype)
    use_tiles(vae, tiled)

    def work(images: int) -> None:
        with torch.device("meta"):
            if decode:
                channels = int(base.configs["vae"]["latent_channels"])
                vae.decode(
                    torch.empty(images, channels, size[1] // DOWNSCALE, size[0] // DOWNSCALE, dtype=dtype)
                )
            else:
                vae.encode(torch.empty(images, 3, size[1], size[0], dtype=dtype))

    return _forward_curve(vae, work, None, 1).at(1)


def _forward_curve(
    module: nn.Module, work: Callable[[int], None], narrow: torch.dtype | None, images: int
) -> Curve:
    with torch.no_grad(), counting(narrow, images) as (count, _):
        for tensor in (*module.parameters(), *module.buffers()):
            count.hold(tensor)
        there = count.live
        work(images)
    return curve_of((live - there - images * each, each) for live, each in count.history)
