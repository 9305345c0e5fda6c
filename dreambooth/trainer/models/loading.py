"""From a checkpoint to modules that are ready: built without memory, then given the file's tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.shared.errors import InputError
from dreambooth.trainer.families import Identified, PredictionType
from dreambooth.trainer.families.description import Description, describe, describe_vae
from dreambooth.trainer.families.detect import family_of, identify
from dreambooth.trainer.families.names import TEXT_MODEL, Binding
from dreambooth.trainer.models.sources import Opened, open_model, open_vae, vae_origin
from dreambooth.trainer.weights import WeightFile
from dreambooth.trainer.weights.base import file_sha256

if TYPE_CHECKING:
    from dreambooth.trainer.adapters.merging import Request

READERS = 2


@dataclass
class LoadedModel:
    """A checkpoint's modules, in eval mode and frozen, and what they came from.

    `source` is the file (or the diffusers folder that stands for one), `description` says which of its tensors
    went where; exports read from it what was not trained. Another VAE is only used, never written.
    """

    identified: Identified
    source: WeightFile
    description: Description
    components: dict[str, torch.nn.Module] = field(default_factory=dict)

    @cached_property
    def base_sha256(self) -> str:
        """The sha256 of the whole file it came from, "" for a folder; read once."""
        return file_sha256(self.source.path) if self.source.path.is_file() else ""

    @property
    def configs(self) -> Mapping[str, dict[str, Any]]:
        """The diffusers or transformers config of each component, also of those that were not loaded."""
        return self.description.configs


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    components: Sequence[str] | None = None,
    prediction_type: str = "auto",
    use_ema_weights: bool = False,
    vae: str | Path | None = None,
    mapped: bool = False,
    adapters: Sequence[Request] = (),
) -> LoadedModel:
    """Load a single file or a diffusers folder into modules of `dtype` on the CPU: all, or the `components` named.

    A VAE that overflows in half precision, as SDXL's does, is always float32, unless `vae` names another.
    `prediction_type` other than "auto" overrides what the file says of itself. With `use_ema_weights` the UNet
    gets the file's averaged weights. `vae` names a file whose autoencoder is used in place of the checkpoint's.
    With `mapped`, weights that have `dtype` already stay in the file's pages until they are moved or written to:
    quickest for what goes to a card or ends soon, but the file must not be rewritten in place meanwhile.
    `adapters` are merged into the weights, in float32. Raises InputError for everything that is wrong with the input.
    """
    opened = open_model(path, use_ema_weights=use_ema_weights)
    source, description = understand(opened, prediction_type)
    description.check_complete(source)
    if adapters:
        from dreambooth.trainer.adapters.merging import with_adapters

        source = with_adapters(source, description, adapters)
    model = LoadedModel(description.identified, source, description)
    for component in description.identified.family.components if components is None else components:
        if component == "vae" and vae:
            model.components[component] = _other_vae(model, vae, dtype)
        else:
            needed = torch.float32 if component == "vae" and model.identified.family.vae_overflows else dtype
            model.components[component] = _load(component, source, description, needed, mapped=mapped)
    return model


def understand(opened: Opened, prediction_type: str = "auto") -> tuple[WeightFile, Description]:
    """What an opened checkpoint is and consists of. Raises InputError if it is nothing that can be used."""
    source = opened.weights

    def run_unet() -> PredictionType:
        from dreambooth.trainer.families.probe import probe

        guess = describe(source, Identified(family_of(source), "epsilon", ""), opened.stated)
        guess.check_complete(source)
        unet = _load("unet", source, guess, torch.float32)
        return probe(unet, guess.configs["unet"]["cross_attention_dim"])

    identified = identify(source, prediction_type, stated=opened.stated, probe=run_unet)
    return source, describe(source, identified, opened.stated)


def canonical_state(component: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The module's weights by their canonical names, which no library's version changes; shares its memory."""
    return {
        name.removeprefix(TEXT_MODEL): tensor.detach()
        for name, tensor in module.state_dict(keep_vars=True).items()
        if not name.endswith("position_ids")
    }


def _other_vae(model: LoadedModel, path: str | Path, dtype: torch.dtype) -> torch.nn.Module:
    """The autoencoder of another file, which must have latents of the same kind."""
    source = open_vae(path)
    own = model.configs["vae"]
    description = describe_vae(source, model.identified)
    description.check_complete(source)
    config = description.configs["vae"]
    if config["latent_channels"] != own["latent_channels"]:
        raise InputError(
            f"this VAE has {config['latent_channels']} latent channels, the checkpoint's {own['latent_channels']}",
            where=str(path),
            remedy="take a VAE of the checkpoint's family, or none",
        )
    origin = vae_origin(path)
    if origin is not None and not math.isclose(origin[1], own["scaling_factor"], rel_tol=1e-3):
        raise InputError(
            f"this VAE is from {origin[0]}, whose latents are scaled by {origin[1]:g}, and those of "
            f"{model.identified.family.title} by {own['scaling_factor']:g}",
            where=str(path),
            remedy="take a VAE of the checkpoint's family, or none",
        )
    return _load("vae", source, description, dtype)


