"""An exponential moving average of weights, kept beside them in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch


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
