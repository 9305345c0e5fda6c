"""Pictures of what the base has learned, a row of them for each caption."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from PIL import Image

from . import models, words
from .unet import Trained

STEPS = 20
GUIDANCE = 3.0


@torch.no_grad()
def draw(
    trained: Trained, autoencoder: AutoencoderKL, captions: list[str], *, each: int = 4, seed: int = 0
) -> torch.Tensor:
    """`each` pictures for every caption, (captions, each, 3, 64, 64) in 0..1."""
    rows = [words.ids(caption) for caption in captions for _ in range(each)]
    context = trained.text_encoder(words.pad([*rows, *[()] * len(rows)])).last_hidden_state
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    scheduler.set_timesteps(STEPS)
    size = (len(rows), 4, models.LATENT_SIZE, models.LATENT_SIZE)
    latents = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    for timestep in scheduler.timesteps:
        named, free = trained.unet(torch.cat([latents] * 2), timestep, context).sample.chunk(2)
        latents = scheduler.step(free + GUIDANCE * (named - free), timestep, latents).prev_sample
    pictures = autoencoder.decode(latents / models.SCALING_FACTOR).sample
    return torch.unflatten((pictures / 2 + 0.5).clamp(0, 1), 0, (len(captions), each))


def sheet(pictures: torch.Tensor, *, zoom: int = 2) -> Image.Image:
    """Rows of pictures (rows, columns, 3, h, w) in 0..1 as one image."""
    rows, columns, channels, height, width = pictures.shape
    grid = pictures.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    image = Image.fromarray((grid * 255).round().byte().numpy())
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
