"""Topologies from the configs of a diffusers folder: the other way round from `topology`'s `*_config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth.trainer.families.topology import (
    PROJECTED,
    Heads,
    Level,
    TextTopology,
    UNetTopology,
    UnknownTopology,
    VAETopology,
)
from dreambooth.trainer.models.clip_text import ACTIVATIONS

Config = Mapping[str, Any]
WITH_ATTENTION, WITHOUT = "CrossAttnDownBlock2D", "DownBlock2D"


def unet_from_config(config: Config) -> tuple[UNetTopology, Heads]:
    """The UNet's sizes, and its number of heads at each width. Raises UnknownTopology."""
    widths, kinds = tuple(_get(config, "block_out_channels")), tuple(_get(config, "down_block_types"))
    unknown = sorted({kind for kind in kinds if kind not in (WITH_ATTENTION, WITHOUT)})
    if unknown or not widths or len(kinds) != len(widths):
        raise UnknownTopology(f"its UNet has blocks of the kinds {', '.join(unknown) or kinds}")
    count = len(widths)
    layers = _for_each(_get(config, "layers_per_block"), count)
    heads = _for_each(config.get("num_attention_heads") or _get(config, "attention_head_dim"), count)
    depths = _for_each(config.get("transformer_layers_per_block", 1), count)
    levels = tuple(
        Level(width, layer, depth if kind == WITH_ATTENTION else 0, head)
        for width, layer, depth, kind, head in zip(widths, layers, depths, kinds, heads, strict=True)
    )
    by_width = dict(zip(widths, heads, strict=True))
    topology = UNetTopology(
        levels=levels,
        mid_depth=depths[-1],
        in_channels=_get(config, "in_channels"),
        out_channels=config.get("out_channels", 4),
        context_width=_get(config, "cross_attention_dim"),
        linear_projection=bool(config.get("use_linear_projection", False)),
        class_width=_class_width(config),
    )
    return topology, lambda width: by_width[width]


def _class_width(config: Config) -> int:
    kind = config.get("addition_embed_type")
    if kind not in (None, "text_time"):
        raise UnknownTopology(f"its UNet is told more in the way {kind!r}")
    return int(_get(config, "projection_class_embeddings_input_dim")) if kind else 0


def vae_from_config(config: Config) -> VAETopology:
    """The autoencoder's sizes. Raises UnknownTopology."""
    kinds = set(_get(config, "down_block_types"))
    if kinds != {"DownEncoderBlock2D"}:
        raise UnknownTopology(f"its VAE has blocks of the kinds {', '.join(sorted(kinds))}")
    return VAETopology(
        widths=tuple(_get(config, "block_out_channels")),
        layers=_get(config, "layers_per_block"),
        latent_channels=_get(config, "latent_channels"),
        in_channels=config.get("in_channels", 3),
    )


def text_from_config(config: Config) -> TextTopology:
    """The text encoder's sizes. Raises UnknownTopology."""
    width = _get(config, "hidden_size")
    activation = config.get("hidden_act", "quick_gelu")
    if activation not in ACTIVATIONS:
        raise UnknownTopology(f"its text encoder has the activation {activation!r}")
    return TextTopology(
        width=width,
        hidden=_get(config, "intermediate_size"),
        layers=_get(config, "num_hidden_layers"),
        heads=_get(config, "num_attention_heads"),
        vocabulary=config.get("vocab_size", 49408),
        positions=config.get("max_position_embeddings", 77),
        activation=activation,
        projection=_get(config, "projection_dim") if PROJECTED in config.get("architectures", ()) else 0,
    )


def is_openclip(config: Config) -> bool:
    """SD1's text encoder is OpenAI's CLIP (quick_gelu), SD2's is OpenCLIP (gelu)."""
    return str(config.get("hidden_act")) == "gelu"


def _get(config: Config, key: str) -> Any:
    if key not in config:
        raise UnknownTopology(f"a config lacks {key}")
    return config[key]


def _for_each(value: Any, count: int) -> tuple[int, ...]:
    values = (value,) * count if isinstance(value, int) else tuple(value)
    if len(values) != count or not all(isinstance(item, int) for item in values):
        raise UnknownTopology(f"a config says {value!r} for {count} levels")
    return values
