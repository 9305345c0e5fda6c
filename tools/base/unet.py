"""Train the UNet and the text encoder together on the VAE's latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.clip.modeling_clip import CLIPTextModel

from . import models, photos, vae, words
from .halves import Halves

BATCH = 32
LEARNING_RATE = 1e-3
CAPTION_DROPOUT = 0.1  # so that the empty caption can guide
EMA_DECAY = 0.999
CROPS_PER_PHOTO = 128


def training_images(seed: int) -> torch.Tensor:
    """(nouns, CROPS_PER_PHOTO, 3, 64, 64) in -1..1."""
    crops, light = np.random.default_rng(seed + 1), torch.Generator().manual_seed(seed + 1)
    named = [photo for photo in photos.PHOTOS if photo.noun]
    images = [photos.to_unit(photos.crops(photo, CROPS_PER_PHOTO, crops)) for photo in named]
    return torch.stack([photos.shift_light(part, light) for part in images])


def cache_latents(autoencoder: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """The images' scaled latents, (nouns, CROPS_PER_PHOTO, 4, 8, 8)."""
    latents = vae.encode(autoencoder, images.flatten(0, 1)) * models.SCALING_FACTOR
    return latents.reshape(*images.shape[:2], *latents.shape[1:])


@dataclass(frozen=True)
class Trained:
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel

    def parameters(self) -> list[torch.nn.Parameter]:
        return [*self.unet.parameters(), *self.text_encoder.parameters()]


@dataclass(frozen=True)
class Denoising:
    """The diffusion loss on latents (nouns, crops, 4, 8, 8), as a task for two processes."""

    trained: Trained
    latents: torch.Tensor
    seed: int

    def parameters(self) -> list[torch.nn.Parameter]:
        return self.trained.parameters()

    def loss(self, step: int, half: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 10_000_000 + step * 2 + half)
        size = (BATCH // 2,)
        nouns = torch.randint(len(self.latents), size, generator=generator)
        clean = self.latents[nouns, torch.randint(self.latents.shape[1], size, generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(models.TRAIN_TIMESTEPS, size, generator=generator)
        kept = ALPHAS[timesteps][:, None, None, None]
        noisy = kept.sqrt() * clean + (1.0 - kept).sqrt() * noise
        captions = words.Captions(photos.nouns(), generator)
        ids = words.pad([captions.draw(noun, CAPTION_DROPOUT) for noun in nouns.tolist()])
        context = self.trained.text_encoder(ids).last_hidden_state
        return torch.nn.functional.mse_loss(self.trained.unet(noisy, timesteps, context).sample, noise)


ALPHAS = (1.0 - models.betas()).cumprod(0).float()


def build(seed: int) -> Trained:
    torch.manual_seed(seed + 2)
    return Trained(models.build_unet().train(), models.build_text_encoder().train())


def train(
    latents: torch.Tensor, steps: int, seed: int, report: Callable[[int, float, Trained], None]
) -> Trained:
    """`report(step, loss, average)` is called after every step with the running mean of the weights."""
    trained, average = build(seed), build(seed)
    parameters, averages = trained.parameters(), average.parameters()
    for parameter in averages:
        parameter.requires_grad_(False)
    optimizer = vae.adamw(parameters, LEARNING_RATE)
    with Halves(Denoising(trained, latents, seed)) as halves:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * vae.cosine(step, steps, warmup=100)
            loss = halves.backward(step)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            decay = min(EMA_DECAY, step / (step + 10.0))
            with torch.no_grad():
                torch._foreach_lerp_(list(averages), list(parameters), 1.0 - decay)
            report(step + 1, loss, average)
    return average
