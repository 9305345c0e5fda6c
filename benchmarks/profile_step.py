"""Where the time of our training step goes, part by part.

    python benchmarks/profile_step.py [small] [large] [--text] [--lora RANK] [--seconds 20] [--threads 1]

The same step as in step.py, with a watch around each of its parts: medians of the steps, in milliseconds of the processor.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step import SIZES, OurStep, make_text_encoder, make_unet, our_step

LOOP = "the rest: Python of the loop and the engine"
WHOLE = "the whole step"
PARTS = {
    "batches": "samples, noise, latents, captions",
    "forward": "forward",
    "loss": "noise added, loss",
    "backward": "backward",
    "stepper": "clipping, NaN guard, optimizer",
    "orders": "orders from outside",
    "log": "numbers for the log",
}


class Watch:
    """Time of the parts of a step, each without those inside it. `now` gives seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._inside: list[float] = []
        self.taken: dict[str, float] = defaultdict(float)

    def around(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        """`act` with its time, less that of parts inside it, added to `name`."""

        def watched(*arguments: Any, **options: Any) -> Any:
            self._inside.append(0.0)
            began = self._now()
            try:
                return act(*arguments, **options)
            finally:
                whole = self._now() - began
                self.taken[name] += whole - self._inside.pop()
                if self._inside:
                    self._inside[-1] += whole

        return watched


def watch_parts(watch: Watch, engine: Any, inbox: Any = None, log: Any = None) -> None:
    """Puts the watch around an engine's parts, and around what the loop does between steps."""
    batches = engine._batches
    batches.of_step = watch.around("batches", lambda *a, of=batches.of_step, **o: list(of(*a, **o)))
    engine._model.forward = watch.around("forward", engine._model.forward)
    engine._losses = watch.around("loss", engine._losses)
    engine._accelerator.backward = watch.around("backward", engine._accelerator.backward)
    engine.stepper.step = watch.around("stepper", engine.stepper.step)
    if inbox is not None:
        inbox.should_stop = watch.around("orders", inbox.should_stop)
        inbox.commands = watch.around("orders", inbox.commands)
    if log is not None:
        log.add = watch.around("log", log.add)


def profile(step: Callable[[], object], watch: Watch, seconds: float) -> dict[str, float]:
    """Medians of the parts of a watched step, in seconds, by their titles; the whole is the last."""
    whole = watch.around("whole", step)
    whole()
    found: dict[str, list[float]] = {name: [] for name in (*PARTS, "whole")}
    sums: list[float] = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or not sums:
        watch.taken.clear()
        whole()
        for name, times in found.items():
            times.append(watch.taken[name])
        sums.append(sum(watch.taken.values()))
    medians = {PARTS.get(name, LOOP): statistics.median(times) for name, times in found.items()}
    return {**medians, WHOLE: statistics.median(sums)}


def table(medians: dict[str, float]) -> str:
    whole = medians[WHOLE]
    return "\n".join(
        f"  {name:44} {seconds * 1000:9.2f} ms  {100 * seconds / whole:5.1f} %"
        for name, seconds in medians.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", choices=[*SIZES, []], default=["small", "large"])
    parser.add_argument("--text", action="store_true", help="train a text encoder too")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    for name in chosen.sizes:
        size = SIZES[name]
        encoder = make_text_encoder(size) if chosen.text else None
        watch = Watch(time.process_time)
        with tempfile.TemporaryDirectory() as folder:
            ours: OurStep = our_step(make_unet(size), encoder, size, Path(folder), chosen.lora)
            watch_parts(watch, ours.engine, ours.inbox, ours.log)
            medians = profile(ours, watch, chosen.seconds)
        print(f"{name}{' with its text encoder' if chosen.text else ''}\n{table(medians)}", flush=True)


if __name__ == "__main__":
    main()
