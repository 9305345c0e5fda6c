"""What the passes of a run take beside the weights: the training step's, a sampling step's, the VAE's.

The very modules and functions that a run uses are run on the meta device, once with two images and once with four, so
that what is said for any number of images is what they really ask for.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from dreambooth.trainer import assembly, text
from dreambooth.trainer.convert import LoadedModel
from dreambooth.trainer.embeddings import Embeddings, unet_arguments
from dreambooth.trainer.engine import Denoiser
from dreambooth.trainer.int8 import is_int8, quantise
from dreambooth.trainer.loading import empty_module
from dreambooth.trainer.memory.counting import Count, counting
from dreambooth.trainer.memory.curve import Curve, curve_of
from dreambooth.trainer.tiles import use_tiles

if TYPE_CHECKING:
    from dreambooth.trainer.plan import Plan

IMAGES = (2, 4)  # with one image some operations make no tensor that they make with more
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


def meta_model(base: LoadedModel, dtypes: Mapping[str, torch.dtype]) -> LoadedModel:
    """The components named, of these dtypes, without memory."""
    model = LoadedModel(base.identified, base.source, base.description)
    for name, dtype in dtypes.items():
        model.components[name] = _made(name, base.configs[name], dtype)
    return model


def _made(component: str, config: Mapping[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    module = empty_module(component, config)
    # diffusers' own `to` warns of what is none of our business
    return torch.nn.Module.to(module, dtype=dtype).eval().requires_grad_(False)


def _resting(base: LoadedModel, component: str, dtype: torch.dtype) -> torch.nn.Module:
    """A component that is not changed by what is counted with it, made once."""
    config = base.configs[component]
    key = component, json.dumps(config, sort_keys=True, default=str), dtype
    if key not in _rested:
        _rested.clear()  # they weigh little, but a module has many parts
        _rested[key] = _made(component, config, dtype)
    return _rested[key]


_rested: dict[tuple[str, str, torch.dtype], torch.nn.Module] = {}


def training_step(plan: Plan, dtypes: Mapping[str, torch.dtype], size: Size) -> StepMemory:
    """The step of a plan whose components are loaded as `dtypes` says, for images of `size`."""
    trained_text = plan.trains_text
    family = plan.base.identified.family
    model = meta_model(plan.base, {name: dtypes[name] for name in family.components if name != "vae"})
    if is_int8(plan.settings):
        for name, module in model.components.items():
            quantise(module, dtypes[name], torch.device("meta"))
    weights = assembly.trained_weights(plan, model)
    weights.ema = None
    encoders = text.encoders_of(model.components, family) if trained_text else []
    denoiser = Denoiser(model.components["unet"], encoders, family, plan.settings.model.clip_skip)
    parameters = [parameter for *_, parameter in weights.parameters() if parameter.requires_grad]
    narrow = None if plan.machine.mixed_precision == "no" else plan.machine.compute_dtype
    live: list[list[int]] = []
    without: list[list[int]] = []
    gradients = 0
    for images in IMAGES:
        history = _History(denoiser, parameters, narrow)
        history.step(_inputs(plan, images, size, told=not trained_text))
        live.append(history.live)
        without.append(history.without)
        gradients = history.complete
    return StepMemory(curve_of(live[0], live[1], IMAGES), curve_of(without[0], without[1], IMAGES), gradients)


class _History:
    """One forward and backward pass: what is there after each operation, with complete gradients and without them."""

    def __init__(
        self, denoiser: torch.nn.Module, parameters: Sequence[torch.Tensor], narrow: torch.dtype | None
    ) -> None:
        self._denoiser = denoiser
        self._parameters = parameters
        self._narrow = narrow
        self.live: list[int] = []
        self.without: list[int] = []
        self.complete = 0

    def step(self, inputs: tuple[Any, ...]) -> None:
        with counting(self._narrow) as (count, autocast):
            for tensor in (*self._denoiser.parameters(), *self._denoiser.buffers()):
                count.hold(tensor)
            there = count.live
            marks: list[tuple[int, int]] = []  # after how many operations how much of gradients was complete
            hooks = [
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    functools.partial(self._note, count, marks)
                )
                for parameter in self._parameters
            ]
            prediction = self._denoiser(*inputs)
            loss = functional.mse_loss(prediction.float(), torch.empty_like(prediction).float())
            autocast.end()
            loss.backward()  # type: ignore[no-untyped-call]
            for hook in hooks:
                hook.remove()
        for parameter in self._parameters:
            parameter.grad = None
        self._split(count, there, marks)

    def _note(self, count: Count, marks: list[tuple[int, int]], parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        self.complete += count.hold(parameter.grad)
        marks.append((len(count.history), self.complete))

    def _split(self, count: Count, there: int, marks: list[tuple[int, int]]) -> None:
        complete, at = 0, iter([*marks, (len(count.history) + 1, 0)])
        when, amount = next(at)
        for number, live in enumerate(count.history):
            while number >= when:
                complete = amount
                when, amount = next(at)
            self.live.append(live - there)
            self.without.append(live - there - complete)


def _inputs(plan: Plan, images: int, size: Size, *, told: bool) -> tuple[Any, ...]:
    """What the denoiser is fed; `told`: text encoders' output, else token ids."""
    family, unet = plan.base.identified.family, plan.base.configs["unet"]
    chunks = 1
    with torch.device("meta"):
        noisy = torch.empty(images, int(unet["in_channels"]), size[1] // DOWNSCALE, size[0] // DOWNSCALE)
        timesteps = torch.empty(images, dtype=torch.int64)
        sizes = torch.empty(images, 6) if family.sized else None
        condition: Any = torch.empty(images, chunks, TOKENS, dtype=torch.int64)
        if told:
            condition = embeddings(plan.base, images, torch.float32)
    return noisy, timesteps, condition, sizes


def embeddings(base: LoadedModel, prompts: int, dtype: torch.dtype) -> Embeddings:
    """Text encoders' output, without memory."""
    family = base.identified.family
    width = int(base.configs["unet"]["cross_attention_dim"])
    pooled = [base.configs[part.component] for part in family.text_encoders if part.pooled]
    with torch.device("meta"):
        context = torch.empty(prompts, TOKENS, width, dtype=dtype)
        end = torch.empty(prompts, int(pooled[-1]["projection_dim"]), dtype=dtype) if pooled else None
    return Embeddings(context, end)


def sampling_step(
    base: LoadedModel, dtype: torch.dtype, narrow: torch.dtype | None, size: Size, *, wanted: bool
) -> Curve:
    """A UNet's forward pass alone, by the images that it takes at once (with guidance two for each picture).

    `wanted`: its weights want gradients, so that autocast keeps what it casts.
    """
    unet = _resting(base, "unet", dtype).requires_grad_(wanted)
    family = base.identified.family

    def predict(images: int) -> None:
        with torch.device("meta"):
            seen = torch.empty(
                images, int(base.configs["unet"]["in_channels"]), size[1] // DOWNSCALE, size[0] // DOWNSCALE, dtype=dtype
            )  # fmt: skip
            timestep = torch.empty((), dtype=torch.int64)
            sizes = torch.empty(images, 6) if family.sized else None
        unet(seen, timestep, **unet_arguments(embeddings(base, images, dtype), sizes), return_dict=False)

    return _forward_curve([unet], predict, narrow)


def vae_pass(base: LoadedModel, dtype: torch.dtype, size: Size, *, decode: bool, tiled: bool = False) -> int:
    """The peak of encoding a picture, or of decoding one; they go one at a time."""
    vae: Any = _resting(base, "vae", dtype)
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

    return _forward_curve([vae], work, None, images=(1,)).at(1)


def _forward_curve(
    modules: Sequence[torch.nn.Module],
    work: Callable[[int], None],
    narrow: torch.dtype | None,
    images: tuple[int, ...] = IMAGES,
) -> Curve:
    histories = []
    for number in images:
        with torch.no_grad(), counting(narrow) as (count, _):
            for module in modules:
                for tensor in (*module.parameters(), *module.buffers()):
                    count.hold(tensor)
            there = count.live
            work(number)
        histories.append([live - there for live in count.history])
    if len(histories) == 1:
        return Curve(((max(histories[0]), 0),))
    return curve_of(histories[0], histories[1], IMAGES)
