"""Adapters merged into a model's weights, in float32, as the WebUI computes them: for pictures and for checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from dreambooth.shared.errors import InputError
from dreambooth.trainer.adapters import kinds
from dreambooth.trainer.adapters.plan import AdapterPlan
from dreambooth.trainer.adapters.reading import Bound, bind, open_adapter
from dreambooth.trainer.adapters.targets import Target, targets_of
from dreambooth.trainer.families.description import Description
from dreambooth.trainer.families.names import Binding
from dreambooth.trainer.loading import LoadedModel, in_file_order
from dreambooth.trainer.weights import Entry, WeightFile

MOST_WEIGHT = 100.0


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
    """FILE or FILE:WEIGHT. Raises InputError for a weight that is none."""
    name, colon, number = text.rpartition(":")
    if colon and name and not Path(text).exists():
        try:
            weight = float(number)
        except ValueError:
            return Request(Path(text))  # a drive's letter
        if not abs(weight) <= MOST_WEIGHT:
            raise InputError(f"{number} is no weight", where="--lora", remedy="1 is all of it, 0.5 half")
        return Request(Path(name), weight)
    return Request(Path(text))


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


@torch.no_grad()
def merge_into(model: LoadedModel, requests: Sequence[Request], *, setting: str = "--lora") -> None:
    """Adds adapters to a loaded model's weights, in place. Raises InputError for one that does not fit.

    As in the WebUI, each finds the weight that those before it have made.
    """
    for merge in prepare(requests, model.source, model.description, setting=setting):
        for target in merge.bound.layers:
            weight = _weight_of(model.components[target.component], target)
            weight.copy_(merge.merged(target, weight))


def _weight_of(component: torch.nn.Module, target: Target) -> torch.Tensor:
    """The weight of a layer, whatever the library calls what is above it."""
    found = dict(component.named_parameters())
    name = target.weight if target.weight in found else f"text_model.{target.weight}"
    return found[name]


def merged_entries(
    entries: Sequence[Entry], source: WeightFile, description: Description, merges: Sequence[Merge]
) -> list[Entry]:
    """A checkpoint's entries with adapters in them: each weight is made when its turn comes, and cast last."""
    touched: dict[str, tuple[str, Binding]] = {}
    by_weight: dict[tuple[str, str], list[tuple[Merge, Target]]] = {}
    for merge in merges:
        for target in merge.bound.layers:
            by_weight.setdefault((target.component, target.weight), []).append((merge, target))
    for component, bindings in description.bindings.items():
        for binding in bindings:
            if any((component, name) in by_weight for name in binding.canonical):
                touched[binding.original] = (component, binding)
    return [
        dataclasses.replace(
            entry, data=partial(_merged, source, entry, *touched[entry.name], by_weight), raw=None
        )
        if entry.name in touched
        else entry
        for entry in entries
    ]


def _merged(
    source: WeightFile,
    entry: Entry,
    component: str,
    binding: Binding,
    by_weight: Mapping[tuple[str, str], Sequence[tuple[Merge, Target]]],
) -> torch.Tensor:
    parts = []
    for name, part in binding.split(source.read(binding.original)):
        weight = part.float()
        for merge, target in by_weight.get((component, name), ()):
            weight = merge.merged(target, weight)
        parts.append(weight.to(entry.dtype))
    return binding.join(parts, entry.shape)


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
