"""A run's loss as a chart that stays small: some hundred of its steps, however many there were."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MOST = 400
SMOOTHING = 0.98  # of an exponential average over steps, with Adam's correction of its beginning
_AT_ONCE = 4  # steps that become two points when every step can be one no longer
_NEWEST = 3  # points that the steps since the last whole stretch take at most


class _Point(NamedTuple):
    """One step: its own loss, and the averages of the loss and of its parts up to it; None where there is no number."""

    step: int
    loss: float | None
    smooth: float | None
    instance: float | None
    prior: float | None

    def short(self) -> _Point:
        """With as many digits as a chart shows."""
        return _Point(self.step, *(_short(number) for number in self[1:]))


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.5g}")


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and value == value else None


@dataclass
class _Average:
    """An exponential average, corrected at its beginning as Adam's is."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: Any) -> None:
        number = _number(value)
        if number is not None:
            self.total = SMOOTHING * self.total + (1 - SMOOTHING) * number
            self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)

    def value(self) -> float | None:
        return self.total / self.weight if self.weight else None

    def go_on_from(self, value: float | None) -> None:
        self.total, self.weight = (value, 1.0) if value is not None else (0.0, 0.0)


@dataclass
class Chart:
    """Steps as they were, none of them averaged with others: all of them while there are few, then the one of the least
    and the one of the greatest loss of every `stride` steps, which doubles as often as there are MOST points. So no peak
    is lost or lowered, however long a run becomes."""

    stride: int = 1
    last: int = 0
    _kept: list[_Point] = field(default_factory=list)
    _open: list[_Point] = field(default_factory=list)  # the steps of a stretch that is not over
    _averages: tuple[_Average, _Average, _Average] = field(
        default_factory=lambda: (_Average(), _Average(), _Average())
    )

    def add(self, step: int, loss: Any, instance: Any, prior: Any) -> None:
        """One step. A step that was there before (a run that went on from its last state) replaces what followed."""
        if step <= self.last:
            self._cut(step)
        self.last = step
        for average, value in zip(self._averages, (loss, instance, prior), strict=True):
            average.add(value)
        if self._open and self._stretch(self._open[0].step) != self._stretch(step):
            self._close()
        smooth, instances, priors = self._averages
        point = _Point(step, _number(loss), smooth.value(), instances.value(), priors.value())
        self._open.append(point)

    def _stretch(self, step: int) -> int:
        return (step - 1) // self.stride

    def _close(self) -> None:
        self._kept += [point.short() for point in _extremes(self._open)]
        self._open.clear()
        while len(self._kept) > MOST - _NEWEST:
            self.stride = max(_AT_ONCE, 2 * self.stride)
            stretches = itertools.groupby(self._kept, lambda point: self._stretch(point.step))
            self._kept = [point for _, points in stretches for point in _extremes(points)]

    def _cut(self, step: int) -> None:
        self._kept = [point for point in self._kept if point.step < step]
        self._open = [point for point in self._open if point.step < step]
        before = (self._open or self._kept or [_Point(0, None, None, None, None)])[-1]
        for average, value in zip(
            self._averages, (before.smooth, before.instance, before.prior), strict=True
        ):
            average.go_on_from(value)

    def as_json(self) -> dict[str, list[Any]]:
        """`steps`, `loss`, `smooth`, `instance`, `prior`: lists of one length, the last of them of the newest step;
        `instance` and `prior`, the parts, are empty where there is no prior, and the instances' loss is all of it."""
        newest = _extremes(self._open)
        if newest and newest[-1] is not self._open[-1]:
            newest.append(self._open[-1])
        points = [*self._kept, *(point.short() for point in newest)]
        has_prior = any(point.prior for point in points)
        return {
            "steps": [point.step for point in points],
            "loss": [point.loss for point in points],
            "smooth": [point.smooth for point in points],
            "instance": [point.instance for point in points] if has_prior else [],
            "prior": [point.prior for point in points] if has_prior else [],
        }


def _extremes(points: Iterable[_Point]) -> list[_Point]:
    """The points of the least and of the greatest loss, in their order; of steps without a number the last, as a gap."""
    points = list(points)
    known = [(point.loss, point.step, point) for point in points if point.loss is not None]
    if not known:
        return points[-1:]
    return sorted({min(known)[-1], max(known)[-1]}, key=lambda point: point.step)
