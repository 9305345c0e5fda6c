"""The model families that can be trained, as rows of data. Outside this package nobody asks which it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

PredictionType = Literal["epsilon", "v_prediction"]
PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction")
# What a model's components are called where people read of them
TITLES = {
    "unet": "UNet",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "vae": "VAE",
}


@dataclass(frozen=True)
class TextPart:
    """One of a family's text encoders: `component` is its module's name, `prefix` where it lies in a single file.

    `kind` names its form; at the `width` that its family was published with it has so many `layers`. A file may lack the
    last one where `spare` says so: SD2 does not use it, and diffusers leaves it out for a clip skip of 2.
    `pad_token` is what fills a prompt up to 77 tokens ("end" token or "0"). What is used of it: the output of the layer
    that is `layer`th from the last, after the final norm where `norm` says so; with `pooled` also the end token's, which
    went through all layers, that norm and a projection.
    """

    component: str
    kind: Literal["clip", "openclip"]
    prefix: str
    width: int
    layers: int
    spare: bool = False
    pad_token: Literal["end", "0"] = "end"
    layer: int = 1
    norm: bool = True
    pooled: bool = False


@dataclass(frozen=True)
class Family:
    """What is the same for every checkpoint of a family and cannot be read from its shapes.

    `text_encoders` stand in the order in which their outputs are concatenated, `heads` gives the UNet's number of
    heads at a width. `layout` names the code whose config describes it to the WebUI, `needs_yaml` whether the WebUI
    would otherwise guess, `marked` whether other programs tell its v-prediction by marker tensors. `clip_skip` says
    whether the WebUI honours that setting for it, `probed` whether its prediction type is told by running the UNet
    where nothing says it, `upcast_attention` whether its attention overflows in float16, `vae_overflows` whether its
    VAE does. `sized`: its UNet is told of sizes and crops. `blank_is_zero`: no prompt is zeros instead of an empty
    prompt's encoding. Training images have sides that are multiples of `side_step` pixels. `architecture`
    (for v: `architecture_v`) and `implementation` are its names in the modelspec standard.
    """

    name: str
    title: str
    in_channels: int
    text_encoders: tuple[TextPart, ...]
    heads: Callable[[int], int]
    architecture: str
    architecture_v: str
    implementation: str
    layout: Literal["ldm", "sgm"] = "ldm"
    scaling_factor: float = 0.18215
    resolution: int = 512
    v_resolution: int = 512
    side_step: int = 8
    clip_skip: bool = True
    needs_yaml: bool = False
    marked: bool = False
    probed: bool = False
    upcast_attention: bool = False
    vae_overflows: bool = False
    sized: bool = False
    blank_is_zero: bool = False

    @property
    def pad_token(self) -> Literal["end", "0"]:
        """What prompts are padded with when they become token ids."""
        return self.text_encoders[0].pad_token

    @property
    def components(self) -> tuple[str, ...]:
        """The names of its modules."""
        return ("unet", *(part.component for part in self.text_encoders), "vae")


def title_in(family: Family, component: str) -> str:
    """What a family's component is called where there may be two text encoders."""
    two = len(family.text_encoders) > 1 and component == family.text_encoders[0].component
    return f"first {TITLES[component]}" if two else TITLES[component]


@dataclass(frozen=True)
class Identified:
    """A checkpoint's family and prediction type, and a sentence on how they were told."""

    family: Family
    prediction_type: PredictionType
    told_by: str
    zero_terminal_snr: bool = False


def _eight(width: int) -> int:
    return 8


def _sixty_four_wide(width: int) -> int:
    return max(1, width // 64)


COMPVIS = "https://github.com/CompVis/stable-diffusion"
STABILITY = "https://github.com/Stability-AI/stablediffusion"
GENERATIVE_MODELS = "https://github.com/Stability-AI/generative-models"
SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    in_channels=4,
    text_encoders=(
        TextPart("text_encoder", "clip", "cond_stage_model.transformer.text_model.", 768, 12, spare=True),
    ),
    heads=_eight,
    architecture="stable-diffusion-v1",
    architecture_v="stable-diffusion-v1",
    implementation=COMPVIS,
)
SD1_INPAINT = replace(
    SD1,
    name="sd1-inpaint",
    title="Stable Diffusion 1.x inpainting",
    in_channels=9,
    architecture="stable-diffusion-v1-inpainting",
    architecture_v="stable-diffusion-v1-inpainting",
)
SD2 = Family(
    name="sd2",
    title="Stable Diffusion 2.x",
    in_channels=4,
    text_encoders=(
        TextPart("text_encoder", "openclip", "cond_stage_model.model.", 1024, 24, spare=True, pad_token="0"),
    ),
    heads=_sixty_four_wide,
    architecture="stable-diffusion-v2-512",
    architecture_v="stable-diffusion-v2-768-v",
    implementation=STABILITY,
    v_resolution=768,
    clip_skip=False,
    needs_yaml=True,
    probed=True,
    upcast_attention=True,
)
SD2_INPAINT = replace(
    SD2,
    name="sd2-inpaint",
    title="Stable Diffusion 2.x inpainting",
    in_channels=9,
    architecture="stable-diffusion-v2-inpainting",
    architecture_v="stable-diffusion-v2-inpainting",
    probed=False,
)
# Podell et al. 2023, arXiv 2307.01952: two text encoders side by side, each from its last layer but one without the
# final norm, and the second one's pooled output beside the sizes (sections 2.1 and 2.2)
SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    in_channels=4,
    text_encoders=(
        TextPart(
            "text_encoder",
            "clip",
            "conditioner.embedders.0.transformer.text_model.",
            768,
            12,
            layer=2,
            norm=False,
        ),
        TextPart(
            "text_encoder_2",
            "openclip",
            "conditioner.embedders.1.model.",
            1280,
            32,
            pad_token="0",
            layer=2,
            norm=False,
            pooled=True,
        ),
    ),
    heads=_sixty_four_wide,
    architecture="stable-diffusion-xl-v1-base",
    architecture_v="stable-diffusion-xl-v1-base",
    implementation=GENERATIVE_MODELS,
    layout="sgm",
    scaling_factor=0.13025,
    resolution=1024,
    v_resolution=1024,
    side_step=64,
    clip_skip=False,
    marked=True,
    vae_overflows=True,
    sized=True,
    blank_is_zero=True,
)
FAMILIES = {family.name: family for family in (SD1, SD1_INPAINT, SD2, SD2_INPAINT, SDXL)}
