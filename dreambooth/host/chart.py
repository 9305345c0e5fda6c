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
class Chart:
    """Means over `stride` steps each, which doubles when there are MOST points; `smooth` is over single steps."""

    stride: int = 1
    last: int = 0
    steps: list[int] = field(default_factory=list)
    loss: list[float | None] = field(default_factory=list)
    smooth: list[float | None] = field(default_factory=list)
    instance: list[float | None] = field(default_factory=list)
    prior: list[float | None] = field(default_factory=list)
    _sums: tuple[_Mean, _Mean, _Mean] = field(default_factory=lambda: (_Mean(), _Mean(), _Mean()))
    _pending: int = 0
    _average: float = 0.0
    _weight: float = 0.0

    def add(self, step: int, loss: Any, instance: Any, prior: Any) -> None:
        """One step. A step that was there before (a run that went on from its last state) replaces what followed."""
        if step <= self.last:
            self._cut(step)
        self.last = step
        for total, value in zip(self._sums, (loss, instance, prior), strict=True):
            total.add(value)
        if isinstance(loss, (int, float)) and loss == loss:
            self._average = SMOOTHING * self._average + (1 - SMOOTHING) * loss
            self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        self._pending += 1
        if self._pending >= self.stride:
            self._close(step)

    def _close(self, step: int) -> None:
        means = [total.take() for total in self._sums]
        self.steps.append(step)
        for line, value in zip((self.loss, self.instance, self.prior), means, strict=True):
            line.append(value)
        self.smooth.append(self._smooth())
        self._pending = 0
        if len(self.steps) >= MOST:
            self._halve()

    def _smooth(self) -> float | None:
        return _short(self._average / self._weight) if self._weight else None

    def _halve(self) -> None:
        self.stride *= 2
        self.steps, self.smooth = self.steps[1::2], self.smooth[1::2]
        self.loss, self.instance, self.prior = (
            _paired(one) for one in (self.loss, self.instance, self.prior)
        )

    def _cut(self, step: int) -> None:
        keep = sum(1 for one in self.steps if one < step)
        for line in (self.steps, self.loss, self.smooth, self.instance, self.prior):
            del line[keep:]
        for total in self._sums:
            total.take()
        self._pending = 0
        before = self.smooth[-1] if self.smooth else None
        self._average, self._weight = (before, 1.0) if before is not None else (0.0, 0.0)

    def as_json(self) -> dict[str, list[Any]]:
        """`steps`, `loss`, `smooth`, `instance`, `prior`: lists of one length; `prior` is empty where there is none.
        The steps since the last whole point are left out, but for the first ones of all."""
        prior = self.prior if any(self.prior) else []
        return {
            "steps": list(self.steps),
            "loss": list(self.loss),
            "smooth": list(self.smooth),
            "instance": list(self.instance),
            "prior": list(prior),
        }


def _paired(line: list[float | None]) -> list[float | None]:
    """The mean of every two neighbours; `line` has an even length."""
    made: list[float | None] = []
    for first, second in zip(line[::2], line[1::2], strict=True):
        known = [one for one in (first, second) if one is not None]
        made.append(_short(sum(known) / len(known)) if known else None)
    return made
