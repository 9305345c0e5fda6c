"""`generate`: one picture from a checkpoint, written as a PNG file that says how it was made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dreambooth.shared.errors import InputError, RunFailed
from dreambooth.shared.paths import check_writable, write_whole
from dreambooth.trainer.adapters.merging import Request, notes_on_adapters
from dreambooth.trainer.machine import choose_device
from dreambooth.trainer.models.convert import LoadedModel, load_model
from dreambooth.trainer.models.tokenizer import default_tokenizer
from dreambooth.trainer.sampling.model_size import SIZE, model_size
from dreambooth.trainer.sampling.pictures import parameters_text, png_bytes
from dreambooth.trainer.sampling.sample import SampleRequest, check_size, sample
from dreambooth.trainer.sampling.samplers import SAMPLERS, check_sampler

if TYPE_CHECKING:
    from PIL import Image

_MOST_STEPS = 1000


def generate(
    model_path: str | Path,
    prompt: str,
    out: str | Path,
    *,
    seed: int = 0,
    steps: int = 20,
    size: str | tuple[int, int] = "",
    negative: str = "",
    guidance_scale: float = 7.5,
    sampler: str = "dpmpp_2m",
    clip_skip: int = 1,
    adapters: Sequence[Request] = (),
    overwrite: bool = False,
    say: Callable[[str], None] = lambda note: None,
) -> Path:
    """Draw `prompt` with a single file or a diffusers folder and `adapters`, write it to `out` and return that path.
    `say` is called with what there is to know of the adapters, a line each.

    `size` is "W", "WxH" or a pair of pixels, multiples of 8; empty: the size that the model was made for. Raises
    `InputError` for a wrong argument or model, and without `overwrite` for a file that is there, before anything is
    computed.
    """
    out = Path(out)
    _check_numbers(seed, steps, guidance_scale)
    check_sampler(sampler, where="--sampler")
    wanted = parse_size(size)
    _check_out(out, overwrite=overwrite)
    device = choose_device()
    # read once, and gone soon
    model = load_model(model_path, dtype=_dtype_for(device.type), mapped=True, adapters=adapters)
    for note in notes_on_adapters(model.source, model.identified):
        say(note)
    width, height = wanted or model_size(model)
    _check_clip_skip(model, clip_skip)
    request = SampleRequest(prompt, negative, seed, steps, guidance_scale, width, height, sampler)
    for module in model.components.values():
        module.to(device)
    parameters = parameters_text(
        request,
        sampler_title=SAMPLERS[sampler].title,
        model="+".join([Path(model_path).stem, *map(_named, adapters)]),
        clip_skip=clip_skip if model.identified.family.clip_skip else 1,
    )
    content = png_bytes(_picture(model, request, clip_skip), parameters)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, content)
    return out


def parse_size(size: str | tuple[int, int]) -> tuple[int, int] | None:
    """Width and height of "512", "512x768" or a pair; None where nothing is given. Raises `InputError`."""
    if not size:
        return None
    if isinstance(size, str):
        match = SIZE.fullmatch(size)
        if match is None:
            raise InputError(f"{size!r} is not a size", where="--size", remedy='write "512" or "512x768"')
        size = int(match[1]), int(match[2] or match[1])
    if min(size) < 1:
        width, height = size
        raise InputError(
            f"a picture of {width}x{height} pixels has none",
            where="--size",
            remedy='write "512" or "512x768"',
        )
    check_size(*size, where="--size")
    return size


def _named(request: Request) -> str:
    """An adapter as `--lora` names it: its weight behind it where that is not all of it."""
    return request.path.stem if request.weight == 1 else f"{request.path.stem}:{request.weight:g}"


def _check_numbers(seed: int, steps: int, guidance_scale: float) -> None:
    if not 0 <= seed < 2**64:
        raise InputError(
            f"{seed} is not a seed", where="--seed", remedy="use a whole number from 0 to 2**64 - 1"
        )
    if not 1 <= steps <= _MOST_STEPS:
        raise InputError(f"{steps} steps cannot be made", where="--steps", remedy=f"use 1 to {_MOST_STEPS}")
    if not math.isfinite(guidance_scale):
        raise InputError(f"{guidance_scale} is no scale", where="--guidance-scale", remedy="7.5 is usual")


def _check_out(out: Path, *, overwrite: bool) -> None:
    if out.suffix.lower() != ".png":
        raise InputError(
            f"{out} is not a PNG file's name", where="--out", remedy="use a name that ends in .png"
        )
    if out.is_dir():
        raise InputError(f"{out} is a folder", where="--out", remedy="name a file in it")
    if out.exists() and not overwrite:
        raise InputError(
            f"{out} is there already",
            where="--out",
            remedy="choose another name, or replace it (--overwrite)",
        )
    check_writable(out.absolute().parent, setting="--out")


def _check_clip_skip(model: LoadedModel, clip_skip: int) -> None:
    layers = int(model.configs["text_encoder"]["num_hidden_layers"])
    if not 1 <= clip_skip <= layers:
        raise InputError(
            f"{clip_skip} is out of range: this model's text encoder has {layers} layers",
            where="--clip-skip",
            remedy=f"use 1 to {layers}",
        )


def _dtype_for(device: str) -> torch.dtype:
    """float16 on a card, as the WebUI; elsewhere it is slow or has holes."""
    return torch.float16 if device == "cuda" else torch.float32


def _picture(model: LoadedModel, request: SampleRequest, clip_skip: int) -> Image.Image:
    """The picture; where float16 overflows, in float32."""

    def draw() -> Image.Image:
        ((_, image),) = sample(model, default_tokenizer(), [request], batch_size=1, clip_skip=clip_skip)
        return image

    try:
        return draw()
    except RunFailed:
        if next(model.components["unet"].parameters()).dtype == torch.float32:
            raise
    for module in model.components.values():
        module.to(torch.float32)
    return draw()
