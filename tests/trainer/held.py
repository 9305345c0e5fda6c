"""Counts the memory that tensors take while a block of code runs, on any device, also on meta, where none is taken."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class Held(TorchDispatchMode):
    """`now` and `peak`: bytes of storages that were made in the block and live."""

    def __init__(self) -> None:
        if not _can_be_watched():
            pytest.skip("this torch makes a storage's Python object anew each time: its end cannot be seen")
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outer = {_id(leaf) for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_flatten(result)[0]:
            if isinstance(leaf, torch.Tensor) and _id(leaf) not in outer:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.now -= size


def _id(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _can_be_watched() -> bool:
    tensor = torch.empty(1)
    return weakref.ref(tensor.untyped_storage())() is not None
