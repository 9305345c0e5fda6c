"""Which family a checkpoint belongs to, and what its UNet predicts."""

from __future__ import annotations

from dreambooth.shared.errors import InputError
from dreambooth.trainer.families import FAMILIES, Family, Identified
from dreambooth.trainer.families.names import CLIP_PREFIX, CLIP_PREFIX_OLD, OPENCLIP_PREFIX, UNET_PREFIX
from dreambooth.trainer.weights.base import WeightFile

FIRST_CONVOLUTION = UNET_PREFIX + "input_blocks.0.0.weight"
TEXT_MARKS = {
    CLIP_PREFIX + "embeddings.token_embedding.weight": "clip",
    CLIP_PREFIX_OLD + "embeddings.token_embedding.weight": "clip",
    OPENCLIP_PREFIX + "token_embedding.weight": "openclip",
}


def identify(weights: WeightFile, prediction_type: str = "auto") -> Identified:
    """Tell family and prediction type. Raises InputError if it is none that can be used, and says what it is."""
    family = _family(weights)
    return Identified(family, "epsilon", "it is the default")


def _family(weights: WeightFile) -> Family:
    text = next((kind for name, kind in TEXT_MARKS.items() if name in weights.tensors), None)
    first = weights.tensors.get(FIRST_CONVOLUTION)
    channels = first.shape[1] if first and len(first.shape) == 4 else None
    for family in FAMILIES.values():
        if (family.text, family.in_channels) == (text, channels):
            return family
    raise InputError("this is no Stable Diffusion checkpoint", where=str(weights.path))
