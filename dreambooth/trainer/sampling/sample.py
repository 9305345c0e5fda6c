"""Pictures from prompts: latents by a multistep sampler with classifier-free guidance, then the decoder.

Every random number of a picture comes from a generator of its own on the CPU, seeded by its request. So a picture
depends on its request alone, up to rounding, which depends on what is batched with what: batches are therefore
fixed groups, and the same group gives the same bits.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from dreambooth.shared.errors import InputError, RunFailed
from dreambooth.trainer.models.embeddings import Embeddings, combined, unet_arguments
from dreambooth.trainer.models.text import count_chunks, encode, encoders_of, tokenize
from dreambooth.trainer.sampling.samplers import SAMPLERS, make_scheduler

if TYPE_CHECKING:
    from dreambooth.trainer.models.convert import LoadedModel
    from dreambooth.trainer.models.tokenizer import Tokenizer

LATENT_CHANNELS = 4
DOWNSCALE = 8
ShouldStop = Callable[[], bool]


@dataclass(frozen=True)
class SampleRequest:
    """One picture. Guidance of 1 or less means none; width and height in pixels, multiples of 8."""

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 20
    guidance_scale: float = 7.5
    width: int = 512
    height: int = 512
    sampler: str = "dpmpp_2m"


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told beside latents and timestep.

    `positive` and `negative` may differ in their numbers of tokens; `negative` None: no guidance.
    `extra_channels` (1, channels, height / 8, width / 8) is what an inpainting model sees behind the latents,
    `sizes` (1, 6) is what SDXL is told of the picture's.
    """

    positive: Embeddings
    negative: Embeddings | None = None
    guidance_scale: float = 1.0
    extra_channels: torch.Tensor | None = None
    sizes: torch.Tensor | None = None


def check_size(width: int, height: int, where: str = "size") -> None:
    """Raise `InputError` unless both are positive multiples of 8, the autoencoder's scale.

    Multiples of 64 are not needed: the UNet resizes what it carries over its levels, here as in the WebUI.
    """
    if width < DOWNSCALE or height < DOWNSCALE or width % DOWNSCALE or height % DOWNSCALE:
        nearest = "x".join(
            str(max(DOWNSCALE, round(side / DOWNSCALE) * DOWNSCALE)) for side in (width, height)
        )
        raise InputError(
            f"a picture of {width}x{height} pixels cannot be made: both sides must be multiples of {DOWNSCALE}",
            where=where,
            remedy=f"use {nearest}",
        )


def starting_noise(generators: Sequence[torch.Generator], width: int, height: int) -> torch.Tensor:
    """Unit noise (batch, 4, height / 8, width / 8), float32, on the CPU; one row from each generator."""
    shape = (1, LATENT_CHANNELS, height // DOWNSCALE, width // DOWNSCALE)
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators])


def sample_latents(
    unet: torch.nn.Module,
    scheduler: Any,
    noise: torch.Tensor,
    conditioning: Conditioning,
    *,
    generators: Sequence[torch.Generator] | None = None,
    should_stop: ShouldStop | None = None,
) -> torch.Tensor | None:
    """Denoise unit `noise` (batch, 4, h, w) to latents of the same shape, float32, times the scaling factor.

    `generators`, one a picture, serve samplers that draw noise between steps. `should_stop` is asked before each
    step; the answer True ends the sampling with None. Runs on the noise's device, in the UNet's own precision.
    """
    latents: torch.Tensor = noise * scheduler.init_noise_sigma
    device_timesteps = scheduler.timesteps.to(noise.device)
    drawn = {} if generators is None else {"generator": list(generators)}
    for timestep, device_timestep in zip(scheduler.timesteps, device_timesteps, strict=True):
        if should_stop is not None and should_stop():
            return None
        seen = scheduler.scale_model_input(latents, timestep)
        predicted = _guided_prediction(unet, seen, device_timestep, conditioning)
        with torch.autocast(noise.device.type, enabled=False):
            latents = scheduler.step(predicted, timestep, latents, **drawn, return_dict=False)[0]
    return latents


def _guided_prediction(
    unet: torch.nn.Module, seen: torch.Tensor, timestep: torch.Tensor, conditioning: Conditioning
) -> torch.Tensor:
    """Classifier-free guidance, Ho and Salimans 2022, arXiv 2207.12598, equation 6 with scale w + 1."""
    if conditioning.extra_channels is not None:
        seen = torch.cat([seen, conditioning.extra_channels.expand(len(seen), -1, -1, -1)], dim=1)
    positive, negative, sizes = conditioning.positive, conditioning.negative, conditioning.sizes
    if negative is None:
        return _predict(unet, seen, timestep, positive, sizes)
    if negative.context.shape == positive.context.shape:
        both = _predict(unet, torch.cat([seen, seen]), timestep, combined([negative, positive]), sizes)
        without, with_prompt = both.chunk(2)
    else:  # of different length: as the WebUI, each by itself, so that neither is diluted by padding
        without = _predict(unet, seen, timestep, negative, sizes)
        with_prompt = _predict(unet, seen, timestep, positive, sizes)
    return without + conditioning.guidance_scale * (with_prompt - without)


