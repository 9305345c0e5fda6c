"""Train the VAE, and give its latents SD1's scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from dreambooth.trainer.optim.optimizers import has_fused_adamw

from . import models, photos
from .halves import Halves

BATCH = 8
LEARNING_RATE = 1.5e-3
KL_WEIGHT = 4e-4  # per latent value, next to the mean squared error per colour value in -1..1
CROPS_PER_SHARE = 160
REFINE_BATCH = 8
REFINE_LEARNING_RATE = 6e-4


def training_pool(seed: int) -> torch.Tensor:
    """All crops that the VAE sees, uint8 (n, 3, 64, 64): what the UNet sees too, and any other part."""
    generator = np.random.default_rng(seed)
    parts = []
    for photo in photos.PHOTOS:
        count = CROPS_PER_SHARE * photo.share
        parts.append(photos.crops(photo, count, generator))
        parts.append(photos.crops(photo, count // 2, generator, anywhere=True))
    return torch.cat(parts)


def cosine(step: int, steps: int, warmup: int) -> float:
    """The learning rate's factor: a linear warm-up, then half a cosine down to nothing."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def adamw(parameters: Iterable[torch.nn.Parameter], learning_rate: float) -> torch.optim.AdamW:
    """What everything here is trained with; the kernel that is several times faster where torch has it."""
    fused = has_fused_adamw(torch.device("cpu"))
    return torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=fused or None
    )


def train(steps: int, seed: int, report: Callable[[str], None]) -> AutoencoderKL:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pool = training_pool(seed)
    vae = models.build_vae(models.NARROW_VAE_WIDTHS).train()
    optimizer = adamw(vae.parameters(), LEARNING_RATE)
    error = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(step, steps, warmup=100)
        loss_of_pixels, loss = _loss(vae, _batch(pool, generator), generator)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        error = loss_of_pixels if step == 0 else 0.98 * error + 0.02 * loss_of_pixels
        if step % 50 == 49:
            report(f"vae step {step + 1}/{steps}: {10 * math.log10(4.0 / error):.2f} dB while training")
    return vae.eval()


def _batch(pool: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    chosen = pool[torch.randint(len(pool), (BATCH,), generator=generator)]
    images = photos.to_unit(chosen)
    images[: BATCH * 3 // 4] = photos.shift_colours(images[: BATCH * 3 // 4], generator)
    if torch.rand((), generator=generator) < 0.25:
        images[:1] = photos.plain_colours(1, generator)
    return images


def _loss(vae: AutoencoderKL, images: torch.Tensor, generator: torch.Generator) -> tuple[float, torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(images).latent_dist
        drawn = vae.decode(posterior.sample(generator)).sample
    error = (drawn.float() - images).square().mean()
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
    return float(error.detach()), error + KL_WEIGHT * divergence


@dataclass(frozen=True)
class Reconstruction:
    """What a trained VAE is refined by, as a task for two processes: the photos themselves, in any colour.

    Before step `whole_from` it sees quarters of pictures, twice as many at half the cost.
    """

    vae: AutoencoderKL
    pool: torch.Tensor
    seed: int
    whole_from: int

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.vae.parameters())

    def images(self, generator: torch.Generator, *, whole: bool) -> torch.Tensor:
        count = REFINE_BATCH // 2 if whole else REFINE_BATCH
        images = photos.to_unit(self.pool[torch.randint(len(self.pool), (count,), generator=generator)])
        coloured = count * 2 // 3
        images[:coloured] = photos.shift_colours(images[:coloured], generator)
        if whole:
            return images
        left, top = torch.randint(photos.SIZE // 2, (2,), generator=generator).tolist()
        return images[:, :, top : top + photos.SIZE // 2, left : left + photos.SIZE // 2].contiguous()

    def loss(self, step: int, half: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 10_000_000 + step * 2 + half)
        images = self.images(generator, whole=step >= self.whole_from)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = self.vae.encode(images).latent_dist
            drawn = self.vae.decode(posterior.sample(generator)).sample
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        error = drawn.float() - images
        # A patch's mean colour counts extra: it is little of the error in each pixel, and much of the look.
        patches = torch.nn.functional.avg_pool2d(error, 8)
        return torch.add(error.square().mean() + 2.0 * patches.square().mean(), divergence, alpha=KL_WEIGHT)


def refining_pool(seed: int) -> torch.Tensor:
    """Mostly the crops that the UNet sees, uint8 (n, 3, 64, 64); the cat, which the demo is about, most."""
    generator = np.random.default_rng(seed + 5)
    named = [photos.crops(p, 150 * p.share, generator) for p in photos.PHOTOS if p.noun]
    others = [photos.crops(p, 40, generator, anywhere=True) for p in photos.PHOTOS]
    return torch.cat(named + others)


def refine(vae: AutoencoderKL, steps: int, seed: int, report: Callable[[str], None]) -> AutoencoderKL:
    """Train on, more slowly and with an eye on colours."""
    vae.train()
    task = Reconstruction(vae, refining_pool(seed), seed, whole_from=steps * 2 // 3)
    parameters, mean_loss = task.parameters(), 0.0
    optimizer = adamw(parameters, REFINE_LEARNING_RATE)
    with Halves(task) as halves:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = REFINE_LEARNING_RATE * cosine(step, steps, warmup=50)
            loss = halves.backward(step)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            mean_loss = loss if step == 0 else 0.98 * mean_loss + 0.02 * loss
            if step % 50 == 49:
                report(f"vae, refined: step {step + 1}/{steps}: loss {mean_loss:.4f}")
    return vae.eval()


@torch.no_grad()
def fold_scale(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Make the latents of `images` zero in mean and 1 / SCALING_FACTOR in deviation, channel by channel.

    The change stands in the two 1×1 convolutions around the latents, so that the pictures stay the same and
    SD1's own scaling factor is right.
    """
    latents = encode(vae, images)
    shift = latents.mean(dim=(0, 2, 3))
    scale = latents.std(dim=(0, 2, 3)) * models.SCALING_FACTOR
    channels = len(shift)
    of = dict(vae.named_parameters())
    of["quant_conv.weight"][:channels] /= scale[:, None, None, None]
    of["quant_conv.bias"][:channels] -= shift
    of["quant_conv.bias"][:channels] /= scale
    of["quant_conv.bias"][channels:] -= 2.0 * scale.log()
    of["post_quant_conv.bias"].add_(of["post_quant_conv.weight"][:, :, 0, 0] @ shift)
    of["post_quant_conv.weight"].mul_(scale[None, :, None, None])


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """The latents' means, not scaled: (n, 4, 8, 8)."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in _parts(images)])


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of the reconstruction in decibels; colours in -1..1, so the peak is 2."""
    drawn = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in _parts(images)])
    return 10.0 * math.log10(4.0 / float((drawn.clamp(-1, 1) - images).square().mean()))


def _parts(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(images, 32)
