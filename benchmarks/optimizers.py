"""What saving memory costs in learning: the loss on draws that no run saw, against AdamW in float32.

    python benchmarks/optimizers.py [--folder DIR] [--seeds 3] [--steps 300] [names …]

Each trains the small base on the demo's photos, UNet and text encoder, with the same data, noise and rate; all else is
the default. Then every checkpoint predicts the same noise (quality.py says how). 300 steps of three seeds, within 1%:
that is to be reached. What was trained stays in the folder, and is not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peer import alike
from quality import BASE, CLASS_IMAGES, CLASS_PROMPT, INSTANCE_PROMPT, PHOTOS, ROOT, SIDE, losses, make_draws

TARGET = 1.01
PLAIN: Mapping[str, Any] = {"mixed_precision": "no"}
NARROW: Mapping[str, Any] = {"mixed_precision": "bf16"}


@dataclass(frozen=True)
class Variant:
    """Settings beside the common ones, and the variant that they are compared with."""

    settings: Mapping[str, Any]
    against: str = "AdamW"


VARIANTS: Mapping[str, Variant] = {
    "AdamW": Variant(PLAIN),
    "AdamW8bit": Variant({**PLAIN, "optimizer": "adamw8bit"}),
    "fused backward": Variant({**PLAIN, "fused_backward": "yes"}),
    "bf16 weights": Variant({**NARROW, "weights_dtype": "bfloat16"}),
    "all three": Variant(
        {**NARROW, "weights_dtype": "bfloat16", "optimizer": "adamw8bit", "fused_backward": "yes"}
    ),
}


def train(folder: Path, name: str, seed: int, steps: int, learning_rate: float) -> Path:
    """Trains one variant, and gives the written file."""
    output = f"{name.replace(' ', '-')}-{steps}at{learning_rate:g}-{seed}"
    result = folder / f"{output}.safetensors"
    if result.exists():
        return result
    settings = {
        "model": str(BASE),
        "output_name": output,
        "output_dir": str(folder),
        "output_dtype": "float32",
        "runs_dir": str(folder / "runs"),
        "resolution": SIDE,
        "num_class_images": CLASS_IMAGES,
        "max_train_steps": steps,
        "learning_rate": learning_rate,
        "seed": seed,
        "num_validation_images": 0,
        "checkpointing_steps": 0,
        "concepts": [
            {
                "instance_prompt": INSTANCE_PROMPT,
                "class_prompt": CLASS_PROMPT,
                "instance_data_dir": str(PHOTOS),
                "class_data_dir": str(folder / "class"),
            }
        ],
        **VARIANTS[name].settings,
    }
    config = folder / f"{output}.json"
    config.write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "dreambooth", "train", str(config)]
    subprocess.run(command, cwd=ROOT, env=alike(), check=True, stderr=subprocess.DEVNULL)
    return result


def report(found: Mapping[str, list[float]]) -> None:
    """Prints each variant's loss of every seed, the mean, and the ratio to the one that it is compared with."""
    seeds = len(next(iter(found.values())))
    print(f"{'':<16}" + "".join(f"{f'seed {seed}':>9}" for seed in range(seeds)) + f"{'mean':>9}{'ratio':>8}")
    for name, values in found.items():
        mean = statistics.mean(values)
        ratio = mean / statistics.mean(found[VARIANTS[name].against])
        line = f"{name:<16}" + "".join(f"{value:9.4f}" for value in values) + f"{mean:9.4f}{ratio:8.4f}"
        reached = (
            "" if name == VARIANTS[name].against else "  reached" if ratio <= TARGET else "  not reached"
        )
        print(line + reached)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(VARIANTS), help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--folder", type=Path, default=Path("benchmark-files/optimizers"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(["AdamW", *arguments.names]))
    trained = {
        name: [
            train(folder, name, seed, arguments.steps, arguments.learning_rate)
            for seed in range(arguments.seeds)
        ]
        for name in names
    }
    draws = [make_draws(PHOTOS, INSTANCE_PROMPT, 1000), make_draws(folder / "class", CLASS_PROMPT, 1001)]
    print(f"base: {sum(losses(BASE, draws)):.4f}")
    report({name: [sum(losses(path, draws)) for path in paths] for name, paths in trained.items()})


if __name__ == "__main__":
    main()
