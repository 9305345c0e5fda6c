"""Whether a plan's memory is what a card is really asked for, and whether what it accepts under a limit runs.

    python benchmarks/gpu/planner.py [--only predictions | limits] [--families sd1 sdxl] [--folder DIR] [--tiny]

predictions: for 22 settings what the plan says of caching and training, against what torch had reserved at most; each in a
process of its own that plans, loads, caches and trains three steps of a model of the real size with random weights.
limits: defaults under `vram_limit` of 6 to 24 GB; what the plan accepts makes 20 steps, what it refuses says the smallest.
About ten seconds for each of SD1, forty for SDXL; without a card only the plan's side means anything.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import rig

from dreambooth.trainer.memory.ways import PLAIN

BELOW, ABOVE = 0.95, 1.10
LIMITS = (6, 8, 10, 12, 16, 24)
LIMITED_STEPS = 20
ALONE: dict[str, Any] = {"train_text_encoder": False, "prior_loss_weight": 0}
LORA: dict[str, Any] = {"output_kind": "lora", "rank": 16, **ALONE}
NARROW: dict[str, Any] = {"weights_dtype": "bfloat16"}
TWICE: dict[str, Any] = {"gradient_checkpointing": "yes"}
# What is open would be chosen by what is free: everything that memory depends on is set
FIXED: dict[str, Any] = {"mixed_precision": "bf16", **PLAIN}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "sd1": [
        {},
        {"train_batch_size": 4},
        {"train_batch_size": 4, "forward_batch_size": 2},
        {"train_text_encoder": False},
        ALONE,
        {**ALONE, "train_batch_size": 4},
        TWICE,
        {**TWICE, "train_batch_size": 4},
        {"gradient_checkpointing": "18"},
        {"fused_backward": "yes"},
        NARROW,
        {**NARROW, **TWICE, "fused_backward": "yes"},
        {"optimizer": "adafactor"},
        {"use_ema": True},
        LORA,
        {**LORA, **TWICE, "train_batch_size": 4},
        {**LORA, "base_precision": "int8"},
    ],
    "sdxl": [
        LORA,
        {**LORA, **TWICE},
        {**LORA, **TWICE, "base_precision": "int8"},
        {**ALONE, **NARROW, "optimizer": "adafactor"},
        {**ALONE, **NARROW, **TWICE, "optimizer": "adafactor", "fused_backward": "yes"},
    ],
}


def one(bench: rig.Bench, family: str, changes: dict[str, Any], steps: int) -> dict[str, Any]:
    """The plan's bytes and the card's of a run that makes some steps."""
    where = rig.device()
    rig.reset_peak(where)

    def act(engine: Any, plan: Any) -> dict[str, Any]:
        phases = {phase.name: phase.bytes for phase in plan.memory.phases}
        found = {"said": [phases.get("caching", 0), phases["training"]], "was": [rig.peak_gb(where)]}
        rig.reset_peak(where)
        step = rig.counted(engine)
        for _ in range(steps):
            step()
        rig.wait(where)
        found["was"].append(rig.peak_gb(where))
        return found | {"fits": plan.memory.fits}

    found: dict[str, Any] = rig.in_run(bench.settings(family, **changes), act)
    return found


def ask(bench: rig.Bench, family: str, changes: dict[str, Any], steps: int) -> dict[str, Any]:
    """`one` in a process of its own; `{"said": …}` with its last words where it failed."""
    job = json.dumps([family, changes, steps])
    command = [sys.executable, __file__, "--one", job, "--folder", str(bench.folder)]
    done = subprocess.run([*command, *(["--tiny"] if bench.tiny else [])], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        words = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return {
            "failed": next(
                (line for line in words if "smallest setting needs" in line), words[-1] if words else "?"
            )
        }
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def predictions(bench: rig.Bench, families: list[str]) -> None:
    ratios = []
    for family in families:
        for changes in SETTINGS[family]:
            found = ask(bench, family, FIXED | changes, 3)
            title = ", ".join(f"{name} {value}" for name, value in changes.items()) or "plain"
            if "failed" in found:
                print(f"{family:5} {title}: {found['failed']}", flush=True)
                continue
            said, was = found["said"][1] / 1e9, found["was"][1]
            ratios.append(said / was)
            print(
                f"{family:5} {said:6.2f} GB planned {was:6.2f} GB reserved {said / was:6.3f}  {title}",
                flush=True,
            )
    if ratios:
        verdict = "" if bench.tiny else f"; to reach {BELOW} to {ABOVE}"
        print(f"{len(ratios)} settings: from {min(ratios):.3f} to {max(ratios):.3f}{verdict}")


def limits(bench: rig.Bench, families: list[str]) -> None:
    for family in families:
        for kind, changes in (("whole", {}), ("LoRA", {"output_kind": "lora"})):
            for limit in LIMITS:
                found = ask(bench, family, {**changes, "vram_limit": limit}, LIMITED_STEPS)
                ending = (
                    found.get("failed") or f"made {LIMITED_STEPS} steps, {found['was'][1]:.2f} GB reserved"
                )
                print(f"{family:5} {kind:5} {limit:3} GB: {ending}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("predictions", "limits"))
    parser.add_argument("--families", nargs="+", choices=[*SETTINGS], default=list(SETTINGS))
    parser.add_argument("--folder", type=Path, help="keeps the models for the next command")
    parser.add_argument("--one", help="a job as JSON, measured in this process")
    parser.add_argument("--tiny", action="store_true", help="small enough for a processor")
    chosen = parser.parse_args(arguments)
    with rig.bench(chosen.folder, tiny=chosen.tiny) as bench:
        if chosen.one:
            family, changes, steps = json.loads(chosen.one)
            rig.note(one(bench, family, changes, steps))
            return
        for family in chosen.families:
            bench.model(family)
        for name, act in (("predictions", predictions), ("limits", limits)):
            if chosen.only in (None, name):
                act(bench, chosen.families)


if __name__ == "__main__":
    main()
