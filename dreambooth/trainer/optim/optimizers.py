"""Optimizers, and the one place where gradients become new weights.

`Stepper` clips, keeps a NaN or infinite gradient away from the weights, and steps. AdamW does all of it inside
one fused kernel where torch has one; its `grad_scale` and `found_inf` inputs, made for loss scaling, serve
for clipping and masking without another pass over the gradients and without asking the device anything.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dreambooth.shared.errors import InputError
from dreambooth.shared.settings import TrainingSettings
from dreambooth.trainer.optim.fused_adamw import FusedAdamW
from dreambooth.trainer.optim.fused_backward import FusedBackward
from dreambooth.trainer.optim.optimizer_class import arguments_of, check_arguments, class_of, literals
from dreambooth.trainer.optim.optimizer_table import OptimizerKind, kind_of
from dreambooth.trainer.optim.rounding import StochasticRounding
from dreambooth.trainer.optim.tensor_steps import TensorSteps


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a base learning rate; `name` is the component they belong to."""

    name: str
    parameters: Sequence[torch.nn.Parameter]
    learning_rate: float


class GradScaler(Protocol):
    """The part of torch's GradScaler that a step needs."""

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None: ...
    def step(self, optimizer: torch.optim.Optimizer) -> object: ...
    def update(self) -> None: ...


