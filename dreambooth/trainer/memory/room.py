"""How much memory there is for a run: of the card, or of the computer where a processor trains."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dreambooth.environment import RETURNED_VARIABLE

GB = 2**30  # as cards are sold and nvidia-smi counts
# What a context leaves to a process of a card's free memory: CUDA's libraries load more kernels as they are used
_CARD_RESERVE = 150 * 2**20
# What other programs may want meanwhile, and what lies between the blocks of an allocator
_MARGINS = {"cuda": 0.04, "mps": 0.10, "cpu": 0.10}
# Windows keeps part of a card for the desktop, and spills into the computer's memory before a card is full
_WINDOWS_MARGIN = 0.04


@dataclass(frozen=True)
class Room:
    """Memory in bytes. `free` is what a run could have, `limit` what the user allows (0: all of it); `of` names it."""

    of: str
    device: str
    total: int
    free: int
    limit: int = 0
    windows: bool = False

    @property
    def allowed(self) -> int:
        """What a run may take in all."""
        return min(self.free, self.limit) if self.limit else self.free

    @property
    def usable(self) -> int:
        """What a plan may count on: less than all, since no plan knows everything."""
        reserve, share = self._kept
        return max(0, int(self.allowed * share) - reserve)

    def limit_for(self, size: int) -> float:
        """The least limit in GB, in tenths, in which so many bytes may be counted on."""
        reserve, share = self._kept
        return math.ceil((size + reserve) / share / GB * 10) / 10

    @property
    def _kept(self) -> tuple[int, float]:
        """Bytes that are never counted on, and the share of all others that is."""
        card = self.device == "cuda"
        margin = _MARGINS[self.device] + (_WINDOWS_MARGIN if self.windows and card else 0)
        return _CARD_RESERVE if card else 0, 1 - margin


def room_on(
    device: torch.device, limit_gb: float, processes: int = 1, environ: Mapping[str, str] | None = None
) -> Room:
    """The memory of a device as it is now, with what will be given back. Processes without a card share one memory."""
    told = (os.environ if environ is None else environ).get(RETURNED_VARIABLE, "")
    returned = int(told) if told.isdigit() else 0
    limit = round(limit_gb * GB)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(
            device
        )  # of a run that plans again: its own, which it has no use for
        free = min(total, free + own + returned)
        return Room("the card", "cuda", total, free, limit, windows=os.name == "nt")
    import psutil

    memory = psutil.virtual_memory()
    if device.type == "mps":
        total = int(torch.mps.recommended_max_memory())
        return Room("the card", "mps", total, min(total, memory.available), limit)
    return Room("this computer's memory", "cpu", memory.total, memory.available // processes, limit)


def keep_to(device: torch.device, limit_gb: float) -> bool:
    """Has torch refuse memory beyond a limit as if the card were that small; False where it cannot."""
    if not limit_gb or device.type != "cuda":
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gb * GB / total), device)
    return True
