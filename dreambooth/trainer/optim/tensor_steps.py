"""One optimizer's step, tensor by tensor: for steps within the backward pass, and for weights that are not float32."""

from __future__ import annotations

from typing import Any

import torch

from dreambooth.trainer.optim.optimizer_class import arguments_of
from dreambooth.trainer.optim.rounding import StochasticRounding


class TensorSteps:
    """Steps an optimizer's parameters one at a time, each in float32; its state is as if they were stepped together.

    `rounding`: what bfloat16 weights are rounded with, None for float32 ones.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rounding: StochasticRounding | None = None) -> None:
        self._optimizer = optimizer
        self._rounding = rounding
        self._arguments = arguments_of(type(optimizer)) | {"params", "name"}
        self._memories: dict[int, dict[str, Any]] = {}
        groups = [group["params"] for group in optimizer.param_groups]
        self.parameters = [
            (index, parameter) for index, parameters in enumerate(groups) for parameter in parameters
        ]
        self._number = {parameter: number for number, (_, parameter) in enumerate(self.parameters)}

    @torch.no_grad()
    def step(self, group: int, parameter: torch.Tensor, gradient: torch.Tensor) -> None:
        """Steps one parameter of the group number `group` with a gradient; nothing is left in `.grad`."""
        narrow = parameter.data
        if self._rounding is not None:
            parameter.grad = None
            parameter.data = narrow.float()
        parameter.grad = gradient.to(parameter.dtype)
        groups = self._optimizer.param_groups
        alone = {**groups[group], "params": [parameter]}
        self._optimizer.param_groups = [alone]
        try:
            self._optimizer.step()
        finally:
            self._optimizer.param_groups = groups
            parameter.grad = None
            wide, parameter.data = parameter.data, narrow
        if self._rounding is not None:
            self._rounding.write(narrow, wide, self._number[parameter])
        self._memories[group] = {key: value for key, value in alone.items() if key not in self._arguments}

    def finish(self) -> None:
        """After a step's last tensor: what a group remembers (a count of steps) moves on once, not once for each."""
        for group, memory in self._memories.items():
            self._optimizer.param_groups[group].update(memory)
        self._memories.clear()
