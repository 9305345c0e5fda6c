"""An adapter's file applied to a checkpoint's tensors, by kohya's convention and the way the WebUI finds its layers.

Written from what the WebUI's extensions-builtin/Lora does with a key, on the single file's own tensors: no module, no
table of names and no formula of the trainer is used. What it does not find it passes over, as the WebUI does.
"""

from __future__ import annotations

import re

import torch

UNET = "model.diffusion_model."
RESNET = {
    "conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip


def applied(
    checkpoint: dict[str, torch.Tensor], adapter: dict[str, torch.Tensor], weight: float = 1.0
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The checkpoint's tensors with the adapter in them, float32, and the keys that nothing was found for."""
    found = {name: tensor.clone() for name, tensor in checkpoint.items()}
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in adapter.items():
        layer, _, part = key.partition(".")
        layers.setdefault(layer, {})[part] = tensor.float()
    by_flat = {
        name.removesuffix(".weight").replace(".", "_"): name for name in found if name.endswith(".weight")
    }
    ignored = []
    for layer, parts in layers.items():
        place = _place(layer, found, by_flat)
        if place is None:
            ignored += [f"{layer}.{part}" for part in parts]
            continue
        name, rows = place
        whole = found[name].float()
        own = whole if rows is None else whole.chunk(3)[rows]
        changed = own + weight * _difference(own, parts)
        if rows is None:
            found[name] = changed
        else:
            chunks = list(whole.chunk(3))
            chunks[rows] = changed
            found[name] = torch.cat(chunks)
    return found, ignored


def _place(layer: str, found: dict, by_flat: dict[str, str]) -> tuple[str, int | None] | None:
    """The tensor that a layer's name leads to, and which third of it (OpenCLIP keeps q, k and v in one)."""
    xl = any(name.startswith("conditioner.") for name in found)
    if layer.startswith("lora_unet_"):
        path = layer.removeprefix("lora_unet_")
        for candidate in (_compvis(path), path):
            name = by_flat.get((UNET + candidate).replace(".", "_"))
            if name:
                return name, None
        return None
    text = re.fullmatch(r"lora_te([12]?)_text_model_encoder_layers_(\d+)_(.+)", layer)
    if not text or bool(text[1]) != xl:
        return None
    number, block, leaf = text.groups()
    if number == "2" or (not xl and any(name.startswith("cond_stage_model.model.") for name in found)):
        prefix = (
            "conditioner.embedders.1." if xl else "cond_stage_model."
        ) + f"model.transformer.resblocks.{block}."
        fused = re.fullmatch(r"self_attn_([qkv])_proj", leaf)
        if fused:
            return f"{prefix}attn.in_proj_weight", "qkv".index(fused[1])
        leaf = {"self_attn_out_proj": "attn.out_proj", "mlp_fc1": "mlp.c_fc", "mlp_fc2": "mlp.c_proj"}[leaf]
        return f"{prefix}{leaf}.weight", None
    prefix = "conditioner.embedders.0." if xl else "cond_stage_model."
    flat = f"{prefix}transformer.text_model.encoder.layers.{block}.".replace(".", "_") + leaf
    return (by_flat[flat], None) if flat in by_flat else None


def _compvis(path: str) -> str:
    """LDM's name for diffusers', with three of LDM's blocks for each of diffusers', as SD1, SD2 and SDXL have them."""
    rules = [
        (r"time_embedding_linear_(\d)", lambda m: f"time_embed.{int(m[1]) * 2 - 2}"),
        (r"down_blocks_(\d)_downsamplers_0_conv", lambda m: f"input_blocks.{3 + int(m[1]) * 3}.0.op"),
        (
            r"up_blocks_(\d)_upsamplers_0_conv",
            lambda m: f"output_blocks.{2 + int(m[1]) * 3}.{2 if int(m[1]) else 1}.conv",
        ),
        (
            r"down_blocks_(\d)_(attentions|resnets)_(\d)_(.+)",
            lambda m: f"input_blocks.{1 + int(m[1]) * 3 + int(m[3])}.{_inside(m[2], m[4])}",
        ),
        (
            r"up_blocks_(\d)_(attentions|resnets)_(\d)_(.+)",
            lambda m: f"output_blocks.{int(m[1]) * 3 + int(m[3])}.{_inside(m[2], m[4])}",
        ),
        (r"mid_block_attentions_(\d)_(.+)", lambda m: f"middle_block.1.{m[2]}"),
        (r"mid_block_resnets_(\d)_(.+)", lambda m: f"middle_block.{int(m[1]) * 2}.{RESNET[m[2]]}"),
    ]
    for pattern, made in rules:
        match = re.fullmatch(pattern, path)
        if match:
            return made(match)
    return path


def _inside(kind: str, leaf: str) -> str:
    return f"1.{leaf}" if kind == "attentions" else f"0.{RESNET[leaf]}"


def _difference(weight: torch.Tensor, parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """What an adapter's layer adds to a weight."""
    alpha = float(parts["alpha"]) if "alpha" in parts else None
    if "lora_up.weight" in parts:
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        rank, delta = down.shape[0], up.reshape(len(up), -1).mm(down.reshape(len(down), -1))
    elif "hada_w1_a" in parts:
        rank = parts["hada_w1_b"].shape[0]
        delta = parts["hada_w1_a"].mm(parts["hada_w1_b"]) * parts["hada_w2_a"].mm(parts["hada_w2_b"])
    else:
        rank, second = None, parts.get("lokr_w2")
        if second is None:
            rank = parts["lokr_w2_b"].shape[0]
            second = parts["lokr_w2_a"].mm(parts["lokr_w2_b"])
        delta = torch.kron(parts["lokr_w1"], second.reshape(second.shape[0], -1))
    scale = alpha / rank if alpha is not None and rank is not None else 1.0
    delta = (delta * scale).reshape(weight.shape)
    magnitude = parts.get("dora_scale")
    if magnitude is None:
        return delta
    moved = weight + delta
    columns = moved.transpose(0, 1).reshape(moved.shape[1], -1).norm(dim=1)
    return moved * (magnitude.reshape(-1) / columns).reshape(1, -1, *[1] * (weight.dim() - 2)) - weight
