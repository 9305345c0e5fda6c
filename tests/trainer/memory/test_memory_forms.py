"""Forms that are told quickly are those that torch tells, on the meta device as well as on a real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._pytree import tree_flatten

from dreambooth.trainer.memory.counting import counting
from dreambooth.trainer.memory.forms import _FORMS, quick_form

Operation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
OPERATIONS: dict[str, Operation] = {
    "group norm": lambda x, w: functional.group_norm(x, 4, w, w),
    "layer norm": lambda x, w: functional.layer_norm(x, x.shape[-1:], None, None),
    "gate": lambda x, w: functional.silu(x) * x,
    "gelu": lambda x, w: functional.gelu(x) / 2 + x,
    "a bias for each channel": lambda x, w: x + w[:, None, None],
    "a smaller one first": lambda x, w: w[:, None, None] + x,
    "linear": lambda x, w: functional.linear(x.flatten(1), x.flatten(1), w[: len(x)].new_empty(len(x))),
    "no bias": lambda x, w: functional.linear(x.flatten(1), x.flatten(1)),
    "joined": lambda x, w: torch.cat([x, x[:, :3]], dim=1),
    "joined at the end": lambda x, w: torch.cat([x, x[..., :1]], dim=-1),
    "sum": lambda x, w: x.sum((0, -1)) + x.sum((0, 2), keepdim=True).flatten()[0],
    "turned": lambda x, w: (x.transpose(1, 2) * 2).contiguous() + x.transpose(1, 2).clone(),
    "channels last": lambda x, w: x.contiguous(memory_format=torch.channels_last) * 2,
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_forms_that_are_told_quickly_are_those_that_torch_tells(operation: Operation) -> None:
    found = []
    for device in ("meta", "cpu"):
        x = torch.zeros(4, 8, 6, 6, device=device, requires_grad=True)
        weight = torch.ones(8, device=device, requires_grad=True)
        if device == "meta":
            with counting():
                made = operation(x, weight)
                made.sum().backward()
        else:
            made = operation(x, weight)
            made.sum().backward()
        gradients = [None if one.grad is None else one.grad.shape for one in (x, weight)]
        found.append((made.shape, made.stride(), made.dtype, made.untyped_storage().nbytes(), *gradients))
    assert found[0] == found[1]


_aten = torch.ops.aten


def _x(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (_aten.add.Tensor, (_x(2, 3), _x(2, 3, dtype=torch.bfloat16)), {}),
    (_aten.add.Tensor, (_x(3), _x(2, 3)), {}),
    (_aten.add.Tensor, (_x(2, 3), _x(3)), {}),
    (_aten.add.Tensor, (_x(2, 3, dtype=torch.int64), 1.5), {}),
    (_aten.div.Tensor, (_x(4, 3)[::2], _x(2, 3)), {}),
    (_aten.mul.out, (_x(2, 3), _x(2, 1)), {"out": _x(2, 3, dtype=torch.bfloat16)}),
    (_aten.mul.out, (_x(2, 1), _x(2, 3)), {"out": _x(2, 3)}),
    (_aten.sum.dim_IntList, (_x(2, 3, 4), [-1]), {}),
    (_aten.sum.dim_IntList, (_x(2, 3, 4), [0, 1], True), {}),
    (_aten.sum.dim_IntList, (_x(2, 3, dtype=torch.int32), [0]), {}),
    (_aten.cat.default, ([_x(2, 3), _x(0), _x(2, 1)], 1), {}),
    (_aten.cat.default, ([_x(2, 3), _x(2, 3, dtype=torch.bfloat16)],), {}),
    (_aten.clone.default, (_x(3, 2).t(),), {"memory_format": torch.contiguous_format}),
    (_aten.clone.default, (_x(3, 2).t(),), {}),
    (_aten.clone.default, (_x(1, 2, 3, 3),), {"memory_format": torch.channels_last}),
    (_aten.add.Tensor, (_x(2, 3), _x(2, 3)), {"alpha": 0.5}),
    (_aten.empty_like.default, (_x(2, 3),), {"dtype": torch.bfloat16, "pin_memory": False}),
    (_aten.empty_like.default, (_x(2, 3).t(),), {"pin_memory": False}),
    (_aten.empty_like.default, (_x(2, 3, 4, 4),), {"memory_format": torch.channels_last}),
    (_aten.clamp.default, (_x(2, 3), 1e-6), {}),
    (_aten.clamp.default, (_x(2, 3), None, 1.0), {}),
    (_aten.sqrt.default, (_x(2, 3),), {}),
    (_aten.pow.Tensor_Scalar, (_x(2, 3), 2), {}),
    (_aten.pow.Tensor_Scalar, (_x(2, 3, dtype=torch.int64), 2), {}),
    (_aten.mm.default, (_x(2, 3).t(), _x(2, 5)), {}),
]  # fmt: skip


@pytest.mark.parametrize(("func", "args", "options"), CALLS)
def test_what_is_told_is_torchs_own_answer_or_torch_is_asked(
    func: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    assert func in _FORMS
    own = quick_form(func, args, options)
    torchs = func(*args, **options)
    for quick, slow in zip(tree_flatten(own)[0], tree_flatten(torchs)[0], strict=True):
        if quick is not None:
            assert (quick.shape, quick.stride(), quick.dtype) == (slow.shape, slow.stride(), slow.dtype)
