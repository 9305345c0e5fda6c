"""What a file of tensors is when it is no checkpoint that can be trained, and what to do with it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from dreambooth.shared.errors import InputError
from dreambooth.trainer.families.names import UNET_PREFIX, VAE_PREFIX
from dreambooth.trainer.weights.base import WeightFile

CHECKPOINT = "take a Stable Diffusion 1.x, 2.x or XL checkpoint"
COMPLETE = "take a complete checkpoint, with text encoder and VAE"
PART = "name the diffusers folder that it is part of, or a single-file checkpoint"
LORA_MARKS = (
    ".lora_up.",
    ".lora_down.",
    ".lora_A.",
    ".lora_B.",
    ".hada_w1_",
    ".lokr_w",
    ".oft_",
    ".on_input",
)
XL_FIRST, XL_SECOND = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
LORA_STARTS = ("lora_unet_", "lora_te", "lycoris_")

Names = Collection[str]


@dataclass(frozen=True)
class Kind:
    """A kind of file; `matches` tells it by the names of its tensors."""

    title: str
    remedy: str
    matches: Callable[[Names], bool]


def _has(*names: str) -> Callable[[Names], bool]:
    return lambda found: any(name in found for name in names)


def _starts(*prefixes: str) -> Callable[[Names], bool]:
    return lambda found: any(name.startswith(prefixes) for name in found)


def _is_adapter(names: Names) -> bool:
    return any(name.startswith(LORA_STARTS) or any(mark in name for mark in LORA_MARKS) for name in names)


def _lacks_text_encoder(names: Names) -> bool:
    return _starts(UNET_PREFIX)(names) and not _starts("cond_stage_model.", "conditioner.")(names)


def _has_half_of_its_text_encoders(names: Names) -> bool:
    return _starts(XL_FIRST)(names) != _starts(XL_SECOND)(names)


def _is_unclip(names: Names) -> bool:
    marks = _has(f"{UNET_PREFIX}label_emb.0.0.weight", f"{UNET_PREFIX}label_emb.weight")
    return marks(names) and _starts("cond_stage_model.")(names)


def _lacks_vae(names: Names) -> bool:
    return _starts(UNET_PREFIX)(names) and not _starts(VAE_PREFIX)(names)


KINDS = (
    Kind("a LoRA (or another adapter)", "name the checkpoint that it was made for as the model", _is_adapter),
    Kind(
        "the refiner of Stable Diffusion XL, which cannot be trained here",
        "take the base of Stable Diffusion XL, or a checkpoint that was made from it",
        _starts("conditioner.embedders.0.model."),
    ),
    Kind(
        "a checkpoint of Stable Diffusion XL with only one of its two text encoders",
        COMPLETE,
        _has_half_of_its_text_encoders,
    ),
    Kind(
        "an EDM model in the form of Stable Diffusion XL (Playground 2.5, CosXL), which is not supported",
        CHECKPOINT,
        _has("edm_mean", "edm_std", "edm_vpred.sigma_max"),
    ),
    Kind(
        "Stable Cascade, which is not supported",
        CHECKPOINT,
        _starts(f"{UNET_PREFIX}clip_txt_mapper.", f"{UNET_PREFIX}clf.", "clip_txt_mapper.", "clf."),
    ),
    Kind(
        "Stable Diffusion 3, which is not supported",
        CHECKPOINT,
        _has(f"{UNET_PREFIX}x_embedder.proj.weight", "x_embedder.proj.weight"),
    ),
    Kind(
        "a transformer model (Flux or the like), which is not supported",
        CHECKPOINT,
        _starts(f"{UNET_PREFIX}double_blocks.", "double_blocks.", "transformer_blocks.0."),
    ),
    Kind(
        "a ControlNet",
        CHECKPOINT,
        _starts("control_model.", "controlnet_cond_embedding.", "input_hint_block."),
    ),
    Kind(
        "a depth model of Stable Diffusion 2, which is not supported",
        "take Stable Diffusion 2's base, 768 or inpainting checkpoint",
        _starts("depth_model."),
    ),
    Kind(
        "an unCLIP model of Stable Diffusion 2 (or an upscaler), which is not supported",
        "take Stable Diffusion 2's base, 768 or inpainting checkpoint",
        _is_unclip,
    ),
    Kind("AltDiffusion, which is not supported", CHECKPOINT, _starts("cond_stage_model.roberta.")),
    Kind("a textual inversion embedding", CHECKPOINT, _has("emb_params", "clip_l", "<concept>", "*")),
    Kind(
        "a VAE alone",
        "name a checkpoint as the model; this file can be given as the setting vae",
        lambda names: (
            _has("encoder.conv_in.weight", f"{VAE_PREFIX}encoder.conv_in.weight")(names)
            and not _starts(UNET_PREFIX)(names)
        ),
    ),
    Kind("one part of a diffusers folder (a UNet)", PART, _starts("down_blocks.", "mid_block.")),
    Kind(
        "one part of a diffusers folder (a text encoder)",
        PART,
        _starts("text_model.", "embeddings.token_embedding."),
    ),
    Kind("a UNet alone, in the original layout", COMPLETE, _starts("input_blocks.")),
    Kind("a checkpoint without a text encoder", COMPLETE, _lacks_text_encoder),
    Kind("a checkpoint without a VAE", COMPLETE, _lacks_vae),
)
CHANNELS = {
    5: "a depth model, which is not supported",
    7: "an upscaler, which is not supported",
    8: "an InstructPix2Pix model, which is not supported",
}
XL_CHANNELS = {
    8: "the InstructPix2Pix form of Stable Diffusion XL, which is not supported",
    9: "the inpainting form of Stable Diffusion XL, which cannot be trained here",
}


def refusal(weights: WeightFile, in_channels: int | None) -> InputError | None:
    """The error for a file that is no checkpoint to be trained, None for one that may be.

    `in_channels` are those of its UNet's first convolution, None if it has none in the original's names.
    """
    names = weights.tensors
    kind = next((kind for kind in KINDS if kind.matches(names)), None)
    where = str(weights.path)
    if kind is not None:
        return InputError(f"this is {kind.title}", where=where, remedy=kind.remedy)
    channels = XL_CHANNELS if _starts(XL_SECOND)(names) else CHANNELS
    if in_channels in channels:
        return InputError(f"this is {channels[in_channels]}", where=where, remedy=CHECKPOINT)
    if not names:
        return InputError("this file holds no tensors", where=where, remedy=CHECKPOINT)
    if in_channels is None:
        shown = ", ".join(list(names)[:3])
        return InputError(
            f"this is no Stable Diffusion checkpoint: its tensors are called {shown}, …",
            where=where,
            remedy=CHECKPOINT,
        )
    return None
