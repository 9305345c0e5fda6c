"""What layers are called in adapter files: kohya's names, which are written, and diffusers' and peft's, which are read.

kohya's names (networks/lora.py, sdxl_train_network.py of kohya-ss/sd-scripts) are a prefix and the path with `_` for
each dot. SD1 and SD2 have diffusers' paths in the UNet, SDXL the original's. The WebUI's loader takes them so; it
passes over keys that it does not know without a word.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from dreambooth.trainer.adapters import kinds
from dreambooth.trainer.adapters.targets import Target
from dreambooth.trainer.families import Family

UNET = "lora_unet_"
TEXT_PATH = "text_model."
PROJECTION = "text_projection"
PEFT_MAGNITUDE = "lora_magnitude_vector"
PEFT_START = "base_model.model."
# How peft and diffusers call a tensor of a LoRA, in old versions and new ones, and kohya's word for it
_OTHERS = {
    "lora_A.weight": kinds.DOWN,
    "lora_B.weight": kinds.UP,
    "lora_A.default.weight": kinds.DOWN,
    "lora_B.default.weight": kinds.UP,
    "lora_linear_layer.down.weight": kinds.DOWN,
    "lora_linear_layer.up.weight": kinds.UP,
    "lora.down.weight": kinds.DOWN,
    "lora.up.weight": kinds.UP,
    PEFT_MAGNITUDE: kinds.MAGNITUDE,
    f"{PEFT_MAGNITUDE}.weight": kinds.MAGNITUDE,
    f"{PEFT_MAGNITUDE}.default.weight": kinds.MAGNITUDE,
}
_OWN = (
    kinds.DOWN, kinds.UP, kinds.MID, kinds.MAGNITUDE, "alpha", "bias", "bias_indices", "bias_values", "bias_size", "scale",
    *kinds.LOHA, "hada_t1", "hada_t2",
    kinds.W1, kinds.W1_A, kinds.W1_B, kinds.W2, kinds.W2_A, kinds.W2_B, kinds.T2,
)  # fmt: skip
# Adapters that are known and cannot be used here, by a part of their tensors' names
FOREIGN = {
    "oft_": "OFT or BOFT",
    "on_input": "IA3",
    "a1.weight": "GLoRA",
    "w_norm": "trained norms (LyCORIS)",
    "b_norm": "trained norms (LyCORIS)",
    "diff": "whole differences (LyCORIS full)",
    "diff_b": "whole differences (LyCORIS full)",
}
# Models of other makes, by what their adapters say in their metadata and by how their layers are called
_FOREIGN_MODELS = {
    "Flux": (("flux",), ("lora_unet_double_blocks_", "lora_unet_single_blocks_", "transformer.single_transformer_blocks.")),
    "Stable Diffusion 3": (("sd3", "stable-diffusion-v3"), ("lora_unet_joint_blocks_",)),
    "a transformer model (Flux or the like)": (
        (),
        ("transformer.", "lora_transformer_", "lora_unet_blocks_", "lora_unet_transformer_blocks_", "diffusion_model."),
    ),
}  # fmt: skip
_ENDINGS = {f".{name}": name for name in _OWN} | {f".{name}": own for name, own in _OTHERS.items()}
# Old diffusers: `attn1.processor.to_q_lora.down.weight` instead of `attn1.to_q.lora.down.weight`
_PROCESSOR = re.compile(r"\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight$")


def kohya_name(family: Family, target: Target) -> str:
    """The name that a layer has in the files that are written."""
    if target.component == "unet":
        path = target.original_path if family.layout == "sgm" else target.path
        return UNET + path.replace(".", "_")
    return text_prefix(family, target.component) + (TEXT_PATH + target.path).replace(".", "_")


def text_prefix(family: Family, component: str) -> str:
    """`lora_te_`, or where there are several text encoders `lora_te1_`, `lora_te2_`."""
    encoders = [part.component for part in family.text_encoders]
    number = str(encoders.index(component) + 1) if len(encoders) > 1 else ""
    return f"lora_te{number}_"


def split(key: str) -> tuple[str, str] | None:
    """(layer, tensor) of a key: the layer as the file calls it, the tensor by kohya's name; None for no adapter's."""
    moved = _PROCESSOR.search(key)
    if moved:
        layer = "to_out.0" if moved[1] == "out" else f"to_{moved[1]}"
        return f"{key[: moved.start()]}.{layer}", kinds.DOWN if moved[2] == "down" else kinds.UP
    ending = max((ending for ending in _ENDINGS if key.endswith(ending)), key=len, default=None)
    return (key.removesuffix(ending), _ENDINGS[ending]) if ending else None


def foreign(key: str) -> str:
    """What another kind of adapter a key belongs to, "" if that is not known."""
    tail = key.partition(".")[2]
    return next(
        (
            title
            for mark, title in FOREIGN.items()
            if tail == mark or (mark[-1] == "_" and tail.startswith(mark))
        ),
        "",
    )


def foreign_model(metadata: Mapping[str, str], layers: Collection[str]) -> str:
    """The model of another make that an adapter with this metadata and these layers is for, "" if none is known."""
    stated = [metadata.get(key, "").lower() for key in ("ss_base_model_version", "modelspec.architecture")]
    for title, (versions, starts) in _FOREIGN_MODELS.items():
        if any(said.startswith(versions) for said in stated) or any(
            name.startswith(starts) for name in layers
        ):
            return title
    return ""


def known_as(family: Family, targets: Iterable[Target]) -> dict[str, Target]:
    """Every name that a layer may have in a file, for each of the layers that there are."""
    found: dict[str, Target] = {}
    for target in targets:
        for name in _names(family, target):
            found.setdefault(name, target)
    return found


def _names(family: Family, target: Target) -> Iterator[str]:
    yield kohya_name(family, target)
    if target.component == "unet":
        for path in (target.path, target.original_path):
            yield UNET + path.replace(".", "_")
            yield f"lycoris_{path.replace('.', '_')}"
        yield f"unet.{target.path}"
        yield f"{PEFT_START}{target.path}"
        yield target.path
        return
    for path in (TEXT_PATH + target.path, target.path):
        yield text_prefix(family, target.component) + path.replace(".", "_")
        yield f"{target.component}.{path}"
        yield f"{PEFT_START}{path}"
    if target.component == family.text_encoders[0].component:  # trainers that do not number the first
        for prefix in ("lora_te_", "lora_te1_"):
            yield prefix + (TEXT_PATH + target.path).replace(".", "_")
