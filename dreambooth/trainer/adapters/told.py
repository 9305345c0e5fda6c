"""Which family an adapter is for: told by its tensors, and else by what its metadata say. Metadata are easily wrong, after
a merge or an edit; tensors are what is added."""

from __future__ import annotations

import re
from collections.abc import Mapping

from dreambooth.trainer.adapters import kinds, names
from dreambooth.trainer.weights import TensorInfo

TITLES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
# What a file says of its family in its metadata, and the families' names
_STATED = {"sdxl_": "sdxl", "sd_v1": "sd1", "sd_v2": "sd2"}
_ARCHITECTURES = {"stable-diffusion-xl": "sdxl", "stable-diffusion-v1": "sd1", "stable-diffusion-v2": "sd2"}
_SDXL_MARKS = (
    "lora_te2_",
    "text_encoder_2.",
    "lora_unet_input_blocks_4_1_transformer_blocks_1_",
    "lora_unet_label_emb",
)
# How wide the text is that a UNet is told, which its cross-attention takes in
_FROM_TEXT = re.compile(r"(down_blocks|up_blocks|mid_block|put_blocks|middle_block)[._].*attn2[._]to_[kv]$")
_TEXT_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}


def by_tensors(tensors: Mapping[str, TensorInfo]) -> str:
    """The name of the family that only has such tensors ("sd1", "sd2", "sdxl"), "" if several have."""
    if any(name.startswith(_SDXL_MARKS) for name in tensors):
        return "sdxl"
    widths = {info.shape[1] for name, info in tensors.items() if _takes_text(name) and len(info.shape) > 1}
    return next((_TEXT_WIDTHS[width] for width in widths if width in _TEXT_WIDTHS), "")


def by_metadata(metadata: Mapping[str, str]) -> str:
    """The name of the family that a file says it is for, "" if nothing is said."""
    stated = metadata.get("ss_base_model_version", "")
    for start, family in _STATED.items():
        if stated.startswith(start):
            return family
    architecture = metadata.get("modelspec.architecture", "")
    for start, family in _ARCHITECTURES.items():
        if architecture.startswith(start):
            return family
    return "sd2" if metadata.get("ss_v2") == "True" else ""


def contradiction(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> str:
    """What there is to say where metadata and tensors tell of two families, "" where they agree."""
    told = by_tensors(tensors)
    stated = TITLES.get(by_metadata(metadata)) or names.foreign_model(metadata, ())
    if not told or stated in ("", TITLES[told]):
        return ""
    return f"its metadata says that it is for {stated}, and its tensors are for {TITLES[told]}, which is believed"


def _takes_text(key: str) -> bool:
    """Whether a tensor is what a layer of the cross-attention first does to the text."""
    layer, tensor = names.split(key) or ("", "")
    return tensor == kinds.DOWN and _FROM_TEXT.search(layer) is not None
