"""The size of the pictures that a model was made for."""

from __future__ import annotations

import re

from dreambooth.trainer.models.convert import LoadedModel
from dreambooth.trainer.sampling.sample import DOWNSCALE

# "512" or "512x768"
SIZE = re.compile(r"\s*(\d{1,5})\s*(?:[xX×]\s*(\d{1,5})\s*)?")


def model_size(model: LoadedModel) -> tuple[int, int]:
    """Width and height in pixels that a model was made for: what its metadata say, then its config, then its family.

    Metadata: `modelspec.resolution` ("512x512"). Config: `sample_size` of a diffusers folder's UNet, in latents.
    """
    match = SIZE.fullmatch(model.source.metadata.get("modelspec.resolution", ""))
    if match is not None:
        width, height = int(match[1]), int(match[2] or match[1])
        if width and height and width % DOWNSCALE == height % DOWNSCALE == 0:
            return width, height
    latents = model.configs["unet"].get("sample_size")
    if isinstance(latents, int):
        return latents * DOWNSCALE, latents * DOWNSCALE
    family = model.identified.family
    velocity = model.identified.prediction_type == "v_prediction"
    side = family.v_resolution if velocity else family.resolution
    return side, side
