"""Adapters merged into a model's weights, in float32, as the WebUI computes them: for pictures and for checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dreambooth.shared.errors import InputError
from dreambooth.trainer.adapters import kinds
from dreambooth.trainer.adapters.plan import AdapterPlan
from dreambooth.trainer.adapters.reading import Bound, bind, open_adapter
from dreambooth.trainer.adapters.summary import other_prediction
from dreambooth.trainer.adapters.targets import Target, targets_of
from dreambooth.trainer.families import Identified
from dreambooth.trainer.families.description import Description
from dreambooth.trainer.models.loading import LoadedModel, in_file_order
from dreambooth.trainer.weights import TensorInfo, WeightFile
from dreambooth.trainer.weights.base import RawBytes
from dreambooth.trainer.weights.casting import is_finite

MOST_WEIGHT = 100.0
MERGED = "dreambooth.merged"
"""Where a checkpoint says which adapters are in its weights: FILE:WEIGHT each, oldest first."""


@dataclass(frozen=True)
class Request:
    """A file to be merged, and how much of it: 1 is all."""

    path: Path
    weight: float = 1.0


@dataclass(frozen=True)
class Merge:
    """A request laid onto a model."""

    bound: Bound
    weight: float

    def merged(self, target: Target, weight: torch.Tensor) -> torch.Tensor:
        """A layer's new weight, float32: W + weight · (W' − W), where W' is the weight with all of the adapter."""
        layer = self.bound.layers[target]
        kind = kinds.kind_of(layer.keys)
        assert kind is not None
        file = self.bound.file
        tensors = {name: tensor.to(weight.device) for name, tensor in file.tensors(layer).items()}
        whole = kind.merged(weight.float(), tensors, file.scale(layer))
        return whole if self.weight == 1 else torch.lerp(weight.float(), whole, self.weight)


def parse_request(text: str) -> Request:
    """FILE or FILE:WEIGHT. Raises InputError for no file, and for a weight that is none."""
    name, colon, number = text.rpartition(":")
    if not text.strip() or (colon and not name):
        raise _no_request(text, "no file is named")
    if Path(text).exists() or not colon or number[:1] in ("/", "\\"):  # a path may have colons, as C:\\x
        return Request(Path(text))
    weight = _number(number)
    if not abs(weight) <= MOST_WEIGHT:
        raise _no_request(text, f"`{number}` is no weight" if number else "no weight stands behind the colon")
    before = name.rpartition(":")
    if before[0] and not math.isnan(_number(before[2])) and not Path(name).exists():
        raise _no_request(text, "two weights stand there")
    return Request(Path(name), weight)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _no_request(text: str, what: str) -> InputError:
    return InputError(
        what,
        where=f"--lora {text}".rstrip(),
        remedy=f"FILE alone is all of it, FILE:0.5 half; at most {MOST_WEIGHT:g}",
    )


def prepare(
    requests: Sequence[Request], source: WeightFile, description: Description, *, setting: str = "--lora"
) -> list[Merge]:
    """Lays adapter files onto a checkpoint. Raises InputError for one that does not fit it."""
    targets = targets_of(source, description)
    family = description.identified.family
    return [
        Merge(bind(open_adapter(request.path), family, targets, setting=setting), request.weight)
        for request in requests
    ]


class MergedFile:
    """A checkpoint's file seen with adapters in its weights: each is made when it is read, and cast last.

    As in the WebUI, each adapter finds the weight that those before it have made.
    """

    def __init__(self, file: WeightFile, description: Description, merges: Sequence[Merge]) -> None:
        self._file = file
        self.path = file.path
        self.format = file.format
        self.metadata = {**file.metadata, MERGED: _merged_in(file.metadata, merges)}
        self.extras = file.extras
        self.tensors: dict[str, TensorInfo] = file.tensors
        self.adapters = [merge.bound.file for merge in merges]
        layers: dict[tuple[str, str], list[tuple[Merge, Target]]] = {}
        for merge in merges:
            for target in merge.bound.layers:
                layers.setdefault((target.component, target.weight), []).append((merge, target))
        self._touched = {
            binding.original: (binding, [layers.get((component, name), []) for name in binding.canonical])
            for component, bindings in description.bindings.items()
            for binding in bindings
            if any((component, name) in layers for name in binding.canonical)
        }

    def read(self, name: str) -> torch.Tensor:
        """The tensor in memory of its own, in its stored dtype."""
        return (
            self._merged(name).to(self.tensors[name].dtype)
            if name in self._touched
            else self._file.read(name)
        )

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Fill `out` with the tensor, cast to `out`'s dtype."""
        if name in self._touched:
            out.copy_(self._merged(name).reshape(out.shape))
        else:
            self._file.read_into(name, out)

    def raw(self, name: str) -> RawBytes | None:
        """What reads the tensor's bytes, row by row; None if they do not lie in this order."""
        return None if name in self._touched else self._file.raw(name)

    def mapped(self, name: str) -> torch.Tensor | None:
        """The tensor in the file's own pages, copied where it is written to; None where that cannot be."""
        return None if name in self._touched else self._file.mapped(name)

    @torch.no_grad()
    def _merged(self, name: str) -> torch.Tensor:
        """The tensor in float32 and the file's shape. Raises InputError if that is too narrow for what becomes of it."""
        binding, layers = self._touched[name]
        whole = self._file.read(name)
        parts = []
        for (_, part), own in zip(binding.split(whole), layers, strict=True):
            weight = part.float()
            for merge, target in own:
                weight = merge.merged(target, weight)
            if own and not is_finite(weight):
                raise InputError(
                    f"with the adapter in it {name} is no longer made of finite numbers",
                    where=str(self.path),
                    remedy="give the adapter less weight (--lora FILE:1), or take another",
                )
            parts.append(weight)
        return binding.join(parts, whole.shape)


def _merged_in(metadata: Mapping[str, str], merges: Sequence[Merge]) -> str:
    """The names of the adapters, behind those that a file has in it already."""
    new = [f"{merge.bound.file.path.name}:{merge.weight:g}" for merge in merges]
    return ", ".join([*filter(None, [metadata.get(MERGED, "")]), *new])


def with_adapters(source: WeightFile, description: Description, requests: Sequence[Request]) -> WeightFile:
    """A checkpoint's file with adapters in its weights; itself if there are none. Raises InputError for one that does
    not fit it."""
    return MergedFile(source, description, prepare(requests, source, description)) if requests else source


def notes_on_adapters(source: WeightFile, identified: Identified) -> list[str]:
    """What there is to say of the adapters that are in a checkpoint's weights, if there are any."""
    adapters = source.adapters if isinstance(source, MergedFile) else []
    return [note for file in adapters for note in (*file.notes, *other_prediction(file, identified))]


@torch.no_grad()
def adapted_weights(
    base: LoadedModel, component: str, plan: AdapterPlan, trained: Mapping[str, torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The weights of a component's adapted layers, float32, before and after; one after the other.

    `trained` are the adapter's numbers by "path.tensor".
    """
    layers = {layer.target.weight: layer for layer in plan.layers if layer.target.component == component}
    for binding in in_file_order(base.description.bindings[component], base.source):
        if not any(name in layers for name in binding.canonical):
            continue
        for name, part in binding.split(base.source.read(binding.original)):
            if name in layers:
                layer, before = layers[name], part.float()
                tensors = {tensor: trained[f"{layer.target.path}.{tensor}"] for tensor in layer.shapes}
                yield before, plan.kind.merged(before, tensors, layer.scale)
