"""Memory that a card's driver moves into the computer's without a word: noticed by what it does to the pace, and named.

On Windows NVIDIA's driver gives more memory than the card has ("CUDA - Sysmem Fallback Policy", since 536.40), and steps
that spill take several times as long. Nothing says so: torch's allocator sees no error, and a run never steps down.
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass, field

import torch

from dreambooth.shared.events import Emit

# So little is free on a full card: the driver begins to move memory away before the last byte is given
SMALL, SMALL_SHARE = 256 * 2**20, 0.02
SLOW = (
    3.0  # times the usual pace: what spills takes 3 to 20 times as long, a busier card or another bucket less
)
PATIENCE = 3  # readings in a row: a virus scanner may make one slow
REMEDY = (
    "use less (gradient_checkpointing: yes, a smaller forward_batch_size, train_text_encoder: no), close what else uses "
    "the card, or have the run step down by itself: NVIDIA Control Panel, Manage 3D settings, CUDA - Sysmem Fallback "
    "Policy, Prefer No Sysmem Fallback"
)


@dataclass(frozen=True)
class Reading:
    """A card at one moment: seconds of a step; bytes that are free on it, that it has, that torch reserved here."""

    seconds: float
    free: int
    total: int
    reserved: int

    @property
    def is_full(self) -> bool:
        """Whether this process and the others have all that the card has, or nearly."""
        return self.free <= max(SMALL, SMALL_SHARE * self.total) or self.is_over

    @property
    def is_over(self) -> bool:
        """Whether torch has more of the card's memory than the card."""
        return self.reserved > self.total


@dataclass
class Pace:
    """Decides from a run's readings whether its memory spills. `usual`: the seconds of a step that are expected, or that
    steps took while the card was not full; None while nobody knows."""

    usual: float | None = None
    _suspicious: int = field(default=0, init=False)

    def spills(self, reading: Reading) -> bool:
        """Whether memory spills, now that this reading is the newest."""
        if not reading.is_full:
            self.usual = reading.seconds if self.usual is None else min(self.usual, reading.seconds)
        slow = self.usual is not None and reading.seconds >= SLOW * self.usual
        self._suspicious = self._suspicious + 1 if reading.is_over or (reading.is_full and slow) else 0
        return self._suspicious >= PATIENCE


def can_spill(device: torch.device, system: str = sys.platform, release: str = "") -> bool:
    """Whether a device's driver may move its memory away: NVIDIA's on Windows, and in Linux within Windows (WSL)."""
    release = release or platform.release()
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return is_nvidia and (system == "win32" or "microsoft" in release.lower())


class SpillWatch:
    """Reads the card now and then while steps are made, and warns once. `usual`: seconds of a step, as expected."""

    def __init__(self, device: torch.device, emit: Emit, usual: float | None = None) -> None:
        self._device = device
        self._emit = emit
        self._pace = Pace(usual)
        self._watching = can_spill(device)

    def __call__(self, seconds: float) -> None:
        """Steps take so many seconds now. Asks the card without making it wait."""
        if not self._watching:
            return
        free, total = torch.cuda.mem_get_info(self._device)
        reading = Reading(seconds, free, total, torch.cuda.memory_reserved(self._device))
        if self._pace.spills(reading):
            self._watching = False
            self._emit("warning", text=told(reading, self._pace.usual), memory={"spills": True})


def told(reading: Reading, usual: float | None) -> str:
    """What a user reads of it."""
    slow = f"a step takes {reading.seconds:.2g} s"
    if usual is not None and reading.seconds >= SLOW * usual:
        slow += f" instead of {usual:.2g} s"
    return (
        f"the card's memory ({reading.total / 2**30:.1f} GB) is full, and the driver moves a part of it into the "
        f"computer's: {slow}. What to do: {REMEDY}"
    )
