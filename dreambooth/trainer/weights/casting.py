"""Numbers brought into the precision in which they are written: what has no room in it is noticed, and not written as
infinite."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dreambooth.shared.errors import InputError

_INFINITY = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}  # its bits
_PIECE = 1 << 18  # numbers, so that what is looked at stays in the processor's cache


class Overflow(InputError):
    """Weights that are written in a precision that has no room for them."""

    def __init__(self, name: str, dtype: torch.dtype, *, where: str = "") -> None:
        narrow = str(dtype).removeprefix("torch.")
        super().__init__(
            f"{name} holds numbers that are too large for {narrow}",
            where=where,
            remedy="write it in another precision (--dtype float32 or bfloat16)",
        )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number is NaN or infinite. Takes less than copying it would; `isfinite` takes fifty times that."""
    if not tensor.numel():
        return True
    infinity = _INFINITY.get(tensor.dtype)
    if infinity is None:
        bounds = torch.aminmax(tensor.float() if tensor.dtype.itemsize == 1 else tensor)
        return all(bool(torch.isfinite(bound)) for bound in bounds)
    # without their sign, infinity and NaN are the largest as whole numbers too; torch 2.1 knows no bounds of float16
    bits = tensor.contiguous().view(torch.int16).reshape(-1)
    return all(int((piece & 0x7FFF).max()) < infinity for piece in torch.split(bits, _PIECE))


def narrowed(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor on the CPU in the dtype in which it is written. Raises Overflow."""
    made = tensor.detach().to("cpu", dtype)
    check_fits(name, made, lambda: tensor.detach().cpu())
    return made


def check_fits(name: str, made: torch.Tensor, before: Callable[[], torch.Tensor], *, where: str = "") -> None:
    """Raises Overflow if a number is infinite in `made` that was none in `before`, which is asked for only if need be."""
    if not _is_narrow(made.dtype) or is_finite(made):
        return
    if bool((torch.isfinite(before()) & ~torch.isfinite(made)).any()):
        raise Overflow(name, made.dtype, where=where)


def _is_narrow(dtype: torch.dtype) -> bool:
    """Whether what is computed, in float32, may have no room in a dtype."""
    return dtype.is_floating_point and torch.finfo(dtype).max < torch.finfo(torch.float32).max
