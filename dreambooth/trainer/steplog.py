"""The loop's numbers on their way to the events: kept on the device until somebody would look at them."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from dreambooth.shared.events import Emit
from dreambooth.trainer.objectives import Losses


@dataclass(frozen=True)
class _Kept:
    step: int
    losses: torch.Tensor  # total, instance, prior
    rate: float


class StepLog:
    """Emits one `step` event per step, in bundles: reading a number off a card makes the host wait for it.

    `watch` is told after each bundle how many seconds a step of it took.
    """

    def __init__(
        self,
        emit: Emit,
        steps: int,
        *,
        every: float = 0.5,
        memory: MemoryProbe | None = None,
        watch: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._emit = emit
        self._steps = steps
        self._every = every
        self._watch = watch
        self._memory = memory or MemoryProbe(torch.device("cpu"))
        self._kept: deque[_Kept] = deque()
        self._flushed = time.monotonic()
        # (time, step) of the last flushes: the rate is that of the last minute or so, not of the whole run
        self._marks: deque[tuple[float, int]] = deque(maxlen=120)

    def start(self, step: int) -> None:
        """The moment from which the rate is counted."""
        self._flushed = time.monotonic()
        self._marks.clear()
        self._marks.append((self._flushed, step))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Emits what was kept, and leaves the time that the block takes out of the rate: it makes no steps."""
        self.flush()
        began = time.monotonic()
        try:
            yield
        finally:
            away = time.monotonic() - began
            self._marks = deque(((moment + away, step) for moment, step in self._marks), self._marks.maxlen)

    def add(self, step: int, losses: Losses, rate: float) -> None:
        """Keeps the numbers of finished step `step` (1 is the first)."""
        self._kept.append(_Kept(step, torch.stack([losses.total, losses.instance, losses.prior]), rate))
        if time.monotonic() - self._flushed >= self._every:
            self.flush()

    def flush(self) -> None:
        """Emits what was kept."""
        self._flushed = time.monotonic()
        if not self._kept:
            return
        self._marks.append((self._flushed, self._kept[-1].step))
        rows = torch.stack([kept.losses for kept in self._kept]).tolist()
        (since, first), (before, made), (now, last) = self._marks[0], self._marks[-2], self._marks[-1]
        speed = (last - first) / max(now - since, 1e-9)
        memory = self._memory.gigabytes()
        for total, instance, prior in rows:
            kept = self._kept[0]
            self._emit(
                "step",
                step=kept.step,
                of=self._steps,
                loss=total,
                instance_loss=instance,
                prior_loss=prior,
                lr=kept.rate,
                it_s=round(speed, 4),
                eta_s=round((self._steps - kept.step) / speed, 1) if speed > 0 else None,
                memory_gb=memory,
            )
            self._kept.popleft()  # only now: what a full disk refused is told again
        if last > made:
            self._watch((now - before) / (last - made))


class MemoryProbe:
    """Memory in use, in GiB: the card's peak as torch reserved it, else the process's resident memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = None
        if device.type != "cuda":
            import psutil

            self._process = psutil.Process()

    def gigabytes(self) -> float:
        if self._process is None:
            return round(torch.cuda.max_memory_reserved(self._device) / 2**30, 3)
        resident: int = self._process.memory_info().rss
        return round(resident / 2**30, 3)
