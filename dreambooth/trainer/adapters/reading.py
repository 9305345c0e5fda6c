"""Adapter files read: kohya's, LyCORIS's, diffusers' and peft's, and laid onto a model's layers.

A file that belongs to another family, or of which a part would be passed over, is refused: half an adapter looks like
one that learned badly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dreambooth.shared.errors import InputError
from dreambooth.trainer.adapters import kinds, names, told
from dreambooth.trainer.adapters.forms import NUMBERS, fits_magnitude, lacking, made_shape, misfit
from dreambooth.trainer.adapters.kinds import Kind, Shape
from dreambooth.trainer.adapters.peft_config import (
    DIFFUSERS_FILE,
    PEFT_CONFIG,
    PEFT_FILE,
    BrokenConfig,
    Configs,
    configs_of,
    contradiction,
    stated_alpha,
)
from dreambooth.trainer.adapters.targets import Target
from dreambooth.trainer.families import Family
from dreambooth.trainer.weights import WeightFile, open_weights

SHOWN = 4


@dataclass(frozen=True)
class Layer:
    """One layer's part of a file: `keys` are the file's by kohya's names of the tensors, `shapes` theirs, `contradicted` how
    the configuration beside them has them otherwise, "" if it does not."""

    name: str
    keys: Mapping[str, str]
    shapes: Mapping[str, Shape]
    stated_alpha: float | None = None
    contradicted: str = ""


@dataclass(frozen=True)
class AdapterFile:
    """An adapter file, opened. `layers` are in the file's order, `strange` the keys that belong to none, `notes` what
    is to be said of it."""

    path: Path
    source: WeightFile
    layers: tuple[Layer, ...]
    strange: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.source.metadata

    def tensors(self, layer: Layer) -> dict[str, torch.Tensor]:
        """A layer's tensors in float32, by kohya's names; what is not a weight (alpha) is not among them."""
        found = {
            name: self.source.read(key).float() for name, key in layer.keys.items() if name not in NUMBERS
        }
        if _is_for_outputs(layer):
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
        """The name of the family that it is for ("sd1", "sd2", "sdxl"), "" if nothing tells."""
        return told.by_tensors(self.source.tensors) or told.by_metadata(self.metadata)

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
    try:
        source = open_weights(path)
    except InputError as error:
        if "checkpoint" in error.remedy:
            error.remedy = "name a LoRA's file"
        raise
    layers, strange = _layers(source, configs_of(path, source))
    if not layers:
        if lost := _lost(strange):
            raise _damaged(str(path), "", lost)
        other = next((title for name in source.tensors if (title := names.foreign(name))), "")
        raise InputError(
            f"this adapter is {other}, which cannot be used here" if other else "this is no LoRA",
            where=str(path),
            remedy="take a LoRA, DoRA, LoHa or LoKr file (kohya's, diffusers' or peft's)",
        )
    said = told.contradiction(source.tensors, source.metadata)
    notes = [*([f"{path.name}: {said}"] if said else ()), *_notes(path, layers)]
    return AdapterFile(path, source, tuple(layers), tuple(strange), tuple(notes))


def adapter_at(path: Path) -> AdapterFile | None:
    """The adapter that a file or folder is, None if it is something else. Raises InputError for one whose
    configuration is broken."""
    if path.is_dir() and not any((path / name).is_file() for name in (PEFT_FILE, DIFFUSERS_FILE)):
        return None
    try:
        return open_adapter(path)
    except BrokenConfig:
        raise
    except InputError:
        return None


def _notes(path: Path, layers: Sequence[Layer]) -> tuple[str, ...]:
    is_told = any("alpha" in layer.keys or layer.stated_alpha is not None for layer in layers)
    is_pefts = path.name == PEFT_FILE or any(layer.name.startswith(names.PEFT_START) for layer in layers)
    if is_told or not is_pefts:
        return ()
    shown = path.parent.name if path.name == PEFT_FILE else path.name
    return (f"no alpha is told for {shown}, so that all of it is added: peft writes it into {PEFT_CONFIG}",)


def _layers(source: WeightFile, configs: Configs) -> tuple[list[Layer], list[str]]:
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
        if kinds.kind_of(own) is None or lacking(own):
            strange += own.values()
            continue
        shapes = {tensor: source.tensors[key].shape for tensor, key in own.items()}
        rank = kinds.rank_of(shapes)
        against = contradiction(name, rank, kinds.MAGNITUDE in own, configs)
        layers.append(Layer(name, own, shapes, stated_alpha(name, rank, configs), against))
    return layers, strange


def bind(file: AdapterFile, family: Family, targets: Sequence[Target], *, setting: str) -> Bound:
    """Lay a file onto a model's layers.

    Raises InputError if it is for another family, has layers or tensors that the model has not, or of other sizes;
    `setting` is what named the file.
    """
    own = family.name.partition("-")[0]
    if file.family and file.family != own:
        raise _wrong(file, setting, f"it is for {told.TITLES[file.family]}, and the model is {family.title}")
    known = names.known_as(family, targets)
    unknown = [layer.name for layer in file.layers if layer.name not in known]
    other = names.foreign_model(file.metadata, unknown)
    if other and not told.by_tensors(file.source.tensors):
        raise _wrong(file, setting, f"it is for {other}, and the model is {family.title}")
    if unknown and all(name.endswith(names.PROJECTION) for name in unknown):
        raise _wrong(
            file, setting, f"its {unknown[0]} changes the text projection, which no adapter here does"
        )
    if unknown:
        shown = ", ".join(unknown[:SHOWN]) + (", …" if len(unknown) > SHOWN else "")
        raise _wrong(file, setting, f"the model ({family.title}) lacks {len(unknown)} of its layers: {shown}")
    if file.strange:
        raise _strange(file, setting)
    for problem in problems(file):
        raise _damaged(str(file.path), setting, problem)
    bound = {known[layer.name]: layer for layer in file.layers}
    for target, layer in bound.items():
        _check_shapes(file, target, layer, setting)
    return Bound(file, bound)


def problems(file: AdapterFile, *, read: bool = True) -> Iterator[str]:
    """What is damaged in a file: tensors that do not go together, and, if it is `read`, numbers that are none."""
    for layer in file.layers:
        found = [f"{layer.keys[name]} ({_sizes(layer.shapes[name])})" for name in misfit(layer.shapes)]
        if found:
            together = "do not go together" if len(found) > 1 else "has a shape that cannot be"
            yield f"{' and '.join(found)} {together}"
            return
        if layer.contradicted:
            yield layer.contradicted
            return
    for key in (key for layer in file.layers for key in layer.keys.values() if read):
        if not bool(torch.isfinite(file.source.read(key).float()).all()):
            yield f"{key} holds NaN or an infinite number"


def _lost(strange: Sequence[str]) -> str:
    """What is lacking in a layer of which a part is there, "" if nothing is known to be."""
    layers: dict[str, set[str]] = {}
    for key in strange:
        layer, tensor = names.split(key) or ("", "")
        layers.setdefault(layer, set()).add(tensor)
    return next((f"{layer} has no {lost}" for layer, own in layers.items() if (lost := lacking(own))), "")


def _damaged(path: str, setting: str, problem: str) -> InputError:
    return InputError(
        f"this LoRA is damaged: {problem}",
        where=f"{setting}: {path}" if setting else path,
        setting=setting,
        remedy="download or copy it again, or take another",
    )


def _sizes(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _is_for_outputs(layer: Layer) -> bool:
    """Whether its magnitude is peft's: one number for each output, in whatever shape."""
    return names.PEFT_MAGNITUDE in layer.keys.get(kinds.MAGNITUDE, "")


