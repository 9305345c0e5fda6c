"""Whether the prior from the base's own prediction keeps a class where it was, at equal likeness of the subject.

    python benchmarks/prior.py [--folder DIR] [--seeds 3] [--steps 200] [--every 25] [--rank 8] [--learning-rate 1e-3]

LoRAs on the small base and the demo's photos, UNet and text encoder, with no prior, with the base's prediction (of the
photos under the class prompt; of pictures of the class), and with class images; all else is the same. Each writes a
file every so many steps. Of each file, on fixed draws of (image, noise, timestep):

- likeness: the mean squared error of the noise it predicts in the photos, with the instance prompt (less is closer);
- drift: the mean squared difference to what the base predicts in pictures that the base drew of the class, with the
  class prompt (0 is no drift).

Drift is compared where the likeness is the same: at the best that both reach, read between the two nearest files.
What was trained stays in the folder, and is not trained again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer import alike
from quality import BASE, CLASS_IMAGES, CLASS_PROMPT, INSTANCE_PROMPT, PHOTOS, ROOT, SIDE, Draws, make_draws

sys.path.insert(0, str(ROOT))

import torch

WAYS: dict[str, dict[str, Any]] = {
    "no prior": {"prior_loss_weight": 0},
    "base, photos": {"prior": "base_prediction"},
    "base, class": {"prior": "base_prediction"},
    "class images": {"num_class_images": CLASS_IMAGES},
}
# the ways that are given pictures of the class
WITH_PICTURES = ("base, class", "class images")


@dataclass(frozen=True)
class Job:
    """What all are told."""

    folder: Path
    steps: int
    every: int
    rank: int
    learning_rate: float

    @property
    def class_images(self) -> Path:
        return self.folder / "class"

    @property
    def name(self) -> str:
        return f"{self.steps}r{self.rank}at{self.learning_rate:g}"


@dataclass(frozen=True)
class Point:
    """One file: after how many steps, how like the subject, how far the class drifted."""

    step: int
    likeness: float
    drift: float


def train(job: Job, way: str, seed: int) -> list[tuple[int, Path]]:
    """Trains one way, and gives its files by step."""
    name = f"{way.replace(', ', '_').replace(' ', '_')}-{job.name}-{seed}"
    steps = range(job.every, job.steps, job.every)
    files = [(step, job.folder / f"{name}-{step}.safetensors") for step in steps]
    files.append((job.steps, job.folder / f"{name}.safetensors"))
    if all(path.exists() for _, path in files):
        return files
    concept = {
        "instance_prompt": INSTANCE_PROMPT,
        "class_prompt": CLASS_PROMPT,
        "instance_data_dir": str(PHOTOS),
    }
    if way in WITH_PICTURES:
        concept["class_data_dir"] = str(job.class_images)
    settings = {
        "model": str(BASE),
        "output_kind": "lora",
        "output_dtype": "float32",
        "output_name": name,
        "output_dir": str(job.folder),
        "runs_dir": str(job.folder / "runs"),
        "overwrite": True,
        "rank": job.rank,
        "learning_rate": job.learning_rate,
        "resolution": SIDE,
        "max_train_steps": job.steps,
        "export_steps": job.every,
        "checkpointing_steps": 0,
        "num_validation_images": 0,
        "seed": seed,
        "concepts": [concept],
        **WAYS[way],
    }
    config = job.folder / f"{name}.json"
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "dreambooth", "train", str(config)]
    subprocess.run(command, cwd=ROOT, env=alike(), check=True, stderr=subprocess.DEVNULL)
    return files


@torch.no_grad()
def predictions(draws: Draws, adapter: Path | None, *, int8: bool = False) -> torch.Tensor:
    """What the base (in 8 bit if so), with an adapter, predicts in all draws."""
    from dreambooth.trainer.adapters.merging import Request
    from dreambooth.trainer.models.convert import load_model
    from dreambooth.trainer.models.int8 import quantise
    from dreambooth.trainer.models.text import encode, encoders_of, tokenize
    from dreambooth.trainer.models.tokenizer import Tokenizer
    from dreambooth.trainer.objectives import scaled_linear_alphas_cumprod

    adapters = [Request(adapter)] if adapter else []
    model = load_model(BASE, components=("unet", "text_encoder"), adapters=adapters)
    if int8:
        for component in model.components.values():
            quantise(component, torch.float32, torch.device("cpu"))
    family, unet = model.identified.family, model.components["unet"]
    context = encode(
        encoders_of(model.components, family), family, tokenize(Tokenizer(), family, [draws.prompt])
    )
    alphas = scaled_linear_alphas_cumprod().float()
    found = []
    for latents, noise, timesteps in draws.batches():
        alpha = alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        told = context.context.expand(len(noisy), -1, -1)
        found.append(unet(noisy, timesteps, told, return_dict=False)[0])
    return torch.cat(found)


def measured(files: Sequence[tuple[int, Path]], photos: Draws, of_class: Draws) -> list[Point]:
    """Likeness and drift after each of the files' steps, and before the first."""
    base = predictions(of_class, None)
    points = []
    for step, path in [(0, None), *files]:
        likeness = float((predictions(photos, path) - photos.noise).square().mean())
        points.append(Point(step, likeness, float((predictions(of_class, path) - base).square().mean())))
    return points


def drift_at(points: Sequence[Point], likeness: float) -> float:
    """The drift where a training first was so close to the subject, read between two of its files."""
    for before, after in itertools.pairwise(points):
        if after.likeness <= likeness:
            share = (before.likeness - likeness) / max(before.likeness - after.likeness, 1e-12)
            return before.drift + share * (after.drift - before.drift)
    raise ValueError("it never was so close")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("benchmark-files/prior"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(folder, arguments.steps, arguments.every, arguments.rank, arguments.learning_rate)
    if not job.class_images.exists():  # the pictures of the class, in which all are measured
        train(Job(folder, 1, 1, arguments.rank, arguments.learning_rate), "class images", 0)
    photos, of_class = (
        make_draws(PHOTOS, INSTANCE_PROMPT, 1000),
        make_draws(job.class_images, CLASS_PROMPT, 1001),
    )
    ways = [way for way in WAYS if way in ("no prior", *arguments.ways)]
    ratios: dict[str, list[float]] = {way: [] for way in ways}
    print(
        f"{'seed':<6}{'way':<18}{'likeness':>9} {'drift':>9}   at equal likeness: drift, and its share of no prior's"
    )
    for seed in range(arguments.seeds):
        found = {way: measured(train(job, way, seed), photos, of_class) for way in ways}
        common = max(min(point.likeness for point in points) for points in found.values())
        plain = drift_at(found["no prior"], common)
        for way, points in found.items():
            drift = drift_at(points, common)
            ratios[way].append(drift / plain)
            last = points[-1]
            print(
                f"{seed:<6}{way:<18}{last.likeness:9.4f} {last.drift:9.5f}   {common:.4f}: {drift:9.5f} {drift / plain:6.2f}"
            )
    for way, of_seeds in ratios.items():
        print(
            f"{'mean':<6}{way:<18}{'':>19}   drift at equal likeness, of no prior's: {statistics.mean(of_seeds):.2f}"
        )


if __name__ == "__main__":
    main()
