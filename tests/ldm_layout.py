"""The published layout of Stable Diffusion's single files, built the way the original modules build themselves.

Written from the structure of LDM's UNetModel and autoencoder, of SDXL's (sgm's), of transformers' first CLIPTextModel
and of OpenCLIP, for any size, and on purpose without a look at our tables of names: the tests hold the two against
each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

Shape = tuple[int, ...]
Rows = Iterator[tuple[str, Shape]]
SCHEDULE = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
)


@dataclass(frozen=True)
class Layout:
    """The numbers that LDM's configs give, and how the text encoder is written down.

    `depths` are the transformers' by level, `sizes_width` is that of the sines and cosines of each of SDXL's six
    sizes. SDXL's two text encoders are `text_width` and `second_width` wide, together `context`.
    """

    channels: int = 32
    multiples: tuple[int, ...] = (1, 1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (1, 2, 4)
    context: int = 64
    in_channels: int = 4
    linear: bool = False
    vae_channels: int = 32
    vae_multiples: tuple[int, ...] = (1, 1, 2)
    vae_blocks: int = 2
    text: str = "clip"
    text_layers: int = 2
    vocabulary: int = 300
    depths: tuple[int, ...] = (1, 1, 1, 1, 1)
    sizes_width: int = 0
    text_width: int = 0
    second_width: int = 0
    second_layers: int = 0


FULL_SD1 = Layout(
    channels=320,
    multiples=(1, 2, 4, 4),
    context=768,
    vae_channels=128,
    vae_multiples=(1, 2, 4, 4),
    text_layers=12,
    vocabulary=49408,
)
FULL_SD2 = Layout(
    channels=320,
    multiples=(1, 2, 4, 4),
    context=1024,
    linear=True,
    vae_channels=128,
    vae_multiples=(1, 2, 4, 4),
    text="openclip",
    text_layers=24,
    vocabulary=49408,
)
SMALL_SD1 = Layout()
SMALL_SD2 = Layout(
    linear=True, text="openclip", text_layers=3, channels=64, multiples=(1, 2, 2, 2), context=128
)
TINY_SD1 = Layout(
    blocks=1,
    multiples=(1, 2),
    attention=(1,),
    vae_multiples=(1, 1),
    vae_blocks=1,
    text_layers=1,
    vocabulary=100,
)
FULL_SDXL = Layout(
    channels=320,
    multiples=(1, 2, 4),
    attention=(2, 4),
    depths=(1, 2, 10),
    context=2048,
    linear=True,
    vae_channels=128,
    vae_multiples=(1, 2, 4, 4),
    text="sdxl",
    text_layers=12,
    vocabulary=49408,
    sizes_width=256,
    text_width=768,
    second_width=1280,
    second_layers=32,
)
SMALL_SDXL = replace(
    FULL_SDXL,
    channels=64,
    multiples=(1, 2, 2),
    depths=(1, 1, 2),
    context=160,
    vae_channels=32,
    vae_multiples=(1, 1, 2),
    text_layers=3,
    vocabulary=300,
    sizes_width=8,
    text_width=64,
    second_width=96,
    second_layers=4,
)
TINY_SDXL = replace(
    SMALL_SDXL,
    channels=32,
    blocks=1,
    vae_multiples=(1, 1),
    vae_blocks=1,
    context=96,
    text_layers=2,
    text_width=32,
    second_width=64,
    second_layers=2,
)
"""64 is the width of one head: neither encoder's is the UNet's, nor the other's."""
TINY_SD2 = replace(TINY_SD1, linear=True, text="openclip", text_layers=2, channels=64)


def shapes(layout: Layout) -> dict[str, Shape]:
    """Every tensor of the file but the schedule's buffers and position ids, by name."""
    first = _clip(layout.text_width or layout.context, layout.text_layers, layout.vocabulary)
    texts = {
        "clip": [("cond_stage_model.", first)],
        "openclip": [("cond_stage_model.", _openclip(layout.context, layout.text_layers, layout.vocabulary))],
        "sdxl": [
            ("conditioner.embedders.0.", first),
            (
                "conditioner.embedders.1.",
                _openclip(layout.second_width, layout.second_layers, layout.vocabulary),
            ),
        ],
    }[layout.text]
    found: dict[str, Shape] = {}
    for prefix, rows in (
        ("model.diffusion_model.", _unet(layout)),
        ("first_stage_model.", _vae(layout)),
        *texts,
    ):
        for name, shape in rows:
            assert prefix + name not in found
            found[prefix + name] = shape
    return found


