"""Writing a diffusers folder that every diffusers and transformers of the range reads, and that goes back.

What the folder form cannot hold (names, order and dtypes of the single file, SD2's last text layer, schedule
buffers, `position_ids`, whatever else was in the file, its metadata) stands in a side file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dreambooth.shared.aside import aside, put_folder
from dreambooth.shared.errors import InputError
from dreambooth.trainer.families import Identified, TextPart
from dreambooth.trainer.families.description import Description
from dreambooth.trainer.families.names import TEXT_MODEL, Binding
from dreambooth.trainer.models.diffusers_folder import (
    EXTRAS,
    EXTRAS_ABOUT,
    FILES,
    INDEX,
    about_original,
)
from dreambooth.trainer.models.export_file import kept, written_dtype
from dreambooth.trainer.models.loading import in_file_order
from dreambooth.trainer.models.tokenizer import tokenizer_folder_bytes, write_tokenizer_folder
from dreambooth.trainer.weights import Entry, WeightFile
from dreambooth.trainer.weights.base import RawBytes
from dreambooth.trainer.weights.safetensors_file import layout
from dreambooth.trainer.weights.writing import Content, errors_are_said, write_new

DIFFUSERS_VERSION = "0.35.2"
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
TEXT_CLASSES = {False: "CLIPTextModel", True: "CLIPTextModelWithProjection"}
PIPELINES: dict[str, dict[str, Any]] = {
    "ldm": {
        "_class_name": "StableDiffusion",
        "requires_safety_checker": False,
        "safety_checker": [None, None],
    },
    "sgm": {"_class_name": "StableDiffusionXL", "force_zeros_for_empty_prompt": True},
}
LATENT_SCALE = 8
_BLOCK = 4096
PROJECTION = "text_projection."
UNET_DEFAULTS: dict[str, Any] = {
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
}
VAE_DEFAULTS: dict[str, Any] = {"act_fn": "silu", "norm_num_groups": 32}
TEXT_DEFAULTS: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_text_model",
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": DIFFUSERS_VERSION,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def write_folder(
    dst: Path, source: WeightFile, description: Description, *, dtype: torch.dtype | None, overwrite: bool
) -> int:
    """Write a checkpoint as a diffusers folder, whole or not at all, and return its size in bytes.

    With a `dtype` of None every tensor keeps its own. Raises InputError if `dst` is there and may not be
    replaced (`overwrite` replaces a diffusers folder and nothing else), DreamboothError if the disk is full.
    """
    _check_replaceable(dst, overwrite=overwrite)
    with errors_are_said(dst):
        dst.parent.mkdir(parents=True, exist_ok=True)
        with aside(dst) as temporary:
            temporary.mkdir()
            written = _write_parts(temporary, source, description, dtype)
            put_folder(temporary, dst)
    return written


def folder_bytes(source: WeightFile, description: Description, dtype: torch.dtype | None) -> int:
    """At most so much `write_folder` writes: weights and side file with their headers, tokenizers, and what says how they go
    together, in whole blocks of a disk."""
    contents = [
        Content(component_entries(source, component, bindings, dtype), {"format": "pt"}, {})
        for component, bindings in description.bindings.items()
    ]
    contents.append(_extras(source, description, dtype))
    sizes = [
        len(layout(content.entries, content.metadata)[0]) + sum(entry.nbytes for entry in content.entries)
        for content in contents
    ]
    for part in description.identified.family.text_encoders:
        sizes += tokenizer_folder_bytes(part.pad_token)
    sizes += [_BLOCK] * (len(description.bindings) + 2)  # their configs, the scheduler's, the index
    return sum(-(-size // _BLOCK) * _BLOCK for size in sizes)


def _write_parts(
    folder: Path, source: WeightFile, description: Description, dtype: torch.dtype | None
) -> int:
    identified, written = description.identified, 0
    for component, bindings in description.bindings.items():
        place = folder / component
        place.mkdir()
        entries = component_entries(source, component, bindings, dtype)
        content = Content(entries, {"format": "pt"}, {})
        file = place / f"{FILES[component]}.safetensors"
        written += write_new(file, content, verify=True, hashed=False).nbytes
        _write_json(place / "config.json", _config(component, description, entries[0].dtype))
    extras = _extras(source, description, dtype)
    written += write_new(folder / EXTRAS, extras, verify=True, hashed=False).nbytes
    for part in identified.family.text_encoders:
        write_tokenizer_folder(folder / _tokenizer_of(part), part.pad_token)
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", _scheduler(identified))
    _write_json(folder / INDEX, _index(identified))
    return written


def _tokenizer_of(part: TextPart) -> str:
    return part.component.replace("text_encoder", "tokenizer")


def component_entries(
    source: WeightFile, component: str, bindings: tuple[Binding, ...], dtype: torch.dtype | None
) -> list[Entry]:
    """The tensors of a component as its file in the folder holds them."""
    prefix = TEXT_MODEL if component.startswith("text_encoder") else ""
    entries = []
    for binding in in_file_order(bindings, source):
        target = written_dtype(binding.original, source.tensors[binding.original].dtype, dtype)
        whole = kept(source, binding.original, target)
        shape = binding.shape_in_module(whole.shape)
        for index, name in enumerate(binding.canonical):
            size = whole.nbytes // len(binding.canonical)
            as_is = whole.raw if not binding.transposed else None
            raw = partial(_raw_part, as_is, index * size) if as_is is not None else None
            own = name if name.startswith(PROJECTION) else prefix + name
            entries.append(Entry(own, target, shape, partial(_part, binding, whole, index), raw))
    return entries


def _part(binding: Binding, whole: Entry, index: int) -> torch.Tensor:
    return binding.split(whole.data())[index][1].contiguous()


def _raw_part(raw: RawBytes, offset: int, start: int, memory: memoryview) -> None:
    raw(offset + start, memory)


def _extras(source: WeightFile, description: Description, dtype: torch.dtype | None) -> Content:
    """The side file: what belongs to no module, and how the single file was written down."""
    entries = [
        kept(source, name, written_dtype(name, source.tensors[name].dtype, dtype))
        for name in description.others
    ]
    flat = {
        binding.original: source.tensors[binding.original].shape
        for bindings in description.bindings.values()
        for binding in bindings
        if binding.flat
    }
    about = about_original(source, {name: shape for name, shape in flat.items() if len(shape) != 4})
    return Content(entries, {EXTRAS_ABOUT: about}, {})


def _config(component: str, description: Description, dtype: torch.dtype) -> dict[str, Any]:
    own = description.configs[component]
    if component.startswith("text_encoder"):
        return {**TEXT_DEFAULTS, **own, "torch_dtype": str(dtype).removeprefix("torch.")}
    identified = description.identified
    is_v = identified.prediction_type == "v_prediction"
    side = identified.family.v_resolution if is_v else identified.family.resolution
    if component == "unet":
        defaults = {**UNET_DEFAULTS, "sample_size": side // LATENT_SCALE}
    else:
        upcast = {"force_upcast": True} if identified.family.vae_overflows else {}
        defaults = {**VAE_DEFAULTS, "sample_size": identified.family.resolution, **upcast}
    return {"_class_name": CLASSES[component], "_diffusers_version": DIFFUSERS_VERSION, **defaults, **own}


def _scheduler(identified: Identified) -> dict[str, Any]:
    zero = identified.zero_terminal_snr
    return {
        **SCHEDULER,
        "prediction_type": identified.prediction_type,
        "rescale_betas_zero_snr": zero,
        "timestep_spacing": "trailing" if zero else "leading",
    }


def _index(identified: Identified) -> dict[str, Any]:
    family = identified.family
    texts = {part.component: ["transformers", TEXT_CLASSES[part.pooled]] for part in family.text_encoders}
    tokenizers = {_tokenizer_of(part): ["transformers", "CLIPTokenizer"] for part in family.text_encoders}
    kind = "Inpaint" if family.in_channels == 9 else ""
    return {
        "_diffusers_version": DIFFUSERS_VERSION,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", SCHEDULER["_class_name"]],
        **texts,
        **tokenizers,
        "unet": ["diffusers", CLASSES["unet"]],
        "vae": ["diffusers", CLASSES["vae"]],
        **PIPELINES[family.layout],
        "_class_name": f"{PIPELINES[family.layout]['_class_name']}{kind}Pipeline",
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_bytes((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def _check_replaceable(dst: Path, *, overwrite: bool) -> None:
    if not dst.exists() or (dst.is_dir() and not any(dst.iterdir())):
        return
    if not dst.is_dir() or not (dst / INDEX).is_file():
        raise InputError(
            "it exists already and is no diffusers folder, so it is not replaced",
            where=str(dst),
            remedy="choose another name (--overwrite replaces diffusers folders only)",
        )
    if not overwrite:
        raise InputError(
            "the folder exists already",
            where=str(dst),
            remedy="choose another name, or replace it (--overwrite)",
        )
