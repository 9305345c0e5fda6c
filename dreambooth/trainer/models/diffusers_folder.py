"""A diffusers folder: opened as if it were a single file, so that everything else needs to know only those."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dreambooth.shared.errors import InputError
from dreambooth.trainer.families import FAMILIES, PREDICTION_TYPES, Family, PredictionType, TextPart, names
from dreambooth.trainer.families.folder_configs import (
    is_openclip,
    text_from_config,
    unet_from_config,
    vae_from_config,
)
from dreambooth.trainer.families.kinds import CHECKPOINT
from dreambooth.trainer.families.ldm_yaml import Stated
from dreambooth.trainer.families.names import TEXT_MODEL, Binding
from dreambooth.trainer.families.topology import UnknownTopology
from dreambooth.trainer.weights import TensorInfo, WeightFile, open_weights
from dreambooth.trainer.weights.base import RawBytes, nbytes_of, read_whole

INDEX = "model_index.json"
EXTRAS = "original_extras.safetensors"
EXTRAS_ABOUT = "dreambooth.original"
FILES = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
VARIANTS = (".safetensors", ".fp16.safetensors", ".non_ema.safetensors", ".bin", ".fp16.bin")
OLD_VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
AGAIN = "download the folder again, or take the single file"


@dataclass(frozen=True)
class Original:
    """What the side file knows of the single file that the folder was made from.

    `order` holds all its names; `shapes` those of tensors that the folder has in another shape.
    """

    order: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    extras: Mapping[str, object]


NO_ORIGINAL = Original((), {}, {}, {})


@dataclass(frozen=True)
class Part:
    """Where one tensor of the single file lies: in which files, under which names, in order; `transposed` if it lies
    there with its axes exchanged."""

    places: tuple[tuple[WeightFile, str], ...]
    info: TensorInfo
    transposed: bool = False

    @property
    def is_one_piece(self) -> bool:
        return len(self.places) == 1 and not self.transposed


class FolderFile:
    """A diffusers folder seen as the single file that it was, or could have been, made from."""

    format = "diffusers"

    def __init__(self, path: Path, parts: Mapping[str, Part], original: Original, stated: Stated) -> None:
        self.path = path
        self.stated = stated
        self.metadata = dict(original.metadata)
        self.extras: dict[str, object] = dict(original.extras)
        known = [name for name in original.order if name in parts]
        listed = set(known)
        order = [*known, *(name for name in parts if name not in listed)]
        self._parts = {name: parts[name] for name in order}
        self.tensors = {name: part.info for name, part in self._parts.items()}

    def read(self, name: str) -> torch.Tensor:
        """The tensor in memory of its own, in its stored dtype."""
        return read_whole(self, name)

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Fill `out` with the tensor, cast to `out`'s dtype."""
        part = self._parts[name]
        if part.transposed:
            out.copy_(part.places[0][0].read(part.places[0][1]).T.reshape(out.shape))
            return
        start, flat = 0, out.view(-1)
        for file, own in part.places:
            count = _numel(file.tensors[own])
            file.read_into(own, flat[start : start + count])
            start += count

    def raw(self, name: str) -> RawBytes | None:
        """What reads the tensor's bytes, row by row; None if they do not lie in this order, or in several files."""
        part = self._parts[name]
        file, own = part.places[0]
        return file.raw(own) if part.is_one_piece else None

    def mapped(self, name: str) -> torch.Tensor | None:
        """The tensor in its file's own pages, copied where it is written to; None where that cannot be."""
        part = self._parts[name]
        if not part.is_one_piece:
            return None
        file, own = part.places[0]
        found = file.mapped(own)
        return None if found is None else found.reshape(part.info.shape)


