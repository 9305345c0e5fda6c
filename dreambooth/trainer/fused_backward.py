"""The optimizer's step inside the backward pass: each tensor is stepped as soon as its gradient is there, and the
gradient is dropped, so that gradients take the memory of one tensor instead of all (LOMO, arXiv 2306.09782).

The norm of all gradients together is not known then: they are clipped tensor by tensor.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from dreambooth.trainer.optimizer_class import arguments_of


class FusedBackward:
    """Steps `optimizer` from within every backward pass of its parameters.

    `failed` (a scalar on the device) becomes 1 once a gradient was not finite; it never reaches the weights.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        self._optimizer = optimizer
        self._max_norm = max_norm
        self._arguments = arguments_of(type(optimizer)) | {"params", "name"}
        self._memories: dict[int, dict[str, Any]] = {}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.failed = torch.zeros((), device=parameters[0].device)
        for index, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(functools.partial(self._step, index))

    @torch.no_grad()
    def _step(self, index: int, parameter: torch.Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        norm = torch.linalg.vector_norm(gradient)
        broken = ~torch.isfinite(norm)
        self.failed = torch.maximum(self.failed, broken.float())
        if self._max_norm > 0:
            gradient.div_((norm / self._max_norm).clamp(min=1.0))
        gradient.masked_fill_(broken, 0.0)
        groups = self._optimizer.param_groups
        alone = {**groups[index], "params": [parameter]}
        self._optimizer.param_groups = [alone]
        try:
            self._optimizer.step()
        finally:
            self._optimizer.param_groups = groups
        parameter.grad = None
        self._memories[index] = {key: value for key, value in alone.items() if key not in self._arguments}

    def finish(self) -> None:
        """After a backward pass: what a group remembers (a count of steps) moves on once, not once for each tensor."""
        for index, memory in self._memories.items():
            self._optimizer.param_groups[index].update(memory)
        self._memories.clear()
