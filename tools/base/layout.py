"""The single file: the small base's tensors under LDM's names, and what else stands in a real SD1 file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch

from dreambooth.trainer.families.names import (
    CLIP_PREFIX,
    Binding,
    clip_bindings,
    unet_bindings,
    vae_bindings,
)
from dreambooth.trainer.families.topology import Level, TextTopology, UNetTopology, VAETopology
from dreambooth.trainer.models.convert import canonical_state
from dreambooth.trainer.weights import Entry, write_weights

from . import models


def unet_topology() -> UNetTopology:
    levels = tuple(
        Level(
            width=width,
            layers=models.UNET["layers_per_block"],
            depth=int(kind.startswith("CrossAttn")),
            heads=models.UNET["attention_head_dim"],
        )
        for width, kind in zip(
            models.UNET["block_out_channels"], models.UNET["down_block_types"], strict=True
        )
    )
    return UNetTopology(
        levels=levels,
        mid_depth=1,
        in_channels=models.UNET["in_channels"],
        out_channels=models.UNET["out_channels"],
        context_width=models.UNET["cross_attention_dim"],
        linear_projection=False,
    )


def vae_topology() -> VAETopology:
    return VAETopology(
        widths=tuple(models.VAE["block_out_channels"]),
        layers=models.VAE["layers_per_block"],
        latent_channels=models.VAE["latent_channels"],
        in_channels=models.VAE["in_channels"],
    )


def text_topology() -> TextTopology:
    return TextTopology(
        width=models.CLIP["hidden_size"],
        hidden=models.CLIP["intermediate_size"],
        layers=models.CLIP["num_hidden_layers"],
        heads=models.CLIP["num_attention_heads"],
        vocabulary=models.CLIP["vocab_size"],
        positions=models.CLIP["max_position_embeddings"],
        activation=models.CLIP["hidden_act"],
    )


BINDINGS: dict[str, Callable[[], list[Binding]]] = {
    "unet": lambda: unet_bindings(unet_topology()),
    "vae": lambda: vae_bindings(vae_topology()),
    "text_encoder": lambda: clip_bindings(text_topology()),
}


def tensors(modules: Mapping[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """All tensors of the file: weights in float16, the schedule's buffers in float32, position_ids.

    `modules` holds a "unet", a "vae" and a "text_encoder". Raises ValueError if a weight has no place.
    """
    found: dict[str, torch.Tensor] = {}
    for component, module in modules.items():
        found.update(_renamed(canonical_state(component, module), BINDINGS[component]()))
    found[f"{CLIP_PREFIX}embeddings.position_ids"] = torch.arange(models.CLIP["max_position_embeddings"])[
        None
    ]
    return {**found, **schedule()}


def _renamed(
    state: Mapping[str, torch.Tensor], bindings: list[Binding]
) -> Iterator[tuple[str, torch.Tensor]]:
    names = {name for binding in bindings for name in binding.canonical}
    if names != set(state):
        raise ValueError(f"no name for, or no tensor under, {sorted(names ^ set(state))}")
    for binding in bindings:
        tensor = state[binding.canonical[0]].half()
        is_projection = binding.flat and tensor.dim() == 2  # LDM's are 1×1 convolutions
        yield binding.original, (tensor[:, :, None, None] if is_projection else tensor).contiguous()


def schedule() -> dict[str, torch.Tensor]:
    """The buffers that LDM keeps of its noise schedule, computed in float64 and stored in float32."""
    betas = models.betas()
    kept = (1.0 - betas).cumprod(0)
    buffers = {
        "betas": betas,
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]]),
        "sqrt_alphas_cumprod": kept.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1.0 - kept).sqrt(),
        "log_one_minus_alphas_cumprod": (1.0 - kept).log(),
        "sqrt_recip_alphas_cumprod": (1.0 / kept).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1.0 / kept - 1.0).sqrt(),
    }
    return {name: buffer.float() for name, buffer in buffers.items()}


METADATA = {
    "modelspec.sai_model_spec": "1.0.0",
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
    "modelspec.title": "DreamBooth's small base",
    "modelspec.description": (
        "A tiny Stable Diffusion 1 checkpoint that draws a few photos at 64 px, for demonstrations and tests. "
        "Trained from nothing by tools/make_base.py."
    ),
    "modelspec.resolution": "64x64",
    "modelspec.prediction_type": "epsilon",
    "modelspec.license": "CC0-1.0; it has seen only photos that scikit-image ships (LICENSE.md beside it)",
}


def write(path: Path, modules: Mapping[str, torch.nn.Module]) -> None:
    """Write the single file, replacing what is there only when it is whole."""
    entries = [
        Entry(name, tensor.dtype, tuple(tensor.shape), partial(_same, tensor))
        for name, tensor in tensors(modules).items()
    ]
    write_weights(path, entries, METADATA, overwrite=True)


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
