"""What shapes tell of a model: its levels, widths and depths; and the libraries' configs that say the same.

A topology is read either from the tensors of a single file or from the configs of a diffusers folder. What
shapes cannot tell, the number of heads, comes from the family's rule (`Family.heads`) or a config.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dreambooth.trainer.weights.base import TensorInfo

Tensors = Mapping[str, TensorInfo]
Heads = Callable[[int], int]


class UnknownTopology(Exception):
    """The tensors' names or shapes are not those of the original UNet, autoencoder or text encoder."""


@dataclass(frozen=True)
class Level:
    """One resolution of the UNet: its width, its residual layers on the way down, and its transformers' depth
    (0: no attention)."""

    width: int
    layers: int
    depth: int
    heads: int


@dataclass(frozen=True)
class UNetTopology:
    """The UNet's sizes; `class_width` is that of what it is told beside the prompt's tokens (0: nothing)."""

    levels: tuple[Level, ...]
    mid_depth: int
    in_channels: int
    out_channels: int
    context_width: int
    linear_projection: bool
    class_width: int = 0


@dataclass(frozen=True)
class VAETopology:
    """The autoencoder's sizes; `widths` from full resolution downwards."""

    widths: tuple[int, ...]
    layers: int
    latent_channels: int
    in_channels: int


@dataclass(frozen=True)
class TextTopology:
    """The text encoder's sizes; `layers` are those that the model uses, `projection` is the width of its pooled
    output (0: it has none)."""

    width: int
    hidden: int
    layers: int
    heads: int
    vocabulary: int
    positions: int
    activation: str
    projection: int = 0


UNET = "model.diffusion_model."
VAE = "first_stage_model."


