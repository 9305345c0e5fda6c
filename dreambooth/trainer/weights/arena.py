"""Memory for many tensors at once.

Filling two gigabytes of fresh memory costs more in page faults than in copying. Where the system can (Linux),
all tensors of a module lie in one mapping of huge pages; elsewhere each has memory of its own.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import torch

from dreambooth.trainer.weights.base import nbytes_of

ALIGNMENT = 64
SMALLEST = 1 << 24


class Arena:
    """Gives out uninitialised tensors from one piece of memory, which lives as long as any of them."""

    def __init__(self, wanted: Iterable[tuple[torch.dtype, tuple[int, ...]]]) -> None:
        size = sum(_aligned(nbytes_of(dtype, shape)) for dtype, shape in wanted)
        self._memory = _huge_pages(size) if size >= SMALLEST else None
        self._used = 0

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor with a storage of its own size, so that it can be saved, moved and freed like any other."""
        size = nbytes_of(dtype, shape)
        if self._memory is None or size == 0 or self._used + size > len(self._memory):
            return torch.empty(shape, dtype=dtype)
        flat = torch.frombuffer(self._memory, dtype=dtype, count=size // dtype.itemsize, offset=self._used)
        self._used += _aligned(size)
        return flat.reshape(shape)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _huge_pages(size: int) -> mmap.mmap | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
