"""Learning rates as pure functions of the step: nothing to save, nothing to restore.

The shapes and names are those of diffusers' `get_scheduler` (diffusers/optimization.py); a step is an
optimizer step, and step 0 is the first one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """What a learning rate's shape depends on: `steps` in all, `warmup` of them rising from 0."""

    name: str
    steps: int
    warmup: int = 0
    cycles: int = 1
    power: float = 1.0
    # diffusers' polynomial ends at 1e-7 rather than at 0, as a rate, not as a share
    final_rate: float = 1e-7

    def factor(self, step: int, rate: float) -> float:
        """The share of `rate` that holds at `step` (0-based)."""
        if self.name != "constant" and step < self.warmup:
            return step / max(1, self.warmup)
        return SHAPES[self.name](self, step, rate)


def _progress(schedule: Schedule, step: int) -> float:
    return (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)


def _constant(schedule: Schedule, step: int, rate: float) -> float:
    return 1.0


def _linear(schedule: Schedule, step: int, rate: float) -> float:
    return max(0.0, 1.0 - _progress(schedule, step))


def _cosine(schedule: Schedule, step: int, rate: float) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * _progress(schedule, step))))


def _cosine_with_restarts(schedule: Schedule, step: int, rate: float) -> float:
    progress = _progress(schedule, step)
    if progress >= 1.0:
        return 0.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((schedule.cycles * progress) % 1.0))))


def _polynomial(schedule: Schedule, step: int, rate: float) -> float:
    if rate <= schedule.final_rate:
        return 1.0
    if step > schedule.steps:
        return schedule.final_rate / rate
    remaining = 1.0 - _progress(schedule, step)
    return ((rate - schedule.final_rate) * math.pow(remaining, schedule.power) + schedule.final_rate) / rate


SHAPES: dict[str, Callable[[Schedule, int, float], float]] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
}
