"""Adapter files read: kohya's, LyCORIS's, diffusers' and peft's, and laid onto a model's layers.

A file that belongs to another family, or of which a part would be passed over, is refused: half an adapter looks like
one that learned badly.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dreambooth.shared.errors import InputError
from dreambooth.trainer.adapters import kinds, names
from dreambooth.trainer.adapters.kinds import Kind, Shape
from dreambooth.trainer.adapters.targets import Target
from dreambooth.trainer.families import Family
from dreambooth.trainer.weights import WeightFile, open_weights

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_CONFIG = "lora_adapter_metadata"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
SHOWN = 4
# What a file says of its family in its metadata, and the families' names
_STATED = {"sdxl_": "sdxl", "sd_v1": "sd1", "sd_v2": "sd2"}
_ARCHITECTURES = {"stable-diffusion-xl": "sdxl", "stable-diffusion-v1": "sd1", "stable-diffusion-v2": "sd2"}
_SDXL_MARKS = (
    "lora_te2_",
    "text_encoder_2.",
    "lora_unet_input_blocks_4_1_transformer_blocks_1_",
    "lora_unet_label_emb",
)
TITLES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}


@dataclass(frozen=True)
class Layer:
    """One layer's part of a file: `keys` are the file's by kohya's names of the tensors, `shapes` theirs."""

    name: str
    keys: Mapping[str, str]
    shapes: Mapping[str, Shape]
    stated_alpha: float | None = None


@dataclass(frozen=True)
class AdapterFile:
    """An adapter file, opened. `layers` are in the file's order, `strange` the keys that belong to none."""

    path: Path
    source: WeightFile
    layers: tuple[Layer, ...]
    strange: tuple[str, ...]

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.source.metadata

    def tensors(self, layer: Layer) -> dict[str, torch.Tensor]:
        """A layer's tensors in float32, by kohya's names; what is not a weight (alpha) is not among them."""
        found = {
            name: self.source.read(key).float()
            for name, key in layer.keys.items()
            if name not in ("alpha", "scale")
        }
        if names.PEFT_MAGNITUDE in layer.keys.get(kinds.MAGNITUDE, ""):  # for each output, in whatever shape
            dims = found[kinds.DOWN].dim()
            found[kinds.MAGNITUDE] = found[kinds.MAGNITUDE].reshape(-1, *[1] * (dims - 1))
        return found

    def alpha(self, layer: Layer) -> float | None:
        """A layer's alpha: its own, or that of the configuration beside it; None where there is none."""
        key = layer.keys.get("alpha")
        return layer.stated_alpha if key is None else float(self.source.read(key).float())

    def scale(self, layer: Layer) -> float:
        """The factor of what a layer adds, as the WebUI computes it."""
        if "scale" in layer.keys:
            return float(self.source.read(layer.keys["scale"]).float())
        return kinds.scale_of(layer.shapes, self.alpha(layer))

    @property
    def family(self) -> str:
        """The name of the family that it says it is for ("sd1", "sd2", "sdxl"), "" if nothing tells."""
        stated = self.metadata.get("ss_base_model_version", "")
        for start, family in _STATED.items():
            if stated.startswith(start):
                return family
        if any(name.startswith(_SDXL_MARKS) for name in self.source.tensors):
            return "sdxl"
        architecture = self.metadata.get("modelspec.architecture", "")
        for start, family in _ARCHITECTURES.items():
            if architecture.startswith(start):
                return family
        return "sd2" if self.metadata.get("ss_v2") == "True" else ""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of its layers, each once, the most frequent first."""
        found = Counter(kind.name for layer in self.layers if (kind := kinds.kind_of(layer.keys)))
        return tuple(kinds.KINDS[name] for name, _ in found.most_common())

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks of its layers, each once."""
        return tuple(sorted({rank for layer in self.layers if (rank := kinds.rank_of(layer.shapes))}))


@dataclass(frozen=True)
class Bound:
    """An adapter file laid onto a model's layers."""

    file: AdapterFile
    layers: Mapping[Target, Layer] = field(default_factory=dict)