def open_folder(path: Path) -> FolderFile:
    """Open a diffusers folder of Stable Diffusion 1.x, 2.x or XL.

    Raises InputError naming the folder and what is wrong with it.
    """
    if not (path / INDEX).is_file():
        raise InputError(
            f"this folder is no diffusers model: it has no {INDEX}",
            where=str(path),
            remedy="name a .safetensors or .ckpt file, or a folder that diffusers wrote",
        )
    _check_kind(path)
    original, kept = _original(path)
    unet = _json(path / "unet" / "config.json")
    family = _family(path)
    texts = {part: _json(path / part.component / "config.json") for part in family.text_encoders}
    try:
        topology, heads = unet_from_config(unet)
        bindings = {
            "unet": names.unet_bindings(topology),
            **{part.component: _text_bindings(part, text, original) for part, text in texts.items()},
            "vae": _vae_bindings(path),
        }
    except UnknownTopology as error:
        raise InputError(
            f"this folder's model is not of Stable Diffusion's shape: {error}", where=str(path)
        ) from error
    parts: dict[str, Part] = {}
    for component, wanted in bindings.items():
        parts |= _parts(_component(path, component), wanted, original)
    if kept is not None:
        parts |= {name: Part(((kept, name),), info) for name, info in kept.tensors.items()}
    prediction_type, zero_snr = _scheduler(path)
    stated = Stated(
        told_by="its scheduler's config says so",
        prediction_type=prediction_type,
        heads=heads,
        zero_terminal_snr=zero_snr,
        last_text_layer=_has_no_more_layers(texts, original),
    )
    return FolderFile(path, parts, original, stated)


def _vae_folder(path: Path) -> Path:
    return path / "vae" if (path / "vae").is_dir() else path


def vae_scale(path: Path) -> float:
    """What the latents of a folder's autoencoder are multiplied by. Raises InputError."""
    # diffusers takes Stable Diffusion 1's where a folder is older than that entry
    return float(
        _json(_vae_folder(path) / "config.json").get("scaling_factor", FAMILIES["sd1"].scaling_factor)
    )


def open_vae_folder(path: Path) -> FolderFile:
    """The autoencoder of a diffusers folder, or of a folder that is one. Raises InputError."""
    folder = _vae_folder(path)
    file = _weight_file(folder, FILES["vae"])
    try:
        bindings = names.vae_bindings(vae_from_config(_json(folder / "config.json")))
    except UnknownTopology as error:
        raise InputError(f"this is no VAE that can be used: {error}", where=str(folder)) from error
    return FolderFile(path, _parts(file, bindings, NO_ORIGINAL), NO_ORIGINAL, Stated(""))


def _check_kind(path: Path) -> None:
    """Raises InputError for a folder of another kind of model, naming it."""
    index = _json(path / INDEX)
    kind = str(index.get("_class_name", "unknown"))
    if "unet" not in index:
        raise InputError(
            f"this folder holds a {kind}, which is not supported", where=str(path), remedy=CHECKPOINT
        )
    if index.get("text_encoder_2") and not (index.get("text_encoder") or [None])[0]:
        raise InputError(
            "this is the refiner of Stable Diffusion XL, which cannot be trained here",
            where=str(path),
            remedy="take the base of Stable Diffusion XL",
        )


def _family(path: Path) -> Family:
    """A family whose text encoders lie under the names that the folder's have in a single file; whether its UNet has
    an inpainting model's channels is told later, as of a single file."""
    index = _json(path / INDEX)
    two = bool((index.get("text_encoder_2") or [None])[0])
    openclip = is_openclip(_json(path / "text_encoder" / "config.json"))
    return FAMILIES["sdxl" if two else "sd2" if openclip else "sd1"]


def _text_bindings(part: TextPart, config: Mapping[str, Any], original: Original) -> list[Binding]:
    topology = text_from_config(config)
    if part.kind == "openclip":
        return names.openclip_bindings(topology, part.prefix)
    return names.clip_bindings(topology, names.text_prefix(part, original.order))


def _vae_bindings(path: Path) -> list[Binding]:
    return names.vae_bindings(vae_from_config(_json(path / "vae" / "config.json")))


def _has_no_more_layers(texts: Mapping[TextPart, Mapping[str, Any]], original: Original) -> bool:
    """Whether every layer of an OpenCLIP encoder is in the folder: the layer that SD2 does not use is not."""
    unused = [
        f"{part.prefix}transformer.resblocks.{config['num_hidden_layers']}.ln_1.weight"
        for part, config in texts.items()
        if part.kind == "openclip"
    ]
    return bool(unused) and not any(name in original.order for name in unused)


