"""Whether ours learns as well as diffusers' own script at the same settings: the loss on draws that neither saw.

    python benchmarks/quality.py PEER [--peer-packages DIR] [--folder DIR] [--seeds 12] [--steps 200] [--batch 1]
                                 [--same-draws]

PEER is diffusers' train_dreambooth.py (peer.py says which). Both train the small base on the demo's photos, UNet and
text encoder, in float32, with the same steps, batch, learning rate, class images and weight of the prior; all else
is each one's default. Then every checkpoint, loaded by the same code, predicts the noise in the same 512 draws of
(photo, noise, timestep), and in 512 of the class images. With --same-draws theirs is fed with the draws of ours
(same_draws.py), so that what is left is what differs in the training itself.

The photos are those of the training, as a subject has no others; noise and timesteps are drawn apart, one timestep
from each 512th of the schedule.

What was trained stays in the folder, and is not trained again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peer import Peer, add_arguments, alike, from_arguments

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

PHOTOS = ROOT / "dreambooth/assets/demo"
BASE = ROOT / "dreambooth/assets/base/small-base.safetensors"
INSTANCE_PROMPT, CLASS_PROMPT = "photo of sks cat", "photo of cat"
SIDE, DRAWS, CLASS_IMAGES, AT_ONCE = 64, 512, 24, 64
TARGET = 1.02


@dataclass(frozen=True)
class Job:
    """What both are told."""

    folder: Path
    steps: int
    batch: int
    learning_rate: float

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    @property
    def class_images(self) -> Path:
        return self.folder / "class"

    @property
    def base_folder(self) -> Path:
        return self.folder / "base"

    @property
    def name(self) -> str:
        return f"{self.steps}x{self.batch}at{self.learning_rate:g}"


def prepare(job: Job) -> None:
    """Makes the class images with the base, and the folder that diffusers reads it from."""
    from dreambooth.trainer.data.images import find_images
    from dreambooth.trainer.models.convert import convert

    job.photos.mkdir(exist_ok=True)
    for photo in find_images(PHOTOS):  # theirs takes every file of a folder for an image
        shutil.copy(photo, job.photos)
    if not job.base_folder.exists():
        convert(BASE, job.base_folder, dtype="float32")  # their script takes no other
    if not job.class_images.exists():
        train_ours(Job(job.folder, 1, 1, job.learning_rate), 0)


def train_ours(job: Job, seed: int) -> Path:
    """Trains with our defaults, and gives the written file."""
    name = f"ours-{job.name}-{seed}"
    result = job.folder / f"{name}.safetensors"
    if result.exists():
        return result
    settings = {
        "model": str(BASE),
        "output_name": name,
        "output_dir": str(job.folder),
        "runs_dir": str(job.folder / "runs"),
        "resolution": SIDE,
        "num_class_images": CLASS_IMAGES,
        "max_train_steps": job.steps,
        "train_batch_size": job.batch,
        "learning_rate": job.learning_rate,
        "seed": seed,
        "num_validation_images": 0,
        "concepts": [
            {
                "instance_prompt": INSTANCE_PROMPT,
                "class_prompt": CLASS_PROMPT,
                "instance_data_dir": str(job.photos),
                "class_data_dir": str(job.class_images),
            }
        ],
    }
    config = job.folder / f"{name}.json"
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "dreambooth", "train", str(config)]
    subprocess.run(command, cwd=ROOT, env=alike(), check=True)
    return result


def train_theirs(job: Job, seed: int, peer: Peer, *, same_draws: bool) -> Path:
    """Trains with their script, with its own draws or those of our run of this seed, and gives the written folder."""
    result = job.folder / f"{'same-draws' if same_draws else 'theirs'}-{job.name}-{seed}"
    if (result / "model_index.json").exists():
        return result
    command = peer.command(
        "train_text_encoder",
        "with_prior_preservation",
        pretrained_model_name_or_path=job.base_folder,
        instance_data_dir=job.photos,
        instance_prompt=INSTANCE_PROMPT,
        class_data_dir=job.class_images,
        class_prompt=CLASS_PROMPT,
        num_class_images=CLASS_IMAGES,
        prior_loss_weight=1.0,
        resolution=SIDE,
        max_train_steps=job.steps,
        train_batch_size=job.batch,
        learning_rate=job.learning_rate,
        lr_scheduler="constant",
        lr_warmup_steps=0,
        seed=seed,
        checkpointing_steps=100_000,  # never
        output_dir=result,
        report_to="comet_ml",  # not installed: no tracker
    )
    if same_draws:
        config = job.folder / f"ours-{job.name}-{seed}.json"
        command[1:1] = [str(ROOT / "benchmarks/same_draws.py"), str(config)]
    print(" ".join(command), flush=True)
    subprocess.run(command, env=peer.environment(), check=True, stdout=subprocess.DEVNULL)
    return result


@dataclass(frozen=True)
class Draws:
    """What is to be predicted: latents and noise (512, 4, h, w), timesteps (512,), of one prompt's images."""

    prompt: str
    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for at in range(0, DRAWS, AT_ONCE):
            part = slice(at, at + AT_ONCE)
            yield self.latents[part], self.noise[part], self.timesteps[part]