def has_fused_adamw(device: torch.device) -> bool:
    """Whether torch has a fused AdamW kernel for the device: CUDA since 2.0, the CPU since 2.4."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return device.type == "cuda" or (device.type == "cpu" and version >= (2, 4))


def build_optimizer(
    settings: TrainingSettings, groups: Iterable[ParameterGroup], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer that the settings name, ready to step. Raises InputError for a class that cannot be had and for
    arguments that it does not take."""
    kind = kind_of(settings.optimizer)
    made_of = class_of(kind)
    extra = literals(settings.optimizer_args)
    check_arguments(kind.title, made_of, extra)
    arguments = {**_defaults(kind, settings, device), **extra}
    made = [
        {"params": list(group.parameters), "lr": group.learning_rate, "name": group.name} for group in groups
    ]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some greet
            optimizer: torch.optim.Optimizer = made_of(made, **arguments)
    except Exception as error:  # each library has errors of its own for an argument that it refuses
        raise InputError(
            f"{kind.title} refuses its arguments: {error}",
            where="optimizer_args",
            remedy="take out or mend the argument that it names",
        ) from error
    if averages(optimizer):
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def averages(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer trains other weights than those it is to be judged by: schedule-free ones switch between
    them with `train()` and `eval()`."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def _defaults(kind: OptimizerKind, settings: TrainingSettings, device: torch.device) -> dict[str, Any]:
    """What a kind is given when nothing is asked for: its own fixed arguments and those that settings hold."""

    def value(names: str | tuple[str, str]) -> Any:
        return getattr(settings, names) if isinstance(names, str) else tuple(map(value, names))

    found = {**kind.fixed, **{argument: value(names) for argument, names in kind.takes.items()}}
    if kind.name == "adamw":
        # torch would choose foreach on its own, but refuses both flags at once
        found |= {"fused": True} if has_fused_adamw(device) else {"foreach": True}
    return found


def group_memory(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """What a saved group holds beyond the class's arguments: what some optimizers remember there (d, k, weight_sum).

    The arguments themselves (rates, flags) are those of the settings and of this machine.
    """
    arguments = arguments_of(type(optimizer)) | {"params", "name"}
    return {name: value for name, value in saved.items() if name not in arguments}


@torch.no_grad()
def lay_alike(optimizer: torch.optim.Optimizer) -> None:
    """Gives loaded states the order in memory of their parameters: fused kernels go through all of them side by side."""
    for parameter, state in optimizer.state.items():
        for name, loaded in state.items():
            alike = isinstance(loaded, torch.Tensor) and loaded.shape == parameter.shape
            if alike and loaded.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=loaded.dtype).copy_(loaded)


@torch.no_grad()
def page_again(optimizer: torch.optim.Optimizer) -> None:
    """Puts the loaded states of one of bitsandbytes' paged optimizers where new ones would be: it loads them onto the
    card for good, where they may not have room."""
    if not getattr(optimizer, "is_paged", False):
        return
    for parameter, state in optimizer.state.items():
        for name in ("state1", "state2"):
            loaded = state.get(name)
            if loaded is not None and not getattr(loaded, "is_paged", False):
                buffer = optimizer.get_state_buffer(parameter, dtype=loaded.dtype)  # type: ignore[attr-defined]
                state[name] = buffer.copy_(loaded)


class Stepper:
    """Turns gradients into new weights; remembers on the device whether any of them was not finite.

    Once a gradient was NaN or infinite, no later step changes the weights either, until the run looks at
    `failed` and stops: the host may ask one step late and never has to wait for the device.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        scaler: GradScaler | None,
        *,
        fused_backward: bool = False,
        rounding: StochasticRounding | None = None,
    ) -> None:
        """`fused_backward`: the weights move within the backward pass, see fused_backward.py; `rounding`: they are in
        bfloat16."""
        self._stepping = False
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.scaler = scaler
        self._rounding = rounding
        self._tensors = TensorSteps(optimizer, rounding) if rounding or fused_backward else None
        together = scaler is None and self._tensors is None
        self._fused = FusedAdamW(optimizer) if together and FusedAdamW.serves(optimizer) else None
        self._base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.failed = torch.zeros((), device=self._parameters[0].device)
        self._early = (
            FusedBackward(self._tensors, max_grad_norm) if self._tensors and fused_backward else None
        )

    def _gradients(self) -> list[torch.Tensor]:
        return [gradient for parameter in self._parameters if (gradient := parameter.grad) is not None]

    def begin(self, step: int) -> None:
        """Before the backward pass of a step: what is random in it is that step's."""
        self._stepping = False
        if self._early is not None:
            self._early.begin(step)
        if self._rounding is not None:
            self._rounding.begin(step)

    @property
    def touched(self) -> bool:
        """Whether the step that was begun last may have reached the weights, or what the optimizer remembers."""
        return self._stepping or (self._early is not None and self._early.begun)

    def clipping(self) -> dict[str, Any]:
        """What clipping remembers from step to step, to be saved beside the optimizer's state; {} where it is nothing."""
        return {} if self._early is None else self._early.state_dict()

    def restore_clipping(self, saved: Mapping[str, Any]) -> None:
        """Goes on with what `clipping` gave. Raises ValueError if it is of other tensors."""
        if self._early is not None:
            self._early.load_state_dict(saved)

    def set_rates(self, factor: Callable[[float], float]) -> None:
        """Sets each group's learning rate to its base rate times `factor(base rate)`."""
        for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            value = rate * factor(rate)
            if isinstance(group["lr"], torch.Tensor):  # compiled optimizers read it there
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    @property
    def rate(self) -> float:
        """The first group's learning rate; of an optimizer that finds its own, d times the setting."""
        group = self.optimizer.param_groups[0]
        return float(group["lr"]) * float(group.get("d", 1.0))

    @torch.no_grad()
    def step(self, loss: torch.Tensor) -> bool:
        """One optimizer step; gradients are set to None after it. `loss` is the step's, a scalar on the device.

        Returns False if a loss scaler found the scale too large: nothing was changed, and the same step must be
        made again. A NaN or infinite gradient or loss without a scaler is kept in `failed` instead.
        """
        self._stepping = True
        if self._early is not None:
            self._early.finish(loss)
            self.failed = self._early.failed
            return True
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        gradients = self._gradients()
        norm = self._norm(gradients)
        stepped = True
        if self.scaler is not None:
            stepped = self._scaled_step(gradients, norm, loss)
        else:
            self.failed = torch.maximum(self.failed, (~torch.isfinite(norm + loss)).float())
            if self._fused is not None:
                self._fused.step(divisor=self._divisor(norm), failed=self.failed)
            elif not self.failed.item():
                self._clip(gradients, norm)
                self._step_all()
        self.optimizer.zero_grad(set_to_none=True)
        return stepped

    def _norm(self, gradients: list[torch.Tensor]) -> torch.Tensor:
        """Of all gradients together, in float32."""
        if self._rounding is None:
            norms = torch._foreach_norm(gradients)
        else:
            norms = tuple(torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients)
        norm: torch.Tensor = torch.stack(norms).norm()
        return norm

    def _step_all(self) -> None:
        if self._tensors is None:
            self.optimizer.step()
            return
        for group, parameter in self._tensors.parameters:
            if parameter.grad is not None:
                self._tensors.step(group, parameter, parameter.grad)
        self._tensors.finish()

    def _divisor(self, norm: torch.Tensor) -> torch.Tensor | None:
        """What gradients are divided by so that their norm is at most `max_grad_norm`."""
        return (norm / self.max_grad_norm).clamp(min=1.0) if self.max_grad_norm > 0 else None

    def _clip(self, gradients: list[torch.Tensor], norm: torch.Tensor) -> None:
        divisor = self._divisor(norm)
        if divisor is not None:
            torch._foreach_div_(gradients, divisor)

    def _scaled_step(self, gradients: list[torch.Tensor], norm: torch.Tensor, loss: torch.Tensor) -> bool:
        assert self.scaler is not None
        broken = not bool(torch.isfinite(loss))  # a scale too large shows in the gradients alone
        finite = bool(torch.isfinite(norm))
        if broken:
            self.failed.fill_(1.0)
        elif finite:
            self._clip(gradients, norm)
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return finite or broken
