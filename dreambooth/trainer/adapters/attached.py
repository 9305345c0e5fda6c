"""A model with its adapter on: the trained numbers by name, and the base again when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch

from dreambooth.trainer.adapters.kinds import beginning
from dreambooth.trainer.adapters.layers import Adapted, Switch
from dreambooth.trainer.adapters.plan import AdapterPlan, PlannedLayer
from dreambooth.trainer.draws import words


class Attached:
    """The adapter of a model's components; it is in the components themselves, which stay the same objects."""

    def __init__(self, layers: Mapping[str, Mapping[str, Adapted]], switch: Switch) -> None:
        self._layers = layers
        self._switch = switch

    def state(self, component: str) -> dict[str, torch.Tensor]:
        """A component's trained numbers by "path.tensor", the tensor by kohya's name; they share its memory."""
        return {
            f"{path}.{name}": parameter.detach()
            for path, layer in self._layers[component].items()
            for name, parameter in layer.tensors.items()
        }

    def off(self) -> AbstractContextManager[None]:
        """The model is the base while the block runs."""
        return self._switch.off()


def attach(components: Mapping[str, torch.nn.Module], plan: AdapterPlan, seed: int) -> Attached:
    """Puts an adapter on the model's layers; all else is frozen.

    It begins as the file that it goes on from, else so that it adds nothing, drawn from the seed and the layer's name:
    the same on every machine.
    """
    switch = Switch()
    found: dict[str, dict[str, Adapted]] = {}
    for component in {layer.target.component for layer in plan.layers}:
        components[component].requires_grad_(False)
    for planned in plan.layers:
        target = planned.target
        parent, name, layer = _place(components[target.component], target.path)
        device = next(layer.parameters()).device
        adapted = Adapted(
            layer,
            plan.kind.name,
            _values(plan, planned, layer, seed),
            planned.scale,
            dropout=plan.dropout,
            switch=switch,
        ).to(device)
        setattr(parent, name, adapted)
        found.setdefault(target.component, {})[target.path] = adapted
    return Attached(found, switch)


def _place(component: torch.nn.Module, path: str) -> tuple[torch.nn.Module, str, torch.nn.Module]:
    """A layer, and the module and name under which it is to be found."""
    above, _, name = path.rpartition(".")
    root = getattr(component, "text_model", component)  # transformers' own text encoder
    parent = root.get_submodule(above)
    return parent, name, parent.get_submodule(name)


def _values(
    plan: AdapterPlan, planned: PlannedLayer, layer: torch.nn.Module, seed: int
) -> dict[str, torch.Tensor]:
    target = planned.target
    if next(layer.parameters()).is_meta:  # where memory is counted, there are sizes and no numbers
        return {name: torch.empty(shape, device="meta") for name, shape in planned.shapes.items()}
    if plan.start is not None and target in plan.start.layers:
        held = plan.start.file.tensors(plan.start.layers[target])
        return {name: held[name].reshape(shape).clone() for name, shape in planned.shapes.items()}
    return {
        name: beginning(plan.kind.starts[name], shape, layer, words(seed, target.where, name)[0])
        for name, shape in planned.shapes.items()
    }