def _load(
    component: str,
    source: WeightFile,
    description: Description,
    dtype: torch.dtype,
    *,
    mapped: bool = False,
) -> torch.nn.Module:
    module = empty_module(component, description.configs[component])
    empty = module.state_dict()
    own = {name.removeprefix(TEXT_MODEL): name for name in empty}
    shapes = {name: tuple(empty[full].shape) for name, full in own.items()}

    def read(binding: Binding) -> list[tuple[str, torch.Tensor]]:
        return read_canonical(source, binding, shapes, dtype, mapped=mapped)

    bindings = in_file_order(description.bindings[component], source)
    with ThreadPoolExecutor(max_workers=READERS) as pool:  # filling fresh memory takes longer than copying
        state = {own[name]: tensor for found in pool.map(read, bindings) for name, tensor in found}
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def in_file_order(bindings: Sequence[Binding], source: WeightFile) -> list[Binding]:
    """The bindings sorted as their tensors stand in the file, so that it is read once from front to back."""
    place = {name: index for index, name in enumerate(source.tensors)}
    return sorted(bindings, key=lambda binding: place[binding.original])


def read_canonical(
    source: WeightFile,
    binding: Binding,
    shapes: Mapping[str, Sequence[int]],
    dtype: torch.dtype,
    *,
    mapped: bool = False,
) -> list[tuple[str, torch.Tensor]]:
    """The tensors that one of the file's tensors becomes, by canonical name, in memory of their own or mapped.

    `shapes` are the modules'. Raises InputError if the file's shape is another.
    """
    wanted = binding.shape_in_file(shapes[binding.canonical[0]])
    info = source.tensors[binding.original]
    if not _fits(binding, info.shape, wanted):
        raise _ill_shaped(source, binding.original, wanted)
    plain = len(binding.canonical) == 1 and not binding.transposed
    whole = source.mapped(binding.original) if mapped and info.dtype == dtype and plain else None
    if whole is None:
        whole = torch.empty(wanted, dtype=dtype)
        source.read_into(binding.original, whole)
    parts = binding.split(whole)
    return (
        parts
        if plain
        else [(name, part.clone(memory_format=torch.contiguous_format)) for name, part in parts]
    )


def _fits(binding: Binding, shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return shape == wanted or (binding.flat and shape == (*wanted, 1, 1))


def _ill_shaped(source: WeightFile, name: str, wanted: tuple[int, ...]) -> InputError:
    return InputError(
        f"{name!r} has the shape {source.tensors[name].shape}, not {wanted} as in a model of these sizes",
        where=str(source.path),
        remedy="take a checkpoint with the original layout of its family",
    )


def wrong_shapes(source: WeightFile, description: Description) -> dict[str, tuple[int, ...]]:
    """The tensors whose shape is not that of a model of these sizes, and the shape that would be; no tensor is read."""
    found = {}
    for component, bindings in description.bindings.items():
        empty = empty_module(component, description.configs[component]).state_dict()
        shapes = {name.removeprefix(TEXT_MODEL): tuple(tensor.shape) for name, tensor in empty.items()}
        for binding in bindings:
            wanted = binding.shape_in_file(shapes[binding.canonical[0]])
            stored = source.tensors.get(binding.original)
            if stored is not None and not _fits(binding, stored.shape, wanted):
                found[binding.original] = wanted
    return found


def check_shapes(source: WeightFile, description: Description) -> None:
    """Raises InputError for the first tensor that has another shape than its module's; no tensor is read."""
    for name, wanted in wrong_shapes(source, description).items():
        raise _ill_shaped(source, name, wanted)


def empty_module(component: str, config: Mapping[str, Any]) -> torch.nn.Module:
    """The component's module on the meta device: no memory, no random numbers."""
    with torch.device("meta"):
        return BUILDERS[component](config)


def _unet(config: Mapping[str, Any]) -> torch.nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    module: torch.nn.Module = UNet2DConditionModel(**config)
    return module


def _vae(config: Mapping[str, Any]) -> torch.nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    module: torch.nn.Module = AutoencoderKL(**config)
    return module


def _text_encoder(config: Mapping[str, Any]) -> torch.nn.Module:
    from dreambooth.trainer.models.clip_text import CLIPTextEncoder

    return CLIPTextEncoder(config)


BUILDERS = {"unet": _unet, "text_encoder": _text_encoder, "text_encoder_2": _text_encoder, "vae": _vae}
