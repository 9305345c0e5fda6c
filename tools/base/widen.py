"""Give a trained VAE twice the channels at full resolution, keeping what it has learned (Chen et al. 2016).

LDM normalises in 32 groups. With 32 channels a group is one channel, whose mean is then lost, and the decoder
cannot draw a picture's overall colour; with 64 channels the difference inside each pair of them survives. The
narrow VAE learns shapes in half the time, so it comes first.
"""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from . import models

SPREAD = 0.2  # how differently the two copies of a channel are used, so that they can part
ENCODER_TURN, DECODER_TURN = "encoder.down_blocks.1.resnets.0", "decoder.up_blocks.3.resnets.0"
ENCODER_BEFORE = "encoder.down_blocks.0.downsamplers.0.conv"
DECODER_BEFORE = "decoder.up_blocks.2.upsamplers.0.conv"


@torch.no_grad()
def widen(narrow: AutoencoderKL, seed: int) -> AutoencoderKL:
    """A VAE of widths `models.VAE` that starts where `narrow` (half as wide at full resolution) stopped.

    All stays as it was but two blocks' inner paths: where the width changed, a projection stood beside the
    path. It moves into the layer before, and the path starts from nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    old = dict(narrow.state_dict())
    for turn, before in ((ENCODER_TURN, ENCODER_BEFORE), (DECODER_TURN, DECODER_BEFORE)):
        projection, shift = old.pop(f"{turn}.conv_shortcut.weight"), old.pop(f"{turn}.conv_shortcut.bias")
        weight, bias = old[f"{before}.weight"], old[f"{before}.bias"]
        old[f"{before}.weight"] = torch.einsum("oi,ijhw->ojhw", projection[:, :, 0, 0], weight)
        old[f"{before}.bias"] = projection[:, :, 0, 0] @ bias + shift
        old[f"{turn}.conv2.weight"] = torch.zeros_like(old[f"{turn}.conv2.weight"])
    wide = models.build_vae()
    for name, tensor in wide.state_dict().items():
        tensor.copy_(_fit(old[name], tensor.shape, generator))
    return wide


def _fit(tensor: torch.Tensor, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Copy every output channel, and share every input channel's weight out among its copies."""
    if tensor.shape[0] * 2 == shape[0]:
        tensor = tensor.repeat_interleave(2, dim=0)
    if tensor.dim() > 1 and tensor.shape[1] * 2 == shape[1]:
        part = 0.5 + SPREAD * (2.0 * torch.rand(tensor.shape, generator=generator) - 1.0)
        both = torch.stack([tensor * part, tensor * (1.0 - part)], dim=2)
        tensor = both.flatten(1, 2)
    return tensor
