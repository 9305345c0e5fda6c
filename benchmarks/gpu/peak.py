"""What a card must hold at most, for the jobs of issue 5's table, each in a process of its own.

    python benchmarks/gpu/peak.py [NAME ...] [--steps 3] [--folder DIR] [--tiny]

A checkpoint with random weights is planned, loaded, its photos cached, and trained for some steps as a run does it; GB that
torch had reserved at most in each of the two, which is what other programs see, and what the least bar of the table is.
A setting whose library is missing here (bitsandbytes) says so. About a minute for each of SD1, three for SDXL.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rig
from rig import Bench

LEAST: dict[str, Any] = {
    "mixed_precision": "bf16",
    "weights_dtype": "bfloat16",
    "fused_backward": "yes",
    "gradient_checkpointing": "yes",
    "optimizer": "adamw8bit",
}
LORA: dict[str, Any] = {
    "output_kind": "lora",
    "rank": 16,
    "mixed_precision": "bf16",
    "gradient_checkpointing": "yes",
    "train_text_encoder": False,
    "prior_loss_weight": 0,
}
ALONE = {"train_text_encoder": False, "prior_loss_weight": 0}


@dataclass(frozen=True)
class Job:
    """A family, its settings, and the GB that are to be reached at most."""

    family: str
    bar: float
    settings: dict[str, Any] = field(default_factory=dict)


JOBS = {
    "sd1": Job("sd1", 8.0, LEAST),
    "sdxl": Job("sdxl", 10.0, LEAST | ALONE),
    "sdxl-adafactor": Job("sdxl", 10.0, LEAST | ALONE | {"optimizer": "adafactor"}),
    "sdxl-lora": Job("sdxl", 8.0, LORA),
    "sdxl-lora-int8": Job("sdxl", 6.0, LORA | {"base_precision": "int8"}),
    "sd1-defaults": Job("sd1", 24.0, {"mixed_precision": "bf16"}),
}


def one(bench: Bench, name: str, steps: int) -> dict[str, Any]:
    """The peak of a job's caching and of its steps, in GB."""
    job, where = JOBS[name], rig.device()
    rig.reset_peak(where)

    def act(engine: Any, plan: Any) -> dict[str, Any]:
        before = rig.peak_gb(where)
        rig.reset_peak(where)
        step = rig.counted(engine)
        for _ in range(steps):
            step()
        rig.wait(where)
        return {"job": name, "before_gb": round(before, 2), "training_gb": round(rig.peak_gb(where), 2)}

    changes = {**job.settings, **({"mixed_precision": "bf16"} if where.type == "cpu" else {})}
    found: dict[str, Any] = rig.in_run(bench.settings(job.family, **changes), act)
    return found


def told(name: str, done: subprocess.CompletedProcess[str], *, tiny: bool) -> str:
    """A job's line of the table; `tiny` models reach nothing."""
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()
        return f"{name:16} failed: {said[-1] if said else done.returncode}"
    found = json.loads(lines[-1])
    peak, bar = max(found["before_gb"], found["training_gb"]), JOBS[name].bar
    verdict = "" if tiny else f"  {'reached' if peak <= bar else 'not reached'}: {bar:g} GB"
    before, training = found["before_gb"], found["training_gb"]
    return f"{name:16} {before:7.2f} GB before the first step  {training:7.2f} GB while training{verdict}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", nargs="*", choices=[*JOBS, []], default=list(JOBS))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keeps the models for the next command")
    parser.add_argument("--one", action="store_true", help="measure in this process")
    parser.add_argument("--tiny", action="store_true", help="small enough for a processor")
    chosen = parser.parse_args(arguments)
    with rig.bench(chosen.folder, tiny=chosen.tiny) as bench:
        for name in chosen.jobs:
            bench.model(JOBS[name].family)
            if chosen.one:
                rig.note(one(bench, name, chosen.steps))
                continue
            command = [sys.executable, __file__, name, "--one", "--folder", str(bench.folder)]
            command += ["--steps", str(chosen.steps), *(["--tiny"] if chosen.tiny else [])]
            done = subprocess.run(command, capture_output=True, text=True)
            print(told(name, done, tiny=chosen.tiny), flush=True)


if __name__ == "__main__":
    main()
