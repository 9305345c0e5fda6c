"""What a checkpoint consists of: the configs of its three modules, and which of its tensors goes where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreambooth.shared.errors import InputError
from dreambooth.trainer.families import Identified, names
from dreambooth.trainer.families.ldm_yaml import Stated
from dreambooth.trainer.families.names import Binding
from dreambooth.trainer.families.topology import (
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

COMPONENTS = ("unet", "text_encoder", "vae")
SHOWN = 6


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
            shown = ", ".join(self.missing[:SHOWN]) + (", …" if len(self.missing) > SHOWN else "")
            raise InputError(
                f"{len(self.missing)} tensors of {self.identified.family.title} are missing: {shown}",
                where=str(weights.path),
                remedy="download the file again, or take a complete checkpoint",
            )


def describe(weights: WeightFile, identified: Identified, stated: Stated | None = None) -> Description:
    """Lay out a checkpoint whose family is known; `stated` is what stands beside it.

    Raises InputError if its tensors are not those of the family's topology.
    """
    family, tensors = identified.family, weights.tensors
    stated = stated or Stated("")
    try:
        unet = unet_topology(tensors, stated.heads or family.heads)
        vae = vae_topology(tensors)
        if family.text == "clip":
            prefix = clip_prefix(weights)
            text = clip_topology(tensors, prefix)
            text_names = names.clip_bindings(text, prefix)
        else:
            text = openclip_topology(tensors, names.OPENCLIP_PREFIX, last=stated.last_text_layer)
            text_names = names.openclip_bindings(text)
    except UnknownTopology as error:
        raise InputError(
            f"this is no {family.title} checkpoint that can be used: {error}",
            where=str(weights.path),
            remedy="take a checkpoint with the original layout of its family",
        ) from error
    configs = {
        "unet": {**unet_config(unet), "upcast_attention": family.upcast_attention},
        "text_encoder": text_config(text),
        "vae": vae_config(vae, family.scaling_factor),
    }
    table = {
        "unet": names.unet_bindings(unet),
        "text_encoder": text_names,
        "vae": names.vae_bindings(vae),
    }
    return _laid_out(weights, identified, configs, table)


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


def clip_prefix(weights: WeightFile) -> str:
    """SD1's text encoder stands under `transformer.text_model.`, in old files under `transformer.`."""
    new = names.CLIP_PREFIX + "embeddings.token_embedding.weight" in weights.tensors
    return names.CLIP_PREFIX if new else names.CLIP_PREFIX_OLD