def unet_topology(tensors: Tensors, heads: Heads) -> UNetTopology:
    """The topology of the UNet in a single file; `heads` gives the number of heads at a width.

    Raises UnknownTopology if these are not the tensors of LDM's UNet.
    """
    shape = _shapes(tensors, UNET)
    first = shape("input_blocks.0.0.weight", 4)
    levels = []
    current: list[tuple[int, int]] = []
    for block in range(1, _count(tensors, rf"{UNET}input_blocks\.(\d+)\.")):
        if f"{UNET}input_blocks.{block}.0.op.weight" in tensors:
            levels.append(_level(current, heads))
            current = []
        else:
            width = shape(f"input_blocks.{block}.0.in_layers.2.weight", 4)[0]
            depth = _count(tensors, rf"{UNET}input_blocks\.{block}\.1\.transformer_blocks\.(\d+)\.")
            current.append((width, depth))
    levels.append(_level(current, heads))
    if levels[0].width != first[0]:
        raise UnknownTopology(f"its first level is {levels[0].width} wide, its first convolution {first[0]}")
    mid_depth = _count(tensors, rf"{UNET}middle_block\.1\.transformer_blocks\.(\d+)\.")
    if not mid_depth:
        raise UnknownTopology("its middle block has no attention")
    if levels[-1].depth not in (0, mid_depth):
        raise UnknownTopology(f"its last level is {levels[-1].depth} deep, its middle block {mid_depth}")
    classes = f"{UNET}label_emb.0.0.weight"
    return UNetTopology(
        levels=tuple(levels),
        mid_depth=mid_depth,
        in_channels=first[1],
        out_channels=shape("out.2.weight", 4)[0],
        context_width=shape("middle_block.1.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        linear_projection=len(shape("middle_block.1.proj_in.weight")) == 2,
        class_width=shape("label_emb.0.0.weight", 2)[1] if classes in tensors else 0,
    )


def vae_topology(tensors: Tensors) -> VAETopology:
    """The topology of the autoencoder in a single file. Raises UnknownTopology."""
    shape = _shapes(tensors, VAE)
    count = _count(tensors, rf"{VAE}encoder\.down\.(\d+)\.")
    widths = tuple(shape(f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(count))
    if not widths or widths[0] != shape("encoder.conv_in.weight", 4)[0]:
        raise UnknownTopology("its autoencoder's first level is not as wide as its first convolution")
    return VAETopology(
        widths=widths,
        layers=_count(tensors, rf"{VAE}encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=shape("post_quant_conv.weight", 4)[1],
        in_channels=shape("encoder.conv_in.weight", 4)[1],
    )


def clip_topology(tensors: Tensors, prefix: str) -> TextTopology:
    """The topology of a CLIP text encoder in transformers' form. Raises UnknownTopology."""
    shape = _shapes(tensors, prefix)
    vocabulary, width = shape("embeddings.token_embedding.weight", 2)
    return TextTopology(
        width=width,
        hidden=shape("encoder.layers.0.mlp.fc1.weight", 2)[0],
        layers=_count(tensors, rf"{re.escape(prefix)}encoder\.layers\.(\d+)\."),
        heads=max(1, width // 64),
        vocabulary=vocabulary,
        positions=shape("embeddings.position_embedding.weight", 2)[0],
        activation="quick_gelu",
    )


def openclip_topology(
    tensors: Tensors, prefix: str, *, last: bool = False, pooled: bool = False
) -> TextTopology:
    """The topology of an OpenCLIP text encoder, without the layers that Stable Diffusion 2 does not use.

    It uses the output of the layer before the last, so that the last is only kept. A file that was made from a
    diffusers folder never had that layer, nor the text projection. `last` says that the last layer is used
    nevertheless, `pooled` that its projection is used too. Raises UnknownTopology.
    """
    shape = _shapes(tensors, prefix)
    vocabulary, width = shape("token_embedding.weight", 2)
    found = _count(tensors, rf"{re.escape(prefix)}transformer\.resblocks\.(\d+)\.")
    whole = f"{prefix}text_projection" in tensors or found == OPENCLIP_H[1]
    stripped = not whole or (width, found) == (OPENCLIP_H[0], OPENCLIP_H[1] - 1)
    return TextTopology(
        width=width,
        hidden=shape("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        layers=found if stripped or last or pooled else found - 1,
        heads=max(1, width // 64),
        vocabulary=vocabulary,
        positions=shape("positional_embedding", 2)[0],
        activation="gelu",
        projection=shape("text_projection", 2)[1] if pooled else 0,
    )


OPENCLIP_H = (1024, 24)
"""Width and layers of the OpenCLIP ViT-H/14 text encoder that every published SD2 file holds."""


SIZES_TOLD = 6
"""Numbers that SDXL's UNet is told beside the pooled prompt, each as sines and cosines of one width."""
PROJECTED = "CLIPTextModelWithProjection"


def unet_config(topology: UNetTopology, pooled_width: int = 0) -> dict[str, Any]:
    """diffusers' config of UNet2DConditionModel for this topology; `pooled_width` is the pooled prompt's.

    Raises UnknownTopology if what the UNet is told is not the pooled prompt and six sizes.
    """
    levels = topology.levels
    names = ["CrossAttnDownBlock2D" if level.depth else "DownBlock2D" for level in levels]
    heads = [level.heads for level in levels]
    depths = [level.depth or 1 for level in levels]
    if not levels[-1].depth:
        depths[-1] = topology.mid_depth  # diffusers' middle block is as deep as its last level
    layers = [level.layers for level in levels]
    config: dict[str, Any] = {
        "in_channels": topology.in_channels,
        "out_channels": topology.out_channels,
        "down_block_types": tuple(names),
        "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(names)),
        "block_out_channels": tuple(level.width for level in levels),
        "layers_per_block": _one_or_all(layers),
        "cross_attention_dim": topology.context_width,
        "attention_head_dim": _one_or_all(heads),
        "use_linear_projection": topology.linear_projection,
    }
    if set(depths) != {1}:
        config["transformer_layers_per_block"] = tuple(depths)
    return config | _class_config(topology.class_width, pooled_width)


def _class_config(class_width: int, pooled_width: int) -> dict[str, Any]:
    if not class_width:
        return {}
    width, rest = divmod(class_width - pooled_width, SIZES_TOLD)
    if not pooled_width or rest or width < 2 or width % 2:
        raise UnknownTopology(
            f"its UNet is told {class_width} numbers beside the prompt, which are not {pooled_width} of the "
            f"prompt and {SIZES_TOLD} sizes"
        )
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": width,
        "projection_class_embeddings_input_dim": class_width,
    }


def vae_config(topology: VAETopology, scaling_factor: float) -> dict[str, Any]:
    """diffusers' config of AutoencoderKL for this topology."""
    count = len(topology.widths)
    return {
        "in_channels": topology.in_channels,
        "out_channels": topology.in_channels,
        "down_block_types": ("DownEncoderBlock2D",) * count,
        "up_block_types": ("UpDecoderBlock2D",) * count,
        "block_out_channels": topology.widths,
        "layers_per_block": topology.layers,
        "latent_channels": topology.latent_channels,
        "scaling_factor": scaling_factor,
    }


def text_config(topology: TextTopology) -> dict[str, Any]:
    """transformers' config of CLIPTextModel, with a projection CLIPTextModelWithProjection, for this topology."""
    return {
        **({"architectures": [PROJECTED]} if topology.projection else {}),
        "vocab_size": topology.vocabulary,
        "hidden_size": topology.width,
        "intermediate_size": topology.hidden,
        "projection_dim": topology.projection or topology.width,
        "num_hidden_layers": topology.layers,
        "num_attention_heads": topology.heads,
        "max_position_embeddings": topology.positions,
        "hidden_act": topology.activation,
        "bos_token_id": topology.vocabulary - 2,
        "eos_token_id": topology.vocabulary - 1,
        "pad_token_id": 1,
    }


def _one_or_all(values: Sequence[int]) -> int | tuple[int, ...]:
    return values[0] if len(set(values)) == 1 else tuple(values)


def _level(layers: Sequence[tuple[int, int]], heads: Heads) -> Level:
    if len(set(layers)) != 1:
        raise UnknownTopology("the layers of one of its levels differ in width or depth")
    width, depth = layers[0]
    return Level(width=width, layers=len(layers), depth=depth, heads=heads(width))


def _count(tensors: Tensors, pattern: str) -> int:
    """One more than the largest number that `pattern`'s group matches at the start of a name."""
    found = re.compile(pattern)
    return max((int(match.group(1)) + 1 for match in map(found.match, tensors) if match), default=0)


def _shapes(tensors: Tensors, prefix: str) -> Callable[..., tuple[int, ...]]:
    def shape(name: str, dimensions: int = 0) -> tuple[int, ...]:
        info = tensors.get(prefix + name)
        if info is None:
            raise UnknownTopology(f"it has no {prefix}{name}")
        if dimensions and len(info.shape) != dimensions:
            raise UnknownTopology(f"{prefix}{name} has the shape {info.shape}")
        return info.shape

    return shape