def _wrong(file: AdapterFile, setting: str, why: str) -> InputError:
    return InputError(
        f"this LoRA does not fit the model: {why}",
        where=f"{setting}: {file.path}" if setting else str(file.path),
        setting=setting,
        remedy="take a LoRA that was made for this model's family",
    )


def _strange(file: AdapterFile, setting: str) -> InputError:
    if lost := _lost(file.strange):
        return _damaged(str(file.path), setting, lost)
    return InputError(
        strangers(file),
        where=f"{setting}: {file.path}" if setting else str(file.path),
        setting=setting,
        remedy="take a LoRA, DoRA, LoHa or LoKr file without them",
    )


def strangers(file: AdapterFile) -> str:
    """What a file holds that cannot be used here, "" if nothing."""
    if not file.strange:
        return ""
    if lost := _lost(file.strange):
        return f"damaged: {lost}"
    other = next((title for key in file.strange if (title := names.foreign(key))), "")
    what = f"it holds {other}, which cannot be used here" if other else "it holds tensors that nobody knows"
    return f"{what}: {', '.join(file.strange[:SHOWN])}{', …' if len(file.strange) > SHOWN else ''}"


def _check_shapes(file: AdapterFile, target: Target, layer: Layer, setting: str) -> None:
    made = made_shape(layer.shapes)
    wanted = target.shape[0], math.prod(target.shape[1:])
    if made != wanted:
        raise _wrong(
            file,
            setting,
            f"its {layer.name} is for a layer of {made[0]} x {made[1]}, and the model's has {wanted[0]} x {wanted[1]}",
        )
    magnitude = layer.shapes.get(kinds.MAGNITUDE)
    if magnitude and not fits_magnitude(magnitude, target.shape, flat=_is_for_outputs(layer)):
        sizes = f"{layer.keys[kinds.MAGNITUDE]} ({_sizes(magnitude)})"
        problem = f"{sizes} does not go with a layer of {_sizes(target.shape)}"
        raise _damaged(str(file.path), setting, problem)
