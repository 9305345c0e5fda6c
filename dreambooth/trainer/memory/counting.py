"""How much memory a computation takes, counted on the meta device: tensors that have sizes and no memory.

What is counted is what torch's allocator would be asked for: each tensor, from the operation that makes it until nothing
holds it any more, in blocks of 512 bytes. What kernels take for themselves (workspaces), and what is lost between blocks,
is not seen here.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

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
    operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live = 0
        self.peak = 0
        self.history: list[int] = []
        self._sizes: dict[int, int] = {}
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
        if key not in self._sizes:
            self._sizes[key] = -(-storage.nbytes() // BLOCK) * BLOCK
            if STORAGES_ARE_NOTICED:
                weakref.finalize(storage, self._drop, key)
            else:
                self._watched[key] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            self._live += self._sizes[key]
            self.peak = max(self.peak, self._live)
        return self._sizes[key]

    def _drop(self, key: int) -> None:
        self._live -= self._sizes.pop(key, 0)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = None if kwargs else _quickly(func, args)
        if made is None:
            made = func(*args, **(kwargs or {}))
        for leaf in tree_flatten(made)[0]:
            if isinstance(leaf, torch.Tensor):
                self.hold(leaf)
        if self._watched and len(self.history) % (1 + len(self._watched) // FEW) == 0:
            self._look()
        self.history.append(self._live)
        return made

    def _look(self) -> None:
        """Drops what is not there any more, where nobody says so."""
        for key in [key for key, storage in self._watched.items() if storage.expired()]:  # type: ignore[no-untyped-call]
            del self._watched[key]
            self._drop(key)


# ---- results whose form is known: torch's own ways to tell it on the meta device take most of the time --------------------


def _quickly(func: Any, args: tuple[Any, ...]) -> Any:
    """What an operation gives, None where torch has to be asked."""
    known = _FORMS.get(func)
    return known(*args) if known is not None else None


def _group_norm(
    x: torch.Tensor, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int, eps: float
) -> Any:
    rows = x.new_empty((n, groups))
    return x.new_empty(x.shape), rows, torch.empty_like(rows)


def _group_norm_backward(gradient: torch.Tensor, x: torch.Tensor, *rest: Any) -> Any:
    wanted = rest[-1]
    channels = x.new_empty((x.shape[1],))
    return (
        x.new_empty(x.shape) if wanted[0] else None,
        channels if wanted[1] else None,
        torch.empty_like(channels) if wanted[2] else None,
    )


def _layer_norm(x: torch.Tensor, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
    rows = x.new_empty((*x.shape[: x.dim() - len(shape)], *[1] * len(shape)))
    return x.new_empty(x.shape), rows, torch.empty_like(rows)


def _layer_norm_backward(gradient: torch.Tensor, x: torch.Tensor, shape: Sequence[int], *rest: Any) -> Any:
    wanted = rest[-1]
    return (
        x.new_empty(x.shape) if wanted[0] else None,
        x.new_empty(tuple(shape)) if wanted[1] else None,
        x.new_empty(tuple(shape)) if wanted[2] else None,
    )


def _addmm(bias: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return one.new_empty((one.shape[0], other.shape[1]))


def _like_first(x: torch.Tensor, *rest: Any) -> torch.Tensor | None:
    """For an operation on each number, of tensors of one form."""
    alike = all(
        other.shape == x.shape and other.dtype == x.dtype for other in rest if isinstance(other, torch.Tensor)
    )
    return torch.empty_like(x) if alike and x.is_floating_point() else None


_aten = torch.ops.aten
_FORMS: Mapping[Any, Callable[..., Any]] = {
    _aten.native_group_norm.default: _group_norm,
    _aten.native_group_norm_backward.default: _group_norm_backward,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.native_layer_norm_backward.default: _layer_norm_backward,
    _aten.addmm.default: _addmm,
    **dict.fromkeys(
        (
            _aten.add.Tensor, _aten.mul.Tensor, _aten.div.Tensor, _aten.silu.default, _aten.silu_backward.default,
            _aten.gelu.default, _aten.gelu_backward.default, _aten.sigmoid.default, _aten.sigmoid_backward.default,
        ),
        _like_first,
    ),
}  # fmt: skip


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
def counting(narrow: torch.dtype | None = None) -> Iterator[tuple[Count, Autocast]]:
    """Counts what is computed inside, on the meta device, as a card would compute it under autocast to `narrow`."""
    autocast = Autocast(narrow)
    with contextlib.ExitStack() as stack:
        for patch in autocast.patches():
            stack.enter_context(patch)
        yield stack.enter_context(Count()), autocast
