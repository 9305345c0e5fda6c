"""AdamW's fused kernel, called with lists that are made once.

torch's own `AdamW(fused=True).step()` makes its lists of tensors anew at every step, parameter by parameter, and
moves each parameter's counter by itself: with hundreds of parameters that takes longer than a small model's update.
The state stays the optimizer's own, in its own form, so that it is saved and loaded as ever.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class _Lists:
    """One group's tensors, in one order. `counters` are views of `steps`, so that one operation moves them all."""

    state: Mapping[Any, Any]  # the optimizer's, when these were made: loading replaces it
    parameters: list[torch.Tensor]
    means: list[torch.Tensor]
    squares: list[torch.Tensor]
    largest: list[torch.Tensor]
    steps: torch.Tensor
    counters: list[torch.Tensor]


class FusedAdamW:
    """Steps a `torch.optim.AdamW` whose parameters are float32 and on one device."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._lists: dict[int, _Lists] = {}

    @staticmethod
    def serves(optimizer: torch.optim.Optimizer) -> bool:
        """Whether this is AdamW with its fused kernel asked for."""
        is_fused = all(group.get("fused") for group in optimizer.param_groups)
        return type(optimizer) is torch.optim.AdamW and is_fused

    @torch.no_grad()
    def step(self, *, divisor: torch.Tensor | None, failed: torch.Tensor) -> None:
        """One step with gradients divided by `divisor`; nothing at all changes where `failed` is 1 (else 0)."""
        for index, group in enumerate(self._optimizer.param_groups):
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            lists = self._lists.get(index)
            if lists is None or not self._still_holds(lists, parameters):
                lists = self._lists[index] = self._make_lists(parameters, amsgrad=group["amsgrad"])
            beta1, beta2 = group["betas"]
            lists.steps.add_(1.0 - failed)
            torch._fused_adamw_(
                lists.parameters,
                [parameter.grad for parameter in parameters],
                lists.means,
                lists.squares,
                lists.largest,
                lists.counters,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=group["amsgrad"],
                maximize=group["maximize"],
                grad_scale=divisor,
                found_inf=failed,
            )

    def _still_holds(self, lists: _Lists, parameters: list[torch.Tensor]) -> bool:
        return (
            lists.state is self._optimizer.state
            and len(lists.parameters) == len(parameters)
            and all(map(operator.is_, lists.parameters, parameters))
        )

    def _make_lists(self, parameters: list[torch.Tensor], *, amsgrad: bool) -> _Lists:
        states = [self._state(parameter, amsgrad=amsgrad) for parameter in parameters]
        steps = torch.stack([state["step"] for state in states])
        for state, counter in zip(states, steps.unbind(), strict=True):
            state["step"] = counter
        return _Lists(
            state=self._optimizer.state,
            parameters=parameters,
            means=[state["exp_avg"] for state in states],
            squares=[state["exp_avg_sq"] for state in states],
            largest=[state["max_exp_avg_sq"] for state in states] if amsgrad else [],
            steps=steps,
            counters=[state["step"] for state in states],
        )

    def _state(self, parameter: torch.Tensor, *, amsgrad: bool) -> dict[str, Any]:
        state: dict[str, Any] = self._optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            for name in ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])):
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state
