"""The optimizer's step inside the backward pass: each tensor is stepped as soon as its gradient is there, and the
gradient is dropped, so that gradients take the memory of one tensor instead of all (LOMO, arXiv 2306.09782).

The norm of all gradients together, by which they are clipped elsewhere, is known when the last is there. Here each tensor
has a bound of its own, its share of the whole bound: the part of the squared norm that its gradient had in the steps
before. As the shares add up to one, what all tensors are stepped with is never longer than the whole bound. With the
whole bound for every tensor hardly anything would be clipped, and a first step of many times the usual length keeps
AdamW's steps small for hundreds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from dreambooth.trainer.optim.tensor_steps import TensorSteps

_NEWEST = 0.1  # the weight of the newest step in the shares
_LEAST = 1e-8  # the share of a tensor whose gradients were all zero: they may not stay so


class FusedBackward:
    """Has every backward pass step the parameters that it reaches, with gradients whose norm together is at most
    `max_norm` (0: as they come).

    `failed` (a scalar on the device) becomes 1 once a gradient or a loss was not finite; from then on no gradient
    reaches the weights. `begun`: whether the backward pass at hand has reached a parameter.
    """

    def __init__(self, steps: TensorSteps, max_norm: float) -> None:
        self._steps = steps
        self._max_norm = max_norm
        self._step = 0
        count, device = len(steps.parameters), steps.parameters[0][1].device
        # this pass's norms before they are clipped, and a running mean of their squares' shares in the sum
        self._norms = torch.zeros(count, device=device)
        self._shares = torch.full((count,), 1 / count, device=device)
        self._bounds = self._bounds_now()
        self.begun = False
        self.failed = torch.zeros((), device=device)
        for number, (group, parameter) in enumerate(steps.parameters):
            parameter.register_post_accumulate_grad_hook(functools.partial(self._reached, number, group))

    def begin(self, step: int) -> None:
        """Before the backward pass of a step."""
        self._step = step
        self._norms.zero_()
        self.begun = False

    @torch.no_grad()
    def _reached(self, number: int, group: int, parameter: torch.Tensor) -> None:
        self.begun = True
        gradient = parameter.grad
        assert gradient is not None
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        self.failed = torch.maximum(self.failed, (~torch.isfinite(norm)).float())
        if self._max_norm > 0:
            self._norms[number] = norm
            gradient.div_((norm / self._bounds[number]).clamp_(min=1.0))
        gradient.masked_fill_(self.failed > 0, 0.0)
        self._steps.step(group, parameter, gradient)

    @torch.no_grad()
    def finish(self, loss: torch.Tensor) -> None:
        """After the backward pass of a step, whose loss it is."""
        self._steps.finish()
        self.failed = torch.maximum(self.failed, (~torch.isfinite(loss)).float())
        if self._max_norm > 0:
            squares = self._norms.square()
            whole = squares.sum()
            newest = torch.where(torch.isfinite(whole) & (whole > 0), squares / whole, self._shares)
            # the mean of all steps at first; before the first one the shares are equal, which counts as a step
            self._shares.lerp_(newest, max(_NEWEST, 1 / (self._step + 2)))
            self._bounds = self._bounds_now()

    def _bounds_now(self) -> torch.Tensor:
        return self._shares.clamp(min=_LEAST).sqrt_().mul_(self._max_norm)

    def state_dict(self) -> dict[str, Any]:
        """What the next step's bounds come from, to be saved with the weights; {} without clipping."""
        return {"shares": self._shares} if self._max_norm > 0 else {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Goes on with what was saved; {}, of a state that has none, changes nothing. Raises ValueError if it is of other
        tensors."""
        if not saved or not self._max_norm:
            return
        if saved["shares"].shape != self._shares.shape:
            raise ValueError(
                f"it has gradients of {len(saved['shares'])} tensors, not of {len(self._shares)}"
            )
        self._shares.copy_(saved["shares"])
        self._bounds = self._bounds_now()
