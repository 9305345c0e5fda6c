"""What a base in 8 bit costs: its predictions' error, a LoRA's loss on draws that no run saw, and the time of a step.

    python benchmarks/int8.py [--folder DIR] [--seeds 3] [--steps 200] [--parts prediction lora step]

- prediction: the small base in 8 bit against float32, both in 512 fixed draws of (photo, noise, timestep).
- lora: LoRAs of rank 16, UNet and text encoder, trained on the base in float32 and on the one in 8 bit, with the same data
  and noise. Each file is then measured on the base in float32, where it will be used: the error of the predicted noise
  in photos and in class pictures. What was trained stays in the folder, and is not trained again.
- step: forward and backward of a LoRA on attention and feed-forward, on either base, in turn in one process (step.py).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from peer import alike
from quality import BASE, CLASS_IMAGES, CLASS_PROMPT, INSTANCE_PROMPT, PHOTOS, ROOT, SIDE, Draws, make_draws

sys.path.insert(0, str(ROOT))

import torch
from prior import predictions
from step import SIZES, attached, make_unet

TARGET = 1.01


def train(folder: Path, precision: str, seed: int, steps: int) -> Path:
    """Trains a LoRA on a base of this `base_precision`, and gives the written file."""
    name = f"{precision}-{steps}-{seed}"
    result = folder / f"{name}.safetensors"
    if result.exists():
        return result
    settings = {
        "model": str(BASE),
        "base_precision": precision,
        "output_kind": "lora",
        "output_dtype": "float32",
        "output_name": name,
        "output_dir": str(folder),
        "runs_dir": str(folder / "runs"),
        "resolution": SIDE,
        "num_class_images": CLASS_IMAGES,
        "learning_rate": 1e-3,
        "max_train_steps": steps,
        "checkpointing_steps": 0,
        "num_validation_images": 0,
        "seed": seed,
        "concepts": [
            {
                "instance_prompt": INSTANCE_PROMPT,
                "class_prompt": CLASS_PROMPT,
                "instance_data_dir": str(PHOTOS),
                "class_data_dir": str(folder / "class"),
            }
        ],
    }
    config = folder / f"{name}.json"
    config.write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "dreambooth", "train", str(config)]
    subprocess.run(command, cwd=ROOT, env=alike(), check=True, stderr=subprocess.DEVNULL)
    return result


def report_prediction() -> None:
    """Prints how far the base in 8 bit is from the full one."""
    photos = make_draws(PHOTOS, INSTANCE_PROMPT, 1000)
    full, narrow = predictions(photos, None), predictions(photos, None, int8=True)
    error = float((narrow - full).square().mean() / full.square().mean())
    losses = [float((found - photos.noise).square().mean()) for found in (full, narrow)]
    print(f"prediction: mean squared difference {error:.2e} of the prediction's mean square")
    print(
        f"            loss {losses[0]:.4f} in float32, {losses[1]:.4f} in 8 bit: {losses[1] / losses[0]:.4f}"
    )


def report_lora(folder: Path, seeds: int, steps: int) -> None:
    """Prints the loss of LoRAs that were trained on either base."""
    found: dict[str, list[float]] = {"full": [], "int8": []}
    draws: list[Draws] = []
    for seed in range(seeds):
        for precision, losses in found.items():
            path = train(folder, precision, seed, steps)
            draws = draws or [
                make_draws(PHOTOS, INSTANCE_PROMPT, 1000),
                make_draws(folder / "class", CLASS_PROMPT, 1001),
            ]
            errors = [(predictions(of, path) - of.noise).square().mean() for of in draws]
            losses.append(float(sum(errors)))
        print(
            f"lora, seed {seed}: {found['full'][-1]:.4f} on float32, {found['int8'][-1]:.4f} on 8 bit",
            flush=True,
        )
    ratio = statistics.mean(found["int8"]) / statistics.mean(found["full"])
    print(f"lora, mean: {ratio:.4f}  {'reached' if ratio <= TARGET else 'not reached'}")


def report_step(name: str, seconds: float) -> None:
    """Prints the ratio of a step's times."""
    from dreambooth.trainer.models.int8 import quantise

    size = SIZES[name]
    plain = make_unet(size).requires_grad_(False)
    narrow = copy.deepcopy(plain)
    quantise(narrow, torch.float32, torch.device("cpu"))
    side = size.pixels // 8
    inputs = torch.randn(2, 4, side, side), torch.tensor([100, 700]), torch.randn(2, 77, size.context)
    taken: dict[int, list[float]] = {0: [], 1: []}
    for unet in (plain, narrow):
        attached(unet, 16)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for number, unet in enumerate((plain, narrow)):
            began = time.process_time()
            unet(*inputs, return_dict=False)[0].square().mean().backward()
            taken[number].append(time.process_time() - began)
    one, other = (statistics.median(found[1:]) for found in taken.values())
    print(f"step, {name}: {one * 1e3:.1f} ms on float32, {other * 1e3:.1f} ms on 8 bit: {other / one:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("benchmark-files/int8"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--parts", nargs="*", default=["prediction", "step", "lora"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if "prediction" in arguments.parts:
        report_prediction()
    if "step" in arguments.parts:
        for name in ("small", "large"):
            report_step(name, arguments.seconds)
    if "lora" in arguments.parts:
        report_lora(folder, arguments.seeds, arguments.steps)


if __name__ == "__main__":
    main()
