"""What the plan says a training step takes, against what torch's allocator was really asked for.

    python benchmarks/counted.py [--model FILE] [--pixels 128]

Forward and backward pass of the small base, on a processor, for settings that trade memory for time: bytes beside the
weights, the plan's counted without memory, the real ones from the profiler's record of every allocation. What is counted
must not be more than 5% below, nor 10% above. On a card, benchmarks/gpu/planner.py compares whole runs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

from dreambooth.shared.config import load_settings  # noqa: E402
from dreambooth.trainer import assembly  # noqa: E402
from dreambooth.trainer.engine import Denoiser  # noqa: E402
from dreambooth.trainer.memory.passes import training_step  # noqa: E402
from dreambooth.trainer.models import text  # noqa: E402
from dreambooth.trainer.models.embeddings import Embeddings  # noqa: E402
from dreambooth.trainer.models.int8 import is_int8, quantise  # noqa: E402
from dreambooth.trainer.models.loading import load_model  # noqa: E402
from dreambooth.trainer.planning.plan import Plan, make_plan  # noqa: E402

BELOW, ABOVE = 0.95, 1.10
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "UNet alone": {"train_text_encoder": False},
    "blocks twice": {"gradient_checkpointing": "yes"},
    "12 blocks twice": {"gradient_checkpointing": "12"},
    "LoRA": {"output_kind": "lora"},
    "LoRA, blocks twice": {"output_kind": "lora", "gradient_checkpointing": "yes"},
    "LoRA on int8": {"output_kind": "lora", "base_precision": "int8"},
    "LoKr": {"output_kind": "lycoris"},
}
IMAGES = (1, 4, 8)


def really(plan: Plan, images: int, side: int) -> int:
    """Bytes at most, of a real step, beside what was there before it."""
    model = load_model(plan.settings.model.model)
    family, unet = plan.base.identified.family, plan.base.configs["unet"]
    if is_int8(plan.settings):
        for name in ("unet", *(part.component for part in family.text_encoders)):
            quantise(model.components[name], torch.float32, torch.device("cpu"))
    assembly.trained_weights(plan, model)
    encoders = text.encoders_of(model.components, family) if plan.trains_text else []
    denoiser = Denoiser(model.components["unet"], encoders, family, 1)
    noisy, timesteps = torch.randn(images, 4, side // 8, side // 8), torch.zeros(images, dtype=torch.int64)
    condition: Any = torch.full((images, 1, 77), 49407)
    if not encoders:
        condition = Embeddings(torch.randn(images, 77, unet["cross_attention_dim"]))
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as record:
        prediction = denoiser(noisy, timesteps, condition, None)
        functional.mse_loss(prediction, torch.randn_like(prediction)).backward()  # type: ignore[no-untyped-call]
    asked = [
        (event.start_ns(), event.nbytes())
        for event in record.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    return int(max(itertools.accumulate(size for _, size in sorted(asked))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "dreambooth/assets/base/small-base.safetensors"))
    parser.add_argument("--pixels", type=int, default=128)
    chosen = parser.parse_args()
    ratios = []
    print(f"{'settings':20} {'images':>6} {'plan':>10} {'real':>10}  ratio")
    with tempfile.TemporaryDirectory() as folder:
        for name, values in WAYS.items():
            plan = make_plan(
                load_settings(tiny.config(Path(folder), model=chosen.model, optimizer="adamw", **values))
            )
            plan = replace(plan, buckets=((chosen.pixels, chosen.pixels),))
            dtypes = dict.fromkeys(plan.base.configs, torch.float32)
            step = training_step(plan, dtypes, plan.buckets[0])
            for images in IMAGES:
                said, was = step.peak(images, passes=1, fused=False), really(plan, images, chosen.pixels)
                ratios.append(said / was)
                print(
                    f"{name:20} {images:6} {said / 2**20:6.1f} MiB {was / 2**20:6.1f} MiB  {said / was:.3f}",
                    flush=True,
                )
    print(f"{len(ratios)} settings: from {min(ratios):.3f} to {max(ratios):.3f}")
    return int(not (min(ratios) >= BELOW and max(ratios) <= ABOVE))


if __name__ == "__main__":
    sys.exit(main())
