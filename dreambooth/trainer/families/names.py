"""The tables of names: how a Stable Diffusion single file's tensors are called, and how our modules' are.

The left name is the one published with the original code (LDM, CLIP, OpenCLIP), the right one is canonical:
diffusers' for the UNet and the VAE, transformers' for the text encoder, without `text_model.`, whatever the
library that is installed calls it. Every table is read in both directions, so that import and export are each
other's inverse by construction.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from dreambooth.trainer.families import SD1, TextPart
from dreambooth.trainer.families.topology import TextTopology, UNetTopology, VAETopology

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Binding:
    """One tensor of a single file and what it becomes.

    `canonical` holds several names where the original is their concatenation along the first axis (OpenCLIP's
    `in_proj`). With `flat` the file has a 1x1 convolution (out, in, 1, 1) where the module is linear (out, in); with
    `transposed` a bare matrix (in, out), which is multiplied from the right.
    """

    original: str
    canonical: tuple[str, ...]
    flat: bool = False
    transposed: bool = False

    def shape_in_file(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the file's tensor, of modules' tensors of this `shape`; that of a `flat` one as the modules
        have it."""
        return tuple(reversed(shape)) if self.transposed else (shape[0] * len(self.canonical), *shape[1:])

    def shape_in_module(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of each of the modules' tensors, of a file's tensor of this `shape`."""
        if self.transposed:
            return tuple(reversed(shape))
        return (shape[0] // len(self.canonical), *(shape[1:2] if self.flat else shape[1:]))

    def split(self, whole: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """A file's tensor as the modules have it, by canonical name: views of it."""
        if self.transposed:
            return [(self.canonical[0], whole.T)]
        parts = whole.reshape(len(self.canonical), *self.shape_in_module(whole.shape))
        return list(zip(self.canonical, parts, strict=True))

    def join(self, parts: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
        """The modules' tensors, in the order of their names, as a file's tensor of this `shape`."""
        whole = parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
        return (whole.T.contiguous() if self.transposed else whole).reshape(tuple(shape))


RESNET: Pairs = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
)
SKIP: Pairs = (("skip_connection", "conv_shortcut"),)
TRANSFORMER: Pairs = (("norm", "norm"), ("proj_in", "proj_in"), ("proj_out", "proj_out"))
TRANSFORMER_BLOCK: Pairs = tuple(
    (name, name)
    for name in (
        "attn1.to_q",
        "attn1.to_k",
        "attn1.to_v",
        "attn1.to_out.0",
        "ff.net.0.proj",
        "ff.net.2",
        "attn2.to_q",
        "attn2.to_k",
        "attn2.to_v",
        "attn2.to_out.0",
        "norm1",
        "norm2",
        "norm3",
    )
)
UNET_ENDS: Pairs = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)
UNET_CLASSES: Pairs = (
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
)
VAE_RESNET: Pairs = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
)
VAE_SKIP: Pairs = (("nin_shortcut", "conv_shortcut"),)
VAE_ATTENTION: Pairs = (
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
)
VAE_ENDS: Pairs = (
    ("encoder.conv_in", "encoder.conv_in"),
    ("encoder.norm_out", "encoder.conv_norm_out"),
    ("encoder.conv_out", "encoder.conv_out"),
    ("decoder.conv_in", "decoder.conv_in"),
    ("decoder.norm_out", "decoder.conv_norm_out"),
    ("decoder.conv_out", "decoder.conv_out"),
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
)
CLIP_LAYER: Pairs = tuple(
    (name, name)
    for name in (
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.q_proj",
        "self_attn.out_proj",
        "layer_norm1",
        "mlp.fc1",
        "mlp.fc2",
        "layer_norm2",
    )
)
CLIP_ENDS: Pairs = (
    ("embeddings.token_embedding", "embeddings.token_embedding"),
    ("embeddings.position_embedding", "embeddings.position_embedding"),
    ("final_layer_norm", "final_layer_norm"),
)
OPENCLIP_LAYER: Pairs = (
    ("ln_1", "layer_norm1"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)
OPENCLIP_FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OPENCLIP_ENDS: Pairs = (
    ("token_embedding", "embeddings.token_embedding"),
    ("ln_final", "final_layer_norm"),
)
WITHOUT_BIAS = frozenset({"to_q", "to_k", "to_v", "token_embedding", "position_embedding"})
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = SD1.text_encoders[0].prefix
TEXT_MODEL = "text_model."


def unet_bindings(topology: UNetTopology) -> list[Binding]:
    """Every tensor that a UNet of this topology can have, in the order of the original's modules."""
    return list(_bind(_unet_modules(topology), UNET_PREFIX))


def vae_bindings(topology: VAETopology) -> list[Binding]:
    """Every tensor that an autoencoder of this topology can have."""
    return list(_bind(_vae_modules(topology), VAE_PREFIX)) + list(
        _bind(_vae_attentions(), VAE_PREFIX, flat=True)
    )


def clip_bindings(topology: TextTopology, prefix: str = CLIP_PREFIX) -> list[Binding]:
    """Every tensor of a CLIP text encoder in transformers' own form (SD1, and SDXL's first)."""
    layers = (
        (f"encoder.layers.{layer}.{leaf}", f"encoder.layers.{layer}.{name}")
        for layer in range(topology.layers)
        for leaf, name in CLIP_LAYER
    )
    return list(_bind([*CLIP_ENDS, *layers], prefix))


def openclip_bindings(topology: TextTopology, prefix: str) -> list[Binding]:
    """Every tensor of an OpenCLIP text encoder that the model uses (SD2: all layers but the last)."""
    bindings = [Binding(f"{prefix}positional_embedding", ("embeddings.position_embedding.weight",))]
    bindings += _bind(OPENCLIP_ENDS, prefix)
    if topology.projection:
        bindings.append(Binding(f"{prefix}text_projection", ("text_projection.weight",), transposed=True))
    for layer in range(topology.layers):
        left, right = f"{prefix}transformer.resblocks.{layer}.", f"encoder.layers.{layer}."
        bindings += [
            Binding(f"{left}attn.in_proj_{kind}", tuple(f"{right}{name}.{kind}" for name in OPENCLIP_FUSED))
            for kind in ("weight", "bias")
        ]
        bindings += _bind(((leaf, right + name) for leaf, name in OPENCLIP_LAYER), left)
    return bindings


def text_mark(part: TextPart, prefix: str = "") -> str:
    """The name of a text encoder's first table, which every file that holds it has; `prefix` is its own if not ""."""
    leaf = {"clip": "embeddings.token_embedding.weight", "openclip": "token_embedding.weight"}[part.kind]
    return (prefix or part.prefix) + leaf


def text_prefix(part: TextPart, found: Collection[str]) -> str:
    """Where a text encoder lies among the tensors `found`: in old files a CLIP has no `text_model.` in its names."""
    old = part.prefix.removesuffix(TEXT_MODEL)
    if old == part.prefix or any(name.startswith(part.prefix) for name in found):
        return part.prefix
    return old if any(name.startswith(old) for name in found) else part.prefix


def text_tensors(part: TextPart, found: Collection[str]) -> list[str]:
    """Every tensor that a text encoder has which has as many layers as some of its tensors are `found` of."""
    prefix = text_prefix(part, found)
    layer = re.compile(rf"{re.escape(prefix)}(?:encoder\.layers|transformer\.resblocks)\.(\d+)\.")
    layers = max((int(match[1]) + 1 for match in map(layer.match, found) if match), default=0)
    # of a topology the names need nothing else
    sizes = TextTopology(0, 0, layers, 1, 0, 0, "", projection=int(part.pooled))
    bindings = {"clip": clip_bindings, "openclip": openclip_bindings}[part.kind](sizes, prefix)
    return [binding.original for binding in bindings]


def ema_name(original: str) -> str:
    """What LitEma calls its copy of one of the UNet's tensors: the dots of the name are left out."""
    return "model_ema." + original.removeprefix("model.").replace(".", "")


def _bind(modules: Iterable[tuple[str, str]], prefix: str, *, flat: bool = False) -> Iterator[Binding]:
    for original, canonical in modules:
        yield Binding(f"{prefix}{original}.weight", (f"{canonical}.weight",), flat)
        if original.rpartition(".")[2] not in WITHOUT_BIAS:
            yield Binding(f"{prefix}{original}.bias", (f"{canonical}.bias",))


def _under(leaves: Pairs, original: str, canonical: str) -> Iterator[tuple[str, str]]:
    return ((f"{original}.{left}", f"{canonical}.{right}") for left, right in leaves)


def _transformer(depth: int, original: str, canonical: str) -> Iterator[tuple[str, str]]:
    if not depth:
        return
    yield from _under(TRANSFORMER, original, canonical)
    for block in range(depth):
        path = f"transformer_blocks.{block}"
        yield from _under(TRANSFORMER_BLOCK, f"{original}.{path}", f"{canonical}.{path}")


def _resnet(pairs: Pairs, skip: Pairs, widths: tuple[int, int]) -> Pairs:
    """A residual layer from one width to another has a learned shortcut only where they differ."""
    return pairs if widths[0] == widths[1] else pairs + skip


def _unet_modules(topology: UNetTopology) -> Iterator[tuple[str, str]]:
    yield from UNET_ENDS
    yield from UNET_CLASSES if topology.class_width else ()
    width, skips = topology.levels[0].width, [topology.levels[0].width]
    last = len(topology.levels) - 1
    for index, level in enumerate(topology.levels):
        here = f"down_blocks.{index}"
        for layer in range(level.layers):
            there, leaves = f"input_blocks.{len(skips)}", _resnet(RESNET, SKIP, (width, level.width))
            yield from _under(leaves, f"{there}.0", f"{here}.resnets.{layer}")
            yield from _transformer(level.depth, f"{there}.1", f"{here}.attentions.{layer}")
            width = level.width
            skips.append(width)
        if index < last:
            yield f"input_blocks.{len(skips)}.0.op", f"{here}.downsamplers.0.conv"
            skips.append(width)
    yield from _under(RESNET, "middle_block.0", "mid_block.resnets.0")
    yield from _transformer(topology.mid_depth, "middle_block.1", "mid_block.attentions.0")
    yield from _under(RESNET, "middle_block.2", "mid_block.resnets.1")
    yield from _unet_up(topology, width, skips)


def _unet_up(topology: UNetTopology, width: int, skips: list[int]) -> Iterator[tuple[str, str]]:
    """The way up: every layer also takes one of the way down's outputs, the last first."""
    block, last = 0, len(topology.levels) - 1
    for index, level in enumerate(reversed(topology.levels)):
        here = f"up_blocks.{index}"
        for layer in range(level.layers + 1):
            there, widths = f"output_blocks.{block}", (width + skips.pop(), level.width)
            yield from _under(_resnet(RESNET, SKIP, widths), f"{there}.0", f"{here}.resnets.{layer}")
            yield from _transformer(level.depth, f"{there}.1", f"{here}.attentions.{layer}")
            if layer == level.layers and index < last:
                yield f"{there}.{2 if level.depth else 1}.conv", f"{here}.upsamplers.0.conv"
            width = level.width
            block += 1


def _vae_modules(topology: VAETopology) -> Iterator[tuple[str, str]]:
    yield from VAE_ENDS
    for side in ("encoder", "decoder"):
        for place in (1, 2):
            here = f"{side}.mid_block.resnets.{place - 1}"
            yield from _under(VAE_RESNET, f"{side}.mid.block_{place}", here)
        yield f"{side}.mid.attn_1.norm", f"{side}.mid_block.attentions.0.group_norm"
    widths, last = topology.widths, len(topology.widths) - 1
    for level, width in enumerate(widths):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{last - level}"
        above, below = widths[max(level - 1, 0)], widths[min(level + 1, last)]
        for layer in range(topology.layers):
            leaves = _resnet(VAE_RESNET, VAE_SKIP, (width if layer else above, width))
            yield from _under(leaves, f"encoder.down.{level}.block.{layer}", f"{down}.resnets.{layer}")
        for layer in range(topology.layers + 1):
            leaves = _resnet(VAE_RESNET, VAE_SKIP, (width if layer else below, width))
            yield from _under(leaves, f"decoder.up.{level}.block.{layer}", f"{up}.resnets.{layer}")
        if level < last:
            yield f"encoder.down.{level}.downsample.conv", f"{down}.downsamplers.0.conv"
        if level > 0:
            yield f"decoder.up.{level}.upsample.conv", f"{up}.upsamplers.0.conv"


def _vae_attentions() -> Iterator[tuple[str, str]]:
    for side in ("encoder", "decoder"):
        yield from _under(VAE_ATTENTION, f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0")