def _parts(file: WeightFile, bindings: Iterable[Binding], original: Original) -> dict[str, Part]:
    own = {_canonical(name): name for name in file.tensors}
    parts = {}
    for binding in bindings:
        if all(name in own for name in binding.canonical):
            places = tuple((file, own[name]) for name in binding.canonical)
            info = _info(binding, places, original)
            parts[binding.original] = Part(places, info, binding.transposed)
    return parts


def _info(binding: Binding, places: tuple[tuple[WeightFile, str], ...], original: Original) -> TensorInfo:
    first = places[0][0].tensors[places[0][1]]
    rows = sum(file.tensors[name].shape[0] for file, name in places)
    shape = tuple(reversed(first.shape)) if binding.transposed else (rows, *first.shape[1:])
    if binding.flat and len(shape) == 2:
        shape = (*shape, 1, 1)
    known = original.shapes.get(binding.original, shape)
    if nbytes_of(first.dtype, known) == nbytes_of(first.dtype, shape):
        shape = known
    return TensorInfo(first.dtype, shape, nbytes_of(first.dtype, shape))


def _canonical(name: str) -> str:
    """The canonical name of a tensor as any version of diffusers or transformers has written it."""
    name = name.removeprefix(TEXT_MODEL)
    if ".attentions.0." in name:
        place, _, leaf = name.partition(".attentions.0.")
        for new, old in OLD_VAE_ATTENTION.items():
            if leaf.startswith(f"{old}."):
                return f"{place}.attentions.0.{new}{leaf[len(old) :]}"
    return name


def _component(path: Path, component: str) -> WeightFile:
    return _weight_file(path / component, FILES[component], "pytorch_model")


def _weight_file(folder: Path, *stems: str) -> WeightFile:
    for stem in stems:
        for suffix in VARIANTS:
            if (folder / f"{stem}{suffix}").is_file():
                return open_weights(folder / f"{stem}{suffix}")
    raise InputError(f"it holds no weights ({stems[0]}.safetensors)", where=str(folder), remedy=AGAIN)


def _scheduler(path: Path) -> tuple[PredictionType | None, bool]:
    place = path / "scheduler" / "scheduler_config.json"
    config = _json(place) if place.is_file() else {}
    said = config.get("prediction_type", "epsilon")
    found = next((known for known in PREDICTION_TYPES if known == said), None)
    if found is None:
        raise InputError(f"its prediction_type is {said!r}, which is not supported", where=str(place))
    return (found if config else None), bool(config.get("rescale_betas_zero_snr"))


def _original(path: Path) -> tuple[Original, WeightFile | None]:
    if not (path / EXTRAS).is_file():
        return NO_ORIGINAL, None
    kept = open_weights(path / EXTRAS)
    try:
        about = json.loads(kept.metadata[EXTRAS_ABOUT])
        original = Original(
            order=tuple(about["order"]),
            shapes={name: tuple(shape) for name, shape in about["shapes"].items()},
            metadata=about["metadata"],
            extras=about["extras"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            "this side file is damaged", where=str(path / EXTRAS), remedy="delete it to go on without it"
        ) from error
    return original, kept


def about_original(file: WeightFile, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What the side file says of the single file, as JSON; `shapes` are those that the folder changes."""
    return json.dumps(
        {
            "order": list(file.tensors),
            "shapes": {name: list(shape) for name, shape in shapes.items()},
            "metadata": file.metadata,
            "extras": file.extras,
        },
        ensure_ascii=False,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("the folder lacks this file", where=str(path), remedy=AGAIN) from error
    except (ValueError, OSError) as error:
        raise InputError(f"it cannot be read: {error}", where=str(path), remedy=AGAIN) from error
    if not isinstance(content, dict):
        raise InputError("this is no table", where=str(path), remedy=AGAIN)
    return content


def _numel(info: TensorInfo) -> int:
    return info.nbytes // info.dtype.itemsize
