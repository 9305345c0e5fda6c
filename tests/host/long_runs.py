"""Runs of many steps, made in a second: for the tests and the benchmark of what a page asks all the time."""

from __future__ import annotations

import math
import random
from pathlib import Path

from dreambooth.shared.config import dump_settings, settings_from
from dreambooth.shared.events import EventLog
from dreambooth.shared.runfolder import RunFolder, create_run

PROMPT = "photo of ohwx cat on a sunny windowsill beside a pot of basil, in the morning, sharp, 50 mm"


def make_long_run(runs: Path, steps: int = 10_000, *, name: str = "long") -> RunFolder:
    """A run as the trainer leaves one after `steps` steps: a sample every 100, a state every 500, an export every
    1,000, its log as long."""
    settings = settings_from({"max_train_steps": str(steps), "output_name": name}, where="test")
    run = create_run(runs, name, dump_settings(settings))
    log = EventLog(run.events)
    noise = random.Random(1)
    log.emit(
        "plan", images=20, class_images=100, class_images_to_make=0, buckets={"512x512": 20}, steps=steps, epochs=500.0,
        trained=["UNet", "text encoder"], files=[], disk_needed=4 * 10**9, disk_free=10**11, memory={},
    )  # fmt: skip
    log.emit("phase", name="training", of=steps)
    for step in range(1, steps + 1):
        loss = 0.12 + 0.3 * math.exp(-step / 900) + noise.gauss(0, 0.05)
        log.emit(
            "step", step=step, of=steps, loss=loss, instance_loss=loss * 0.9, prior_loss=loss * 1.1, lr=2e-6,
            it_s=2.5, eta_s=(steps - step) / 2.5, memory_gb=11.3,
        )  # fmt: skip
        if step % 100 == 0:
            for number in range(4):
                path = run.samples / f"step-{step}-{number}.png"
                log.emit("sample", step=step, prompt=PROMPT, path=path, number=number, seed=number)
        if step % 500 == 0:
            log.emit("checkpoint", step=step, path=run.states / f"step-{step}")
        if step % 1000 == 0:
            log.emit(
                "exported",
                step=step,
                path=f"/models/Stable-diffusion/{name}-{step}.safetensors",
                sha256="0" * 64,
            )
    log.close()
    run.log.write_text("".join(f"step {step} of {steps}\n" for step in range(steps)), encoding="utf-8")
    return run