def make_draws(folder: Path, prompt: str, seed: int) -> Draws:
    """Fixed draws of the images in `folder`, encoded by the base's VAE, which nobody trains."""
    import numpy
    from PIL import Image

    from dreambooth.trainer.data.images import find_images
    from dreambooth.trainer.models.convert import load_model

    model = load_model(BASE, components=("vae",))
    pixels = [
        numpy.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        for path in find_images(folder)
    ]
    images = torch.from_numpy(numpy.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        encoded = model.components["vae"].encode(images).latent_dist.mean  # type: ignore[operator]
    latents = encoded * model.identified.family.scaling_factor
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(DRAWS, generator=generator)
    return Draws(
        prompt,
        latents[torch.arange(DRAWS) % len(latents)],
        torch.randn((DRAWS, *latents.shape[1:]), generator=generator),
        ((order + 0.5) * 1000 / DRAWS).long(),
    )


@torch.no_grad()
def losses(path: Path, all_draws: list[Draws]) -> list[float]:
    """The mean squared error of the noise that a checkpoint predicts, for each of the draws' sets."""
    from dreambooth.trainer.models.convert import load_model
    from dreambooth.trainer.models.text import encode, encoders_of, tokenize
    from dreambooth.trainer.models.tokenizer import Tokenizer
    from dreambooth.trainer.objectives import scaled_linear_alphas_cumprod

    model = load_model(path, components=("unet", "text_encoder"))
    family, unet = model.identified.family, model.components["unet"]
    alphas = scaled_linear_alphas_cumprod().float()
    found = []
    for draws in all_draws:
        tokens = tokenize(Tokenizer(), family, [draws.prompt])
        context = encode(encoders_of(model.components, family), family, tokens).context
        errors = []
        for latents, noise, timesteps in draws.batches():
            alpha = alphas[timesteps][:, None, None, None]
            noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
            predicted = unet(noisy, timesteps, context.expand(len(noisy), -1, -1), return_dict=False)[0]
            errors.append((predicted - noise).square().mean(dim=(1, 2, 3)))
        found.append(torch.cat(errors).mean().item())
    return found


def report(ours: list[list[float]], theirs: list[list[float]]) -> None:
    """Prints photos, class images and their sum (the weight of the prior is 1) for every seed, and the ratio."""
    print(f"{'seed':<6}{'':<8}{'photos':>8} {'class':>8} {'sum':>8}")
    for seed, pair in enumerate(zip(ours, theirs, strict=True)):
        for name, (photos, class_images) in zip(("ours", "theirs"), pair, strict=True):
            print(f"{seed:<6}{name:<8}{photos:8.4f} {class_images:8.4f} {photos + class_images:8.4f}")
    means = [[statistics.mean(column) for column in zip(*rows, strict=True)] for rows in (ours, theirs)]
    for name, (photos, class_images) in zip(("ours", "theirs"), means, strict=True):
        print(f"{'mean':<6}{name:<8}{photos:8.4f} {class_images:8.4f} {photos + class_images:8.4f}")
    ratios = [one / other for one, other in zip(*means, strict=True)]
    whole = sum(means[0]) / sum(means[1])
    print(f"{'ours / theirs':<14}{ratios[0]:8.3f} {ratios[1]:8.3f} {whole:8.3f}")
    if len(ours) > 1:
        apart = [sum(mine) - sum(other) for mine, other in zip(ours, theirs, strict=True)]
        error = statistics.stdev(apart) / len(apart) ** 0.5 / sum(means[1])
        print(f"standard error of the ratio {error:.4f}")
    print(f"no more than {TARGET}: {'reached' if whole <= TARGET else 'not reached'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--folder", type=Path, default=Path("benchmark-files/quality"))
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--same-draws", action="store_true", help="feed theirs with the draws of ours")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(folder, arguments.steps, arguments.batch, arguments.learning_rate)
    prepare(job)
    draws = [make_draws(PHOTOS, INSTANCE_PROMPT, 1000), make_draws(job.class_images, CLASS_PROMPT, 1001)]
    before = losses(BASE, draws)
    ours, theirs = [], []
    for seed in range(arguments.seeds):
        ours.append(losses(train_ours(job, seed), draws))
        peer = from_arguments(arguments)
        theirs.append(losses(train_theirs(job, seed, peer, same_draws=arguments.same_draws), draws))
    print(f"{'':<6}{'base':<8}{before[0]:8.4f} {before[1]:8.4f} {sum(before):8.4f}")
    report(ours, theirs)


if __name__ == "__main__":
    main()
