"""The three networks of the small base: SD1's topology with narrow layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

LATENT_SIZE = 8
SCALING_FACTOR = 0.18215
TRAIN_TIMESTEPS = 1000

# LDM's GroupNorm has 32 groups: every width is a multiple of 32.
VAE_WIDTHS = (64, 64, 64, 64)
NARROW_VAE_WIDTHS = (32, 64, 64, 64)
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": VAE_WIDTHS,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": LATENT_SIZE * 8,
    "scaling_factor": SCALING_FACTOR,
}
# LDM gives widths as whole multiples of the first.
UNET: dict[str, Any] = {
    "sample_size": LATENT_SIZE,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [64, 64, 64, 128],
    "layers_per_block": 2,
    "attention_head_dim": 8,  # SD1's name for eight heads
    "cross_attention_dim": 64,
}
CLIP: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 64,
    "intermediate_size": 128,
    "projection_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}


def build_vae(widths: Sequence[int] = VAE_WIDTHS) -> AutoencoderKL:
    vae: AutoencoderKL = AutoencoderKL(**{**VAE, "block_out_channels": widths})
    return vae


def build_unet() -> UNet2DConditionModel:
    unet: UNet2DConditionModel = UNet2DConditionModel(**UNET)
    return unet


def build_text_encoder() -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**CLIP))


def betas() -> torch.Tensor:
    """SD1's noise schedule ("scaled linear"), float64 (TRAIN_TIMESTEPS,)."""
    return torch.linspace(0.00085**0.5, 0.012**0.5, TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
