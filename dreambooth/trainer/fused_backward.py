"""The optimizer's step inside the backward pass: each tensor is stepped as soon as its gradient is there, and the
gradient is dropped, so that gradients take the memory of one tensor instead of all (LOMO, arXiv 2306.09782).

The norm of all gradients together is not known then: they are clipped tensor by tensor.
"""

from __future__ import annotations

import functools

import torch

from dreambooth.trainer.tensor_steps import TensorSteps


class FusedBackward:
    """Has every backward pass step the parameters that it reaches.

    `failed` (a scalar on the device) becomes 1 once a gradient was not finite; it never reaches the weights. `begun`:
    whether the backward pass at hand has reached a parameter.
    """

    def __init__(self, steps: TensorSteps, max_norm: float) -> None:
        self._steps = steps
        self._max_norm = max_norm
        self.begun = False
        self.failed = torch.zeros((), device=steps.parameters[0][1].device)
        for group, parameter in steps.parameters:
            parameter.register_post_accumulate_grad_hook(functools.partial(self._step, group))

    def begin(self) -> None:
        """Before a backward pass."""
        self.begun = False

    @torch.no_grad()
    def _step(self, group: int, parameter: torch.Tensor) -> None:
        self.begun = True
        gradient = parameter.grad
        assert gradient is not None
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        broken = ~torch.isfinite(norm)
        self.failed = torch.maximum(self.failed, broken.float())
        if self._max_norm > 0:
            gradient.div_((norm / self._max_norm).clamp(min=1.0))
        gradient.masked_fill_(broken, 0.0)
        self._steps.step(group, parameter, gradient)