def open_adapter(path: str | Path) -> AdapterFile:
    """Open an adapter's file, or the folder that peft or diffusers made. Raises InputError if it is none."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in (PEFT_FILE, DIFFUSERS_FILE) if (path / name).is_file()]
        if not found:
            raise InputError(
                f"there is neither {PEFT_FILE} nor {DIFFUSERS_FILE} in this folder",
                where=str(path),
                remedy="name a LoRA's file",
            )
        path = found[0]
    source = open_weights(path)
    layers, strange = _layers(source, _configs(path, source))
    if not layers:
        other = next((title for name in source.tensors if (title := names.foreign(name))), "")
        raise InputError(
            f"this adapter is {other}, which cannot be used here" if other else "this is no LoRA",
            where=str(path),
            remedy="take a LoRA, DoRA, LoHa or LoKr file (kohya's, diffusers' or peft's)",
        )
    return AdapterFile(path, source, tuple(layers), tuple(strange))


def adapter_at(path: Path) -> AdapterFile | None:
    """The adapter that a file or folder is, None if it is something else."""
    if path.is_dir() and not any((path / name).is_file() for name in (PEFT_FILE, DIFFUSERS_FILE)):
        return None
    try:
        return open_adapter(path)
    except InputError:
        return None


def _layers(source: WeightFile, configs: Mapping[str, Any]) -> tuple[list[Layer], list[str]]:
    keys: dict[str, dict[str, str]] = {}
    strange = []
    for key in source.tensors:
        parts = names.split(key)
        if parts is None:
            strange.append(key)
        else:
            keys.setdefault(parts[0], {})[parts[1]] = key
    layers = []
    for name, own in keys.items():
        if kinds.kind_of(own) is None:
            strange += own.values()
            continue
        shapes = {tensor: source.tensors[key].shape for tensor, key in own.items()}
        layers.append(Layer(name, own, shapes, _stated_alpha(name, kinds.rank_of(shapes), configs)))
    return layers, strange


def _configs(path: Path, source: WeightFile) -> Mapping[str, Any]:
    """peft's configuration by the prefix of the names that it is for: a file beside, or in diffusers' metadata."""
    beside = path.with_name(PEFT_CONFIG)
    try:
        if path.name == PEFT_FILE and beside.is_file():
            return {"": json.loads(beside.read_text(encoding="utf-8"))}
        if DIFFUSERS_CONFIG in source.metadata:
            flat: dict[str, Any] = json.loads(source.metadata[DIFFUSERS_CONFIG])
            prefixes = {key.partition(".")[0] for key in flat}
            return {
                f"{prefix}.": {
                    key.partition(".")[2]: value
                    for key, value in flat.items()
                    if key.startswith(f"{prefix}.")
                }
                for prefix in prefixes
            }
    except (OSError, ValueError, AttributeError):
        pass  # without it alpha is the rank, as the libraries themselves have it
    return {}


def _stated_alpha(layer: str, rank: int | None, configs: Mapping[str, Any]) -> float | None:
    for prefix, config in configs.items():
        if layer.startswith(prefix) and isinstance(config, dict):
            patterns = config.get("alpha_pattern") or {}
            own = next((value for name, value in patterns.items() if layer.endswith(name)), None)
            alpha = own if own is not None else config.get("lora_alpha")
            if isinstance(alpha, (int, float)):
                # rank-stabilised (arXiv 2312.03732): the factor is alpha / √rank
                return float(alpha) * ((rank or 1) ** 0.5 if config.get("use_rslora") else 1.0)
    return None


def bind(file: AdapterFile, family: Family, targets: Sequence[Target], *, setting: str) -> Bound:
    """Lay a file onto a model's layers.

    Raises InputError if it is for another family, has layers or tensors that the model has not, or of other sizes;
    `setting` is what named the file.
    """
    own = family.name.partition("-")[0]
    if file.family and file.family != own:
        raise _wrong(file, setting, f"it is for {TITLES[file.family]}, and the model is {family.title}")
    known = names.known_as(family, targets)
    unknown = [layer.name for layer in file.layers if layer.name not in known]
    if unknown:
        shown = ", ".join(unknown[:SHOWN]) + (", …" if len(unknown) > SHOWN else "")
        raise _wrong(
            file, setting, f"the model ({family.title}) has not {len(unknown)} of its layers: {shown}"
        )
    if file.strange:
        raise _strange(file, setting)
    bound = {known[layer.name]: layer for layer in file.layers}
    for target, layer in bound.items():
        _check_shapes(file, target, layer, setting)
    return Bound(file, bound)


def _wrong(file: AdapterFile, setting: str, why: str) -> InputError:
    return InputError(
        f"this LoRA does not fit the model: {why}",
        where=f"{setting}: {file.path}" if setting else str(file.path),
        setting=setting,
        remedy="take a LoRA that was made for this model's family",
    )


def _strange(file: AdapterFile, setting: str) -> InputError:
    other = next((title for key in file.strange if (title := names.foreign(key))), "")
    what = f"it holds {other}, which cannot be used here" if other else "it holds tensors that nobody knows"
    shown = ", ".join(file.strange[:SHOWN]) + (", …" if len(file.strange) > SHOWN else "")
    return InputError(
        f"{what}: {shown}",
        where=f"{setting}: {file.path}" if setting else str(file.path),
        setting=setting,
        remedy="take a LoRA, DoRA, LoHa or LoKr file without them",
    )


def _check_shapes(file: AdapterFile, target: Target, layer: Layer, setting: str) -> None:
    made = made_shape(layer.shapes)
    wanted = target.shape[0], target.shape[1:]
    count = 1
    for size in wanted[1]:
        count *= size
    if made != (wanted[0], count):
        raise _wrong(
            file,
            setting,
            f"its {layer.name} is for a layer of {made[0]} x {made[1]}, and the model's has {wanted[0]} x {count}",
        )


def made_shape(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Rows and columns of what a layer's tensors make, seen as a matrix (0 where they make none)."""

    def columns(name: str) -> int:
        count = 1
        for size in shapes[name][1:]:
            count *= size
        return count

    def core(name: str) -> int:
        return shapes[name][2] * shapes[name][3] if name in shapes else 1

    if kinds.UP in shapes:
        return shapes[kinds.UP][0], columns(kinds.DOWN) * core(kinds.MID)
    if kinds.LOHA[0] in shapes:
        if "hada_t1" in shapes:
            return shapes[kinds.LOHA[0]][1], columns(kinds.LOHA[1]) * core("hada_t1")
        return shapes[kinds.LOHA[0]][0], columns(kinds.LOHA[1])
    first = shapes[kinds.W1] if kinds.W1 in shapes else (shapes[kinds.W1_A][0], shapes[kinds.W1_B][1])
    if kinds.W2 in shapes:
        second = shapes[kinds.W2][0], columns(kinds.W2)
    elif kinds.T2 in shapes:
        second = shapes[kinds.W2_A][1], columns(kinds.W2_B) * core(kinds.T2)
    else:
        second = shapes[kinds.W2_A][0], columns(kinds.W2_B)
    return first[0] * second[0], first[1] * second[1]