def _predict(
    unet: torch.nn.Module,
    seen: torch.Tensor,
    timestep: torch.Tensor,
    told: Embeddings,
    sizes: torch.Tensor | None,
) -> torch.Tensor:
    dtype = _dtype(unet)
    of_each = None if sizes is None else sizes.expand(len(seen), -1)
    arguments = unet_arguments(told.each(lambda tensor: tensor.to(dtype)), of_each)
    predicted: torch.Tensor = unet(seen.to(dtype), timestep, **arguments, return_dict=False)[0]
    return predicted.float()


def decode(vae: Any, latents: torch.Tensor, scaling_factor: float) -> list[Image.Image]:
    """RGB pictures of latents (batch, 4, h, w), decoded one after another: memory does not grow with the batch.

    The decoder works in its own precision, whatever autocast says. Where half precision overflows, the picture
    and those after it are decoded by a copy in float32, as the WebUI does it.
    """
    pixels = []
    for row in latents[:, None] / scaling_factor:
        image = vae.decode(row.to(_dtype(vae)), return_dict=False)[0]
        if _dtype(vae) != torch.float32 and not torch.isfinite(image).all():
            vae = copy.deepcopy(vae).float()
            image = vae.decode(row.float(), return_dict=False)[0]
        pixels.append(((image.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8))
    arrays = torch.cat(pixels).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def inpaint_channels(vae: Any, width: int, height: int, scaling_factor: float) -> torch.Tensor:
    """What an inpainting model sees when all is to be painted: a mask of ones and the latents of mid grey.

    (1, 1 + 4, height / 8, width / 8), as the WebUI's txt2img gives it, but with the mean of the encoder's
    distribution instead of a sample.
    """
    grey = torch.zeros(1, 3, height, width, dtype=_dtype(vae), device=_device(vae))
    masked = vae.encode(grey, return_dict=False)[0].mode().float() * scaling_factor
    return torch.cat([torch.ones_like(masked[:, :1]), masked], dim=1)


def sample(
    model: LoadedModel,
    tokenizer: Tokenizer,
    requests: Sequence[SampleRequest],
    *,
    batch_size: int,
    clip_skip: int = 1,
    dtype: torch.dtype | None = None,
    should_stop: ShouldStop | None = None,
) -> Iterator[tuple[int, Image.Image]]:
    """The pictures of `requests` as they are done, each with its request's index.

    Works where the UNet is, in the modules' own precision, or under autocast to `dtype` where they are float32 and it
    is not. Text encoders and a VAE that are elsewhere come there while they are needed, and go back.
    Requests that can be batched form fixed groups of `batch_size`, in their order.
    SD2's attention needs more than float16 for its scores: torch's fused kernels keep them in float32 by themselves.
    Ends early, without the group at hand, when `should_stop` says so between two steps.
    Raises `InputError` for a size or sampler that cannot be, `RunFailed` when the model gives no numbers.
    """
    for request in requests:
        check_size(request.width, request.height)
    for group in _groups(tokenizer, requests, batch_size):
        wanted = [requests[index] for index in group]
        with _evaluating(model.components.values()), torch.inference_mode():
            latents = _group_latents(model, tokenizer, wanted, clip_skip, dtype, should_stop)
            if latents is None:
                return
            with _brought([model.components["vae"]], _device(model.components["unet"])):
                images = decode(model.components["vae"], latents, model.identified.family.scaling_factor)
        yield from zip(group, images, strict=True)


def _groups(tokenizer: Tokenizer, requests: Sequence[SampleRequest], batch_size: int) -> list[list[int]]:
    """Requests may share a batch when steps, sampler, guidance, size and the lengths of both prompts agree."""
    alike: dict[object, list[int]] = {}
    for index, request in enumerate(requests):
        lengths = count_chunks(tokenizer, request.prompt), count_chunks(tokenizer, request.negative_prompt)
        size = request.width, request.height
        key = (request.steps, request.sampler, request.guidance_scale, size, lengths)
        alike.setdefault(key, []).append(index)
    return [
        indices[start : start + batch_size]
        for indices in alike.values()
        for start in range(0, len(indices), batch_size)
    ]


def _group_latents(
    model: LoadedModel,
    tokenizer: Tokenizer,
    group: Sequence[SampleRequest],
    clip_skip: int,
    dtype: torch.dtype | None,
    should_stop: ShouldStop | None,
) -> torch.Tensor | None:
    unet, first = model.components["unet"], group[0]
    scheduler = make_scheduler(
        first.sampler,
        first.steps,
        prediction_type=model.identified.prediction_type,
        zero_terminal_snr=model.identified.zero_terminal_snr,
    )
    with _brought([model.components["vae"]] if _has_extra_channels(model) else [], _device(unet)):
        extra_channels = _extra_channels(model, first)
    generators = [torch.Generator().manual_seed(request.seed) for request in group]
    noise = starting_noise(generators, first.width, first.height).to(_device(unet))
    with _precision(unet, dtype):
        with _brought(encoders_of(model.components, model.identified.family), _device(unet)):
            positive, negative = _prompts(model, tokenizer, group, clip_skip)
        latents = sample_latents(
            unet,
            scheduler,
            noise,
            Conditioning(positive, negative, first.guidance_scale, extra_channels, _sizes(model, first)),
            generators=generators if SAMPLERS[first.sampler].draws_noise else None,
            should_stop=should_stop,
        )
    if latents is not None and not torch.isfinite(latents).all():
        raise RunFailed(
            "the model's prediction is not finite, so there is no picture",
            remedy="use a wider number format (bfloat16 or float32 instead of float16); if that fails too, "
            "the model's weights are broken",
        )
    return latents


def _prompts(
    model: LoadedModel, tokenizer: Tokenizer, group: Sequence[SampleRequest], clip_skip: int
) -> tuple[Embeddings, Embeddings | None]:
    """The prompts' and the negative prompts' encodings; equal prompts are encoded once."""
    family = model.identified.family
    encoders = encoders_of(model.components, family)

    def encoded(prompts: list[str], *, unconditional: bool) -> Embeddings:
        different = list(dict.fromkeys(prompts))
        ids = tokenize(tokenizer, family, different).to(_device(encoders[0]))
        told = encode(encoders, family, ids, clip_skip=clip_skip, unconditional=unconditional)
        rows = [different.index(prompt) for prompt in prompts]
        return told.each(lambda tensor: tensor[rows])

    positive = encoded([request.prompt for request in group], unconditional=False)
    if group[0].guidance_scale <= 1:
        return positive, None
    return positive, encoded([request.negative_prompt for request in group], unconditional=True)


def _sizes(model: LoadedModel, request: SampleRequest) -> torch.Tensor | None:
    """As the WebUI: a picture of this size that nothing was cut off."""
    if not model.identified.family.sized:
        return None
    size = (request.height, request.width)
    return torch.tensor([[*size, 0.0, 0.0, *size]], device=_device(model.components["unet"]))


def _extra_channels(model: LoadedModel, request: SampleRequest) -> torch.Tensor | None:
    if not _has_extra_channels(model):
        return None
    family = model.identified.family
    return inpaint_channels(model.components["vae"], request.width, request.height, family.scaling_factor)


def _has_extra_channels(model: LoadedModel) -> bool:
    return model.identified.family.in_channels != LATENT_CHANNELS


@contextlib.contextmanager
def _brought(modules: Iterable[torch.nn.Module], device: torch.device) -> Iterator[None]:
    """The modules on `device`; afterwards those that were elsewhere are in the computer's memory again.

    They are not made for inference alone by that: in a training they are trained on.
    """
    away = [module for module in modules if _device(module) != device]
    try:
        with torch.inference_mode(False):
            for module in away:
                module.to(device)
        yield
    finally:
        with torch.inference_mode(False):
            for module in away:
                module.to("cpu")


def _precision(module: torch.nn.Module, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to `dtype` where it is narrower than the module's float32; else the module's own precision."""
    narrower = dtype is not None and dtype != torch.float32 and _dtype(module) == torch.float32
    # torch 2.1 refuses some dtypes on a CPU even for an autocast that is switched off
    return torch.autocast(_device(module).type, dtype if narrower else None, enabled=narrower)


@contextlib.contextmanager
def _evaluating(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """The modules in evaluation mode; afterwards as they were."""
    training = [(module, module.training) for module in modules]
    for module, _ in training:
        module.eval()
    try:
        yield
    finally:
        for module, was_training in training:
            module.train(was_training)


def _dtype(module: Any) -> torch.dtype:
    dtype: torch.dtype = next(module.parameters()).dtype
    return dtype


def _device(module: Any) -> torch.device:
    device: torch.device = next(module.parameters()).device
    return device
