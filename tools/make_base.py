"""Make the small base: train a tiny Stable Diffusion 1 on scikit-image's photos and write it as one file.

    python -m tools.make_base --work FOLDER --out dreambooth/assets/base/small-base.safetensors

It needs the trainer's libraries and scikit-image, about an hour of two idle cores, and gives the same file for
the same libraries, processor, threads, steps and seed. The VAE is kept in the work folder and used again if it is there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file

from tools.base import layout, models, photos, sheet, unet, vae, widen


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", flush=True)

    images = unet.training_images(arguments.seed)
    autoencoder = _vae(arguments, say)
    vae.fold_scale(autoencoder, images.flatten(0, 1))
    for noun, part in zip(photos.nouns(), images, strict=True):
        say(f"{noun}: the VAE's reconstruction has {vae.psnr(autoencoder, part[:32]):.1f} dB")
    latents = unet.cache_latents(autoencoder, images)
    mean_loss = 0.0

    def report(step: int, loss: float, average: unet.Trained) -> None:
        nonlocal mean_loss
        mean_loss = loss if step == 1 else 0.99 * mean_loss + 0.01 * loss
        if step % 50 == 0:
            say(f"unet step {step}/{arguments.steps}: loss {mean_loss:.4f}")
        if step % arguments.save_every == 0:
            _write(arguments.work / "interim.safetensors", average, autoencoder)
            _draw(arguments.work / f"sheet-{step}.png", average, autoencoder)

    trained = unet.train(latents, arguments.steps, arguments.seed, report)
    _write(arguments.out, trained, autoencoder)
    _draw(arguments.work / "sheet.png", trained, autoencoder)
    say(f"written: {arguments.out}, {arguments.out.stat().st_size / 1e6:.1f} MB")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the VAE, interim files, pictures"
    )
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--narrow-steps", type=int, default=2800, help="steps of the VAE before it is widened"
    )
    parser.add_argument("--vae-steps", type=int, default=2100, help="steps of the VAE after that")
    parser.add_argument("--steps", type=int, default=4000, help="steps of the UNet and the text encoder")
    parser.add_argument("--save-every", type=int, default=500, help="steps between two interim files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _vae(arguments: argparse.Namespace, say: Callable[[str], None]) -> AutoencoderKL:
    kept = arguments.work / "vae.safetensors"
    autoencoder = models.build_vae().eval()
    if kept.exists():
        autoencoder.load_state_dict(load_file(kept))
        return autoencoder
    narrow = vae.train(arguments.narrow_steps, arguments.seed, say)
    autoencoder = vae.refine(widen.widen(narrow, arguments.seed), arguments.vae_steps, arguments.seed, say)
    save_file(autoencoder.state_dict(), kept)
    return autoencoder


def _write(path: Path, trained: unet.Trained, autoencoder: AutoencoderKL) -> None:
    layout.write(path, {"unet": trained.unet, "vae": autoencoder, "text_encoder": trained.text_encoder})


def _draw(path: Path, trained: unet.Trained, autoencoder: AutoencoderKL) -> None:
    captions = [f"photo of {noun}" for noun in photos.nouns()]
    sheet.sheet(sheet.draw(trained, autoencoder, captions)).save(path)


if __name__ == "__main__":
    main()
