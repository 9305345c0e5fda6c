"""The model families that can be trained, as rows of data. Outside this package nobody asks which it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

PredictionType = Literal["epsilon", "v_prediction"]
PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Family:
    """What is the same for every checkpoint of a family and cannot be read from its shapes.

    `text` names the form of its text encoder ("clip" or "openclip"), `heads` gives the UNet's number of heads
    at a width. `pad_token` is what fills a prompt up to 77 tokens ("end" token or "0"); `clip_skip` says
    whether the WebUI honours that setting for it, `probed` whether its prediction type is told by running the
    UNet where nothing says it, `upcast_attention` whether its attention overflows in float16. `architecture`
    (for v: `architecture_v`) and `implementation` are its names in the modelspec standard.
    """

    name: str
    title: str
    in_channels: int
    text: Literal["clip", "openclip"]
    heads: Callable[[int], int]
    architecture: str
    architecture_v: str
    implementation: str
    scaling_factor: float = 0.18215
    resolution: int = 512
    v_resolution: int = 512
    pad_token: Literal["end", "0"] = "end"
    clip_skip: bool = True
    probed: bool = False
    upcast_attention: bool = False


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
SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    in_channels=4,
    text="clip",
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
    text="openclip",
    heads=_sixty_four_wide,
    architecture="stable-diffusion-v2-512",
    architecture_v="stable-diffusion-v2-768-v",
    implementation=STABILITY,
    v_resolution=768,
    pad_token="0",
    clip_skip=False,
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
FAMILIES = {family.name: family for family in (SD1, SD1_INPAINT, SD2, SD2_INPAINT)}
