"""A run's loss as a chart that stays small: some hundred points, however many steps there were."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MOST = 400
SMOOTHING = 0.98  # of an exponential average over steps, with Adam's correction of its beginning


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, value: Any) -> None:
        if isinstance(value, (int, float)) and value == value:
            self.total += value
            self.count += 1

    def take(self) -> float | None:
        mean = _short(self.total / self.count) if self.count else None
        self.total, self.count = 0.0, 0
        return mean


def _short(number: float) -> float:
    return float(f"{number:.5g}")


@dataclass
class _Average:
    """An exponential average, corrected at its beginning as Adam's is."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: Any) -> None:
        if isinstance(value, (int, float)) and value == value:
            self.total = SMOOTHING * self.total + (1 - SMOOTHING) * value
            self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)

    def value(self) -> float | None:
        return _short(self.total / self.weight) if self.weight else None

    def go_on_from(self, value: float | None) -> None:
        self.total, self.weight = (value, 1.0) if value is not None else (0.0, 0.0)


@dataclass
class Chart:
    """A point for `stride` steps each, which doubles when there are MOST points: the loss as their mean, and the
    smoothed averages over single steps of the loss (`smooth`) and of its parts."""

    stride: int = 1
    last: int = 0
    steps: list[int] = field(default_factory=list)
    loss: list[float | None] = field(default_factory=list)
    smooth: list[float | None] = field(default_factory=list)
    instance: list[float | None] = field(default_factory=list)
    prior: list[float | None] = field(default_factory=list)
    _sum: _Mean = field(default_factory=_Mean)
    _averages: tuple[_Average, _Average, _Average] = field(
        default_factory=lambda: (_Average(), _Average(), _Average())
    )
    _pending: int = 0

    def add(self, step: int, loss: Any, instance: Any, prior: Any) -> None:
        """One step. A step that was there before (a run that went on from its last state) replaces what followed."""
        if step <= self.last:
            self._cut(step)
        self.last = step
        self._sum.add(loss)
        for average, value in zip(self._averages, (loss, instance, prior), strict=True):
            average.add(value)
        self._pending += 1
        if self._pending >= self.stride:
            self._close(step)

    def _close(self, step: int) -> None:
        self.steps.append(step)
        self.loss.append(self._sum.take())
        for line, average in zip(self._smoothed(), self._averages, strict=True):
            line.append(average.value())
        self._pending = 0
        if len(self.steps) >= MOST:
            self._halve()

    def _smoothed(self) -> tuple[list[float | None], list[float | None], list[float | None]]:
        return self.smooth, self.instance, self.prior

    def _halve(self) -> None:
        self.stride *= 2
        self.steps, self.loss = self.steps[1::2], _paired(self.loss)
        self.smooth, self.instance, self.prior = (one[1::2] for one in self._smoothed())

    def _cut(self, step: int) -> None:
        keep = sum(1 for one in self.steps if one < step)
        for line in (self.steps, self.loss, self.smooth, self.instance, self.prior):
            del line[keep:]
        self._sum.take()
        self._pending = 0
        for line, average in zip(self._smoothed(), self._averages, strict=True):
            average.go_on_from(line[-1] if line else None)

    def as_json(self) -> dict[str, list[Any]]:
        """`steps`, `loss`, `smooth`, `instance`, `prior`: lists of one length; `instance` and `prior`, the
        parts, are empty where there is no prior, and the instances' loss is all of it.
        The steps since the last whole point are left out, but for the first ones of all."""
        has_prior = any(self.prior)
        return {
            "steps": list(self.steps),
            "loss": list(self.loss),
            "smooth": list(self.smooth),
            "instance": list(self.instance) if has_prior else [],
            "prior": list(self.prior) if has_prior else [],
        }


def _paired(line: list[float | None]) -> list[float | None]:
    """The mean of every two neighbours; `line` has an even length."""
    made: list[float | None] = []
    for first, second in zip(line[::2], line[1::2], strict=True):
        known = [one for one in (first, second) if one is not None]
        made.append(_short(sum(known) / len(known)) if known else None)
    return made
