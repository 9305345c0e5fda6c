"""What some operations of torch give on the meta device, told from the forms of what they are given.

torch's own ways to tell it are written for all cases, many of them in Python; for the few operations that a model consists
of they take most of the time of a count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def quick_form(func: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """What an operation gives, None where torch has to be asked."""
    known = _FORMS.get(func)
    if known is None or not options.keys() <= _OPTIONS.get(func, _NONE):
        return None
    return known(*args, **options)


def _empty(like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _same(x: torch.Tensor) -> torch.Tensor:
    return _empty(x, x.shape) if x.is_contiguous() else torch.empty_like(x)


def _group_norm(
    x: torch.Tensor, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int, eps: float
) -> Any:
    return _empty(x, x.shape), _empty(x, (n, groups)), _empty(x, (n, groups))


def _group_norm_backward(gradient: torch.Tensor, x: torch.Tensor, *rest: Any) -> Any:
    wanted, channels = rest[-1], x.shape[1:2]
    return (
        _empty(x, x.shape) if wanted[0] else None,
        _empty(x, channels) if wanted[1] else None,
        _empty(x, channels) if wanted[2] else None,
    )


def _layer_norm(x: torch.Tensor, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
    rows = (*x.shape[: x.dim() - len(shape)], *[1] * len(shape))
    return _empty(x, x.shape), _empty(x, rows), _empty(x, rows)


def _layer_norm_backward(gradient: torch.Tensor, x: torch.Tensor, shape: Sequence[int], *rest: Any) -> Any:
    wanted = rest[-1]
    return (
        _empty(x, x.shape) if wanted[0] else None,
        _empty(x, shape) if wanted[1] else None,
        _empty(x, shape) if wanted[2] else None,
    )


def _addmm(bias: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return _mm(one, other)


def _mm(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return _empty(one, (one.shape[0], other.shape[1]))


def _as_first(x: torch.Tensor, *rest: Any) -> torch.Tensor | None:
    """For an operation on each number whose result has the first tensor's form."""
    if not x.is_floating_point():
        return None
    for other in rest:
        if isinstance(other, torch.Tensor) and not (other.dtype == x.dtype and _goes_onto(other, x)):
            return None
    return _same(x)


def _added(x: torch.Tensor, other: Any, *, alpha: float = 1) -> torch.Tensor | None:
    return _as_first(x, other)


def _empty_like(x: torch.Tensor, *, dtype: torch.dtype | None = None, pin_memory: bool = False) -> Any:
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device) if x.is_contiguous() else None


def _goes_onto(other: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether a tensor's numbers are repeated, if at all, to be as many as another's."""
    own, whole = other.shape, x.shape
    if own == whole:
        return True
    last = whole[len(whole) - len(own) :]
    return len(own) <= len(whole) and all(few in (1, many) for few, many in zip(own, last, strict=True))


def _into(x: torch.Tensor, other: Any, *, out: torch.Tensor) -> torch.Tensor | None:
    return out if out.shape == x.shape and _goes_onto(other, x) else None


def _sum(x: torch.Tensor, places: Sequence[int] | None, keep: bool = False) -> torch.Tensor | None:
    if not places or not x.is_floating_point():
        return None
    gone = {place % x.dim() for place in places}
    if keep:
        return _empty(x, [1 if place in gone else size for place, size in enumerate(x.shape)])
    return _empty(x, [size for place, size in enumerate(x.shape) if place not in gone])


def _cat(tensors: Sequence[torch.Tensor], place: int = 0) -> torch.Tensor | None:
    first = tensors[0]
    alike = all(
        other.dim() == first.dim() and other.dtype == first.dtype and other.is_contiguous()
        for other in tensors
    )
    if not alike:
        return None
    shape = list(first.shape)
    shape[place] = sum(tensor.shape[place] for tensor in tensors)
    return _empty(first, shape)


def _clone(x: torch.Tensor, *, memory_format: torch.memory_format = torch.preserve_format) -> Any:
    """Also of what lies in another order, if it is to be put in its own."""
    if memory_format is torch.contiguous_format:
        return _empty(x, x.shape)
    return _same(x) if memory_format is torch.preserve_format else None


_aten = torch.ops.aten
_FORMS: Mapping[Any, Callable[..., Any]] = {
    _aten.native_group_norm.default: _group_norm,
    _aten.native_group_norm_backward.default: _group_norm_backward,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.native_layer_norm_backward.default: _layer_norm_backward,
    _aten.addmm.default: _addmm,
    _aten.mm.default: _mm,
    _aten.sum.dim_IntList: _sum,
    _aten.cat.default: _cat,
    _aten.clone.default: _clone,
    _aten.mul.out: _into,
    _aten.add.Tensor: _added,
    _aten.empty_like.default: _empty_like,
    **dict.fromkeys(
        (
            _aten.mul.Tensor, _aten.div.Tensor, _aten.silu.default, _aten.silu_backward.default,
            _aten.gelu.default, _aten.gelu_backward.default, _aten.sigmoid.default, _aten.sigmoid_backward.default,
            _aten.sqrt.default, _aten.pow.Tensor_Scalar, _aten.clamp.default,
        ),
        _as_first,
    ),
}  # fmt: skip
_NONE: frozenset[str] = frozenset()
# What may be said beside an operation's arguments; with anything else torch is asked
_OPTIONS = {
    _aten.clone.default: {"memory_format"},
    _aten.mul.out: {"out"},
    _aten.add.Tensor: {"alpha"},
    _aten.empty_like.default: {"dtype", "pin_memory"},
}
