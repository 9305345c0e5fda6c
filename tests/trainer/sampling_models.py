"""Tiny random models with Stable Diffusion's form, for tests of what is done with a model."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from dreambooth.trainer.families import FAMILIES, Identified


def tiny_unet(in_channels=4, seed=1):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    return unet.eval().requires_grad_(False)


def tiny_vae(seed=2):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
    )
    return vae.eval().requires_grad_(False)


def tiny_text_encoder(seed=3):
    from transformers.models.clip.configuration_clip import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=49408
    )
    return CLIPTextModel(config).eval().requires_grad_(False)


def tiny_model(family="sd1", prediction_type="epsilon", zero_terminal_snr=False):
    """What `convert.load_model` gives, as far as sampling reads it."""
    row = FAMILIES[family]
    components = {
        "unet": tiny_unet(row.in_channels),
        "text_encoder": tiny_text_encoder(),
        "vae": tiny_vae(),
    }
    identified = Identified(row, prediction_type, "the test", zero_terminal_snr)
    return SimpleNamespace(identified=identified, components=components)
