"""An exponential moving average of weights, kept beside them in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch


class Average(Protocol):
    """An average of the weights that is what a result holds; `averages` are in the order of the parameters."""

    updates: int

    @property
    def averages(self) -> list[torch.Tensor]: ...
    def update(self, parameters: Sequence[torch.Tensor]) -> None: ...


class EMA:
    """avg ← d·avg + (1−d)·weight, with d = min(decay, (1 + n)/(10 + n)) at the n-th update.

    The warm-up is that of TensorFlow's ExponentialMovingAverage (`num_updates`): a short run's average is then
    not mostly the untrained weights.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.averages = [parameter.detach().float().clone() for parameter in parameters]

    def decay_now(self) -> float:
        """The decay of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, parameters: Sequence[torch.Tensor]) -> None:
        """Moves the averages towards `parameters`, which are those of the constructor in the same order."""
        current = [parameter.detach().float() for parameter in parameters]
        torch._foreach_lerp_(self.averages, current, 1.0 - self.decay_now())
        self.updates += 1


class OptimizersAverage:
    """The average that a schedule-free optimizer keeps (arXiv 2405.15682): its `eval()` turns the weights that it trains
    into it, and `train()` turns them back, to rounding.

    So that what is trained keeps its bits however often it is looked at, the average is made of copies, which are
    there only while they are used: when pictures are made or files written, and then no gradients are.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], optimizer: Any) -> None:
        self.updates = 0
        self._parameters = list(parameters)
        self._optimizer = optimizer

    @property
    def averages(self) -> list[torch.Tensor]:
        """New tensors at each call."""
        trained = [parameter.data for parameter in self._parameters]
        groups = [dict(group) for group in self._optimizer.param_groups]
        try:
            for parameter in self._parameters:
                parameter.data = parameter.data.clone()
            self._optimizer.eval()
            return [parameter.data for parameter in self._parameters]
        finally:
            for parameter, data in zip(self._parameters, trained, strict=True):
                parameter.data = data
            for group, before in zip(self._optimizer.param_groups, groups, strict=True):
                group.update(before)  # the mode

    def update(self, parameters: Sequence[torch.Tensor]) -> None:
        """Nothing: the optimizer's own steps have done it."""
