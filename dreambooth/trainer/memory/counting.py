"""How much memory a computation takes, counted on the meta device: tensors that have sizes and no memory.

What is counted is what torch's allocator would be asked for: each tensor, from the operation that makes it until nothing
holds it any more, in blocks of 512 bytes. What kernels take for themselves (workspaces), and what is lost between blocks,
is not seen here.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from dreambooth.trainer.memory.forms import quick_form

BLOCK = 512  # bytes; torch's CUDACachingAllocator rounds up to them


def _storages_are_noticed() -> bool:
    """Whether Python hears of a storage's end. Up to torch 2.1 it hears of the object's by which it was asked for."""
    tensor = torch.empty(1)
    return weakref.ref(tensor.untyped_storage())() is not None


STORAGES_ARE_NOTICED = _storages_are_noticed()
# Where nobody tells, so few storages are looked at after each operation, more of them after several: what ended meanwhile is
# counted too long, never too short
FEW = 200


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the tensors that are made while it is on. `live` and `peak` are bytes; `history` has `live` after each
    operation, and how much of it there is for each of `images`.

    `images` is how many are computed with, a prime that divides no other size: a tensor whose bytes it divides has a part
    for each of them, and one with other bytes is the same for any number. 0: nothing is told apart.
    """

    def __init__(self, images: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._images = images
        self._live = 0
        self._each = 0
        self.peak = 0
        self.history: list[tuple[int, int]] = []
        self._sizes: dict[int, tuple[int, int]] = {}
        self._watched: dict[int, StorageWeakRef] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and to keep the compiler out of each operation would import it first."""
        return False

    @property
    def live(self) -> int:
        """Bytes that are there now."""
        self._look()
        return self._live

    def hold(self, tensor: torch.Tensor) -> int:
        """Counts a tensor that was made before; returns its size in bytes."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        found = self._sizes.get(key)
        if found is not None:
            return found[0]
        size = storage.nbytes()
        each = size // self._images if self._images and size % self._images == 0 else 0
        if not each:  # how full the last block is of what grows with images depends on their number
            size = -(-size // BLOCK) * BLOCK
        self._sizes[key] = size, each
        if STORAGES_ARE_NOTICED:
            weakref.finalize(storage, self._drop, key)
        else:
            self._watched[key] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        self._live += size
        self._each += each
        self.peak = max(self.peak, self._live)
        return size

    def _drop(self, key: int) -> None:
        size, each = self._sizes.pop(key, (0, 0))
        self._live -= size
        self._each -= each

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = quick_form(func, args, kwargs or {})
        if made is None:
            made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.hold(made)
        else:
            for leaf in tree_flatten(made)[0]:
                if isinstance(leaf, torch.Tensor):
                    self.hold(leaf)
        if self._watched and len(self.history) % (1 + len(self._watched) // FEW) == 0:
            self._look()
        self.history.append((self._live, self._each))
        return made

    def note(self) -> None:
        """Puts what is there now into the history."""
        self._look()
        self.history.append((self._live, self._each))

    def _look(self) -> None:
        """Drops what is not there any more, where nobody says so."""
        for key in [key for key, storage in self._watched.items() if storage.expired()]:  # type: ignore[no-untyped-call]
            del self._watched[key]
            self._drop(key)


class _FusedAttention(torch.autograd.Function):
    """What a fused attention kernel keeps: its inputs, its output, and a float32 for each row of scores, never the scores
    themselves (Dao et al. 2022, arXiv 2205.14135)."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class Autocast:
    """What autocast to `narrow` does on a card, with functions of torch that are replaced for it (None: nothing).

    On the meta device torch's own does nothing. Weights that want gradients are cast once, and kept until `end`.
    """

    # https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast": those that the models use
    NARROW = (
        (functional, "linear"),
        (functional, "conv2d"),
        (torch, "matmul"),
        (torch, "bmm"),
        (torch, "baddbmm"),
        (torch, "einsum"),
    )
    WIDE = (
        (functional, "group_norm"),
        (functional, "layer_norm"),
        (functional, "softmax"),
        (functional, "mse_loss"),
    )

    def __init__(self, narrow: torch.dtype | None) -> None:
        self._narrow = narrow
        self._kept: dict[torch.Tensor, torch.Tensor] | None = {}

    def forget(self, weights: Iterable[torch.Tensor]) -> None:
        """Drops what was kept of these weights."""
        for weight in weights:
            if self._kept:
                self._kept.pop(weight, None)

    def end(self) -> None:
        """The end of autocast's region: what it kept is dropped. What is computed again later is cast by itself."""
        self._kept = None

    def patches(self) -> Iterator[Any]:
        """What takes the places of torch's functions."""
        yield mock.patch.object(functional, "scaled_dot_product_attention", self._attention)
        yield mock.patch.object(torch, "autocast", self._region)
        if not hasattr(torch, "meta"):  # checkpointing asks for a device's module; torch 2.1 has none for it
            yield mock.patch.object(torch, "meta", torch.cpu, create=True)
        if self._narrow is None:
            return
        for places, dtype in ((self.NARROW, self._narrow), (self.WIDE, torch.float32)):
            for module, name in places:
                yield mock.patch.object(module, name, self._casting(getattr(module, name), dtype))

    @contextlib.contextmanager
    def _region(self, device: str, *, enabled: bool = True) -> Iterator[None]:
        """A part of the models that leaves autocast, as adapters do; torch's own knows nothing of the meta device."""
        before = self._narrow
        self._narrow = before if enabled else None
        try:
            yield
        finally:
            self._narrow = before

    def _attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **options: Any
    ) -> Any:
        cast = (self._to(tensor, self._narrow) for tensor in (query, key, value))
        return _FusedAttention.apply(*cast)  # type: ignore[no-untyped-call]

    def _casting(self, function: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*args: Any, **options: Any) -> Any:
            if self._narrow is None:
                return function(*args, **options)
            return function(
                *(self._to(one, dtype) for one in args),
                **{name: self._to(one, dtype) for name, one in options.items()},
            )

        return wrapped

    def _to(self, value: Any, dtype: torch.dtype | None) -> Any:
        if dtype is None or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        if value.dtype == dtype:
            return value
        if self._kept is None or not (value.is_leaf and value.requires_grad and dtype == self._narrow):
            return value.to(dtype)
        if value not in self._kept:
            self._kept[value] = value.to(dtype)
        return self._kept[value]


@contextlib.contextmanager
def counting(narrow: torch.dtype | None = None, images: int = 0) -> Iterator[tuple[Count, Autocast]]:
    """Counts what is computed inside with so many images, on the meta device, as a card would compute it under autocast to
    `narrow`."""
    autocast = Autocast(narrow)
    with contextlib.ExitStack() as stack:
        for patch in autocast.patches():
            stack.enter_context(patch)
        yield stack.enter_context(Count(images)), autocast
