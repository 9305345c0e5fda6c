"""What a checkpoint consists of: the configs of its modules, and which of its tensors goes where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dreambooth.shared.errors import InputError
from dreambooth.trainer.families import TITLES, Family, Identified, TextPart, names, title_in
from dreambooth.trainer.families.ldm_yaml import Stated
from dreambooth.trainer.families.names import Binding
from dreambooth.trainer.families.topology import (
    TextTopology,
    UnknownTopology,
    clip_topology,
    openclip_topology,
    text_config,
    unet_config,
    unet_topology,
    vae_config,
    vae_topology,
)
from dreambooth.trainer.weights.base import WeightFile


@dataclass(frozen=True)
class Description:
    """A checkpoint laid out: `configs` and `bindings` by component, `missing` what its layout wants and it has
    not, `others` the tensors that belong to no module and are only kept."""

    identified: Identified
    configs: Mapping[str, dict[str, Any]]
    bindings: Mapping[str, tuple[Binding, ...]]
    missing: tuple[str, ...]
    others: tuple[str, ...]

    def check_complete(self, weights: WeightFile) -> None:
        """Raises InputError naming the tensors that are not there."""
        if self.missing:
            lost = set(self.missing)
            family = self.identified.family
            titles = [
                title_in(family, component)
                for component, bindings in self.bindings.items()
                if any(binding.original in lost for binding in bindings)
            ]
            raise _incomplete(weights, " and ".join(titles), self.missing)


def describe(weights: WeightFile, identified: Identified, stated: Stated | None = None) -> Description:
    """Lay out a checkpoint whose family is known; `stated` is what stands beside it.

    Raises InputError if its tensors are not those of the family's topology.
    """
    family, tensors = identified.family, weights.tensors
    stated = stated or Stated("")
    configs: dict[str, dict[str, Any]] = {}
    table: dict[str, list[Binding]] = {}
    pooled_width = 0
    try:
        for part in family.text_encoders:
            topology, table[part.component] = _text(part, weights, family, stated)
            _check_layers(part, topology)
            configs[part.component] = text_config(topology)
            pooled_width += topology.projection
        unet = unet_topology(tensors, stated.heads or family.heads)
        vae = vae_topology(tensors)
        configs["unet"] = {**unet_config(unet, pooled_width), "upcast_attention": family.upcast_attention}
    except UnknownTopology as error:
        raise InputError(
            f"this is no {family.title} checkpoint that can be used: {error}",
            where=str(weights.path),
            remedy="take a checkpoint with the original layout of its family",
        ) from error
    configs["vae"] = vae_config(vae, family.scaling_factor)
    table |= {"unet": names.unet_bindings(unet), "vae": names.vae_bindings(vae)}
    in_order = family.components
    return _laid_out(
        weights,
        identified,
        {component: configs[component] for component in in_order},
        {component: table[component] for component in in_order},
    )


def _text(
    part: TextPart, weights: WeightFile, family: Family, stated: Stated
) -> tuple[TextTopology, list[Binding]]:
    try:
        return _whole_text(part, weights, stated)
    except UnknownTopology:
        lost = [name for name in names.text_tensors(part, weights.tensors) if name not in weights.tensors]
        if lost:  # that by whose shape its sizes are told is not there
            raise _incomplete(weights, title_in(family, part.component), lost) from None
        raise


def _incomplete(weights: WeightFile, title: str, lost: Sequence[str]) -> InputError:
    """The error for a file that lacks these tensors of what `title` names."""
    what = (
        f"it is incomplete: {len(lost)} tensors of its {title} are missing, such as {lost[0]}"
        if len(lost) > 1
        else f"it is incomplete: a tensor of its {title} is missing, {lost[0]}"
    )
    remedy = "download the file again, or take a complete checkpoint"
    return InputError(what, where=str(weights.path), remedy=remedy)


def _whole_text(part: TextPart, weights: WeightFile, stated: Stated) -> tuple[TextTopology, list[Binding]]:
    if part.kind == "clip":
        prefix = names.text_prefix(part, weights.tensors)
        topology = clip_topology(weights.tensors, prefix)
        return topology, names.clip_bindings(topology, prefix)
    topology = openclip_topology(
        weights.tensors, part.prefix, last=stated.last_text_layer, pooled=part.pooled
    )
    return topology, names.openclip_bindings(topology, part.prefix)


def _check_layers(part: TextPart, topology: TextTopology) -> None:
    """Raises UnknownTopology if an encoder of the published width has not all of its layers."""
    if topology.width == part.width and not part.layers - part.spare <= topology.layers <= part.layers:
        raise UnknownTopology(f"its {TITLES[part.component]} has {topology.layers} of {part.layers} layers")


def describe_vae(weights: WeightFile, identified: Identified) -> Description:
    """Lay out an autoencoder alone, to be used with a checkpoint of this family. Raises InputError."""
    try:
        vae = vae_topology(weights.tensors)
    except UnknownTopology as error:
        raise InputError(f"this is no VAE that can be used: {error}", where=str(weights.path)) from error
    configs = {"vae": vae_config(vae, identified.family.scaling_factor)}
    return _laid_out(weights, identified, configs, {"vae": names.vae_bindings(vae)})


def _laid_out(
    weights: WeightFile,
    identified: Identified,
    configs: Mapping[str, dict[str, Any]],
    table: Mapping[str, list[Binding]],
) -> Description:
    wanted = [binding.original for bindings in table.values() for binding in bindings]
    bound = set(wanted)
    return Description(
        identified=identified,
        configs=configs,
        bindings={component: tuple(bindings) for component, bindings in table.items()},
        missing=tuple(name for name in wanted if name not in weights.tensors),
        others=tuple(name for name in weights.tensors if name not in bound),
    )