def tensors(layout: Layout, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    """The whole file with random weights, small enough for sensible activations."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: _random(name, shape, generator).to(dtype) for name, shape in shapes(layout).items()}
    for name in shapes(layout):
        if name.endswith("text_model.embeddings.position_embedding.weight"):
            found[name.replace("position_embedding.weight", "position_ids")] = torch.arange(77)[None]
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    found |= {name: torch.rand(1000, generator=generator) for name in SCHEDULE}
    found["betas"], found["alphas_cumprod"] = betas.float(), alphas.float()
    return found


def _random(name: str, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    is_norm = len(shape) == 1 and name.endswith("weight")
    if is_norm:
        return 1 + 0.1 * values
    fan_in = _product(shape[1:])
    return values * (0.1 if len(shape) < 2 else fan_in**-0.5)


def _product(sizes: Shape) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _layer(name: str, *shape: int, bias: bool = True) -> Rows:
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", (shape[0],)


def _norm(name: str, width: int) -> Rows:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _unet(layout: Layout) -> Rows:
    """UNetModel.__init__, with its bookkeeping of channels and of `ds`."""
    width, embedding = layout.channels, layout.channels * 4
    yield from _layer("time_embed.0", embedding, width)
    yield from _layer("time_embed.2", embedding, embedding)
    if layout.sizes_width:
        yield from _layer("label_emb.0.0", embedding, layout.second_width + 6 * layout.sizes_width)
        yield from _layer("label_emb.0.2", embedding, embedding)
    yield from _layer("input_blocks.0.0", width, layout.in_channels, 3, 3)
    kept, now, scale, index = [width], width, 1, 1
    for level, multiple in enumerate(layout.multiples):
        for _ in range(layout.blocks):
            yield from _residual(f"input_blocks.{index}.0", now, multiple * width, embedding)
            now = multiple * width
            if scale in layout.attention:
                yield from _spatial_transformer(f"input_blocks.{index}.1", now, layout, layout.depths[level])
            kept.append(now)
            index += 1
        if level != len(layout.multiples) - 1:
            yield from _layer(f"input_blocks.{index}.0.op", now, now, 3, 3)
            kept.append(now)
            scale *= 2
            index += 1
    yield from _residual("middle_block.0", now, now, embedding)
    yield from _spatial_transformer("middle_block.1", now, layout, layout.depths[len(layout.multiples) - 1])
    yield from _residual("middle_block.2", now, now, embedding)
    index = 0
    for level, multiple in reversed(list(enumerate(layout.multiples))):
        for block in range(layout.blocks + 1):
            inside = 1
            yield from _residual(f"output_blocks.{index}.0", now + kept.pop(), multiple * width, embedding)
            now = multiple * width
            if scale in layout.attention:
                yield from _spatial_transformer(f"output_blocks.{index}.1", now, layout, layout.depths[level])
                inside = 2
            if level and block == layout.blocks:
                yield from _layer(f"output_blocks.{index}.{inside}.conv", now, now, 3, 3)
                scale //= 2
            index += 1
    yield from _norm("out.0", now)
    yield from _layer("out.2", 4, width, 3, 3)


def _residual(name: str, before: int, after: int, embedding: int) -> Rows:
    yield from _norm(f"{name}.in_layers.0", before)
    yield from _layer(f"{name}.in_layers.2", after, before, 3, 3)
    yield from _layer(f"{name}.emb_layers.1", after, embedding)
    yield from _norm(f"{name}.out_layers.0", after)
    yield from _layer(f"{name}.out_layers.3", after, after, 3, 3)
    if before != after:
        yield from _layer(f"{name}.skip_connection", after, before, 1, 1)


def _spatial_transformer(name: str, width: int, layout: Layout, depth: int) -> Rows:
    kernel = () if layout.linear else (1, 1)
    yield from _norm(f"{name}.norm", width)
    yield from _layer(f"{name}.proj_in", width, width, *kernel)
    for number in range(depth):
        yield from _transformer_block(f"{name}.transformer_blocks.{number}", width, layout.context)
    yield from _layer(f"{name}.proj_out", width, width, *kernel)


def _transformer_block(block: str, width: int, context: int) -> Rows:
    for attention, source in (("attn1", width), ("attn2", context)):
        yield from _layer(f"{block}.{attention}.to_q", width, width, bias=False)
        yield from _layer(f"{block}.{attention}.to_k", width, source, bias=False)
        yield from _layer(f"{block}.{attention}.to_v", width, source, bias=False)
        yield from _layer(f"{block}.{attention}.to_out.0", width, width)
    yield from _layer(f"{block}.ff.net.0.proj", width * 8, width)
    yield from _layer(f"{block}.ff.net.2", width, width * 4)
    for place in (1, 2, 3):
        yield from _norm(f"{block}.norm{place}", width)


def _vae(layout: Layout) -> Rows:
    """Encoder and Decoder of LDM's diffusionmodules/model.py, with the two 1x1 convolutions around them."""
    widths = [layout.vae_channels * multiple for multiple in layout.vae_multiples]
    last = len(widths) - 1
    yield from _layer("encoder.conv_in", layout.vae_channels, 3, 3, 3)
    now = layout.vae_channels
    for level, width in enumerate(widths):
        for block in range(layout.vae_blocks):
            yield from _vae_residual(f"encoder.down.{level}.block.{block}", now, width)
            now = width
        if level != last:
            yield from _layer(f"encoder.down.{level}.downsample.conv", now, now, 3, 3)
    yield from _vae_middle("encoder", now)
    yield from _norm("encoder.norm_out", now)
    yield from _layer("encoder.conv_out", 8, now, 3, 3)
    yield from _layer("decoder.conv_in", now, 4, 3, 3)
    yield from _vae_middle("decoder", now)
    for level in range(last, -1, -1):
        for block in range(layout.vae_blocks + 1):
            yield from _vae_residual(f"decoder.up.{level}.block.{block}", now, widths[level])
            now = widths[level]
        if level:
            yield from _layer(f"decoder.up.{level}.upsample.conv", now, now, 3, 3)
    yield from _norm("decoder.norm_out", now)
    yield from _layer("decoder.conv_out", 3, now, 3, 3)
    yield from _layer("quant_conv", 8, 8, 1, 1)
    yield from _layer("post_quant_conv", 4, 4, 1, 1)


def _vae_residual(name: str, before: int, after: int) -> Rows:
    yield from _norm(f"{name}.norm1", before)
    yield from _layer(f"{name}.conv1", after, before, 3, 3)
    yield from _norm(f"{name}.norm2", after)
    yield from _layer(f"{name}.conv2", after, after, 3, 3)
    if before != after:
        yield from _layer(f"{name}.nin_shortcut", after, before, 1, 1)


def _vae_middle(side: str, width: int) -> Rows:
    yield from _vae_residual(f"{side}.mid.block_1", width, width)
    yield from _norm(f"{side}.mid.attn_1.norm", width)
    for place in ("q", "k", "v", "proj_out"):
        yield from _layer(f"{side}.mid.attn_1.{place}", width, width, 1, 1)
    yield from _vae_residual(f"{side}.mid.block_2", width, width)


def _clip(width: int, layers: int, vocabulary: int) -> Rows:
    name = "transformer.text_model"
    yield f"{name}.embeddings.token_embedding.weight", (vocabulary, width)
    yield f"{name}.embeddings.position_embedding.weight", (77, width)
    for layer in range(layers):
        block = f"{name}.encoder.layers.{layer}"
        for place in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _layer(f"{block}.self_attn.{place}", width, width)
        yield from _norm(f"{block}.layer_norm1", width)
        yield from _layer(f"{block}.mlp.fc1", width * 4, width)
        yield from _layer(f"{block}.mlp.fc2", width, width * 4)
        yield from _norm(f"{block}.layer_norm2", width)
    yield from _norm(f"{name}.final_layer_norm", width)


def _openclip(width: int, layers: int, vocabulary: int) -> Rows:
    name = "model"
    yield f"{name}.positional_embedding", (77, width)
    yield f"{name}.text_projection", (width, width)
    yield f"{name}.logit_scale", ()
    for layer in range(layers):
        block = f"{name}.transformer.resblocks.{layer}"
        yield from _norm(f"{block}.ln_1", width)
        yield f"{block}.attn.in_proj_weight", (width * 3, width)
        yield f"{block}.attn.in_proj_bias", (width * 3,)
        yield from _layer(f"{block}.attn.out_proj", width, width)
        yield from _norm(f"{block}.ln_2", width)
        yield from _layer(f"{block}.mlp.c_fc", width * 4, width)
        yield from _layer(f"{block}.mlp.c_proj", width, width * 4)
    yield f"{name}.token_embedding.weight", (vocabulary, width)
    yield from _norm(f"{name}.ln_final", width)
