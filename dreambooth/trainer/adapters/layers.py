"""A layer of the frozen model with its adapter, as it is trained: what `kinds.py` says in weights, done to what flows.

No second weight is made for LoRA, DoRA and LoKr: their additions are applied to the activations. LoHa's must be made;
its factors alone are kept for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from dreambooth.trainer.adapters import kinds
from dreambooth.trainer.adapters.kinds import DOWN, LOHA, MAGNITUDE, UP, W1, W2, W2_A, W2_B

_TINY = 1e-30


@dataclass
class Switch:
    """Whether a model's adapters are on; all its layers look at the same one."""

    on: bool = True

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model is its base while the block runs."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before


class Adapted(nn.Module):
    """A linear or convolutional layer `base`, which is frozen, with its adapter's parameters in float32.

    `tensors` are the parameters by kohya's names. Under a narrower precision they take part in it like any weight.
    `dropout` leaves out that share of what the adapter is fed while it is trained (Hu et al. 2021, appendix D).
    """

    def __init__(
        self,
        base: nn.Module,
        kind: str,
        tensors: Mapping[str, torch.Tensor],
        scale: float,
        *,
        dropout: float = 0.0,
        switch: Switch | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.shape = shape_of(base)
        self.scale = scale
        self.dropout = dropout
        self.switch = switch or Switch()
        self._attributes = {name: name.replace(".", "_") for name in tensors}
        for name, tensor in tensors.items():
            self.register_parameter(self._attributes[name], nn.Parameter(tensor.float()))
        self._forward = FORWARDS[kind]
        self._kept: torch.Tensor | None = None

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters by kohya's names."""
        return {name: getattr(self, attribute) for name, attribute in self._attributes.items()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.switch.on:
            plain: torch.Tensor = self.base(x)
            return plain
        return self._forward(self, x)

    def tensor(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A parameter in the precision of what flows."""
        found: torch.Tensor = getattr(self, self._attributes[name])
        return found.to(like.dtype)

    def dropped(self, x: torch.Tensor) -> torch.Tensor:
        """What the adapter is fed."""
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x

    def applied(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """A weight of the base's form applied as the base applies its own, without its bias."""
        if isinstance(self.base, nn.Conv2d):
            conv = self.base
            return functional.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation)
        return functional.linear(x, weight)

    def squares(self) -> torch.Tensor:
        """The squared norm of the base's weights for each input, (in,), float32; it never changes."""
        device = next(self.base.parameters()).device
        if self._kept is None or self._kept.device != device:
            with torch.inference_mode(False):  # pictures are made between steps
                weight: Any = self.base.weight
                self._kept = kinds.column_norm(weight.detach().float()).flatten().pow(2)
        return self._kept


def shape_of(layer: Any) -> tuple[int, ...]:
    """The form of a linear or convolutional layer's weight, which need not be made for it."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size
    return layer.out_features, layer.in_features


def _low_rank(layer: Adapted, x: torch.Tensor) -> torch.Tensor:
    """up(down(x))."""
    hidden = layer.applied(x, layer.tensor(DOWN, x))
    up = layer.tensor(UP, x)
    raised: torch.Tensor = functional.conv2d(hidden, up) if up.dim() == 4 else functional.linear(hidden, up)
    return raised


def _lora(layer: Adapted, x: torch.Tensor) -> torch.Tensor:
    return torch.add(layer.base(x), _low_rank(layer, layer.dropped(x)), alpha=layer.scale)


def _dora(layer: Adapted, x: torch.Tensor) -> torch.Tensor:
    """LoRA of an input that is scaled for each of its channels by m / ‖V‖.

    As in the paper's section 4.3, the norm is a constant to the gradient.
    """
    gain = layer.tensors[MAGNITUDE] / _norm_with_lora(layer).view_as(layer.tensors[MAGNITUDE])
    gain = gain.to(x.dtype) if gain.dim() == 4 else gain.to(x.dtype).squeeze(0)
    return _lora(layer, x * gain)


@torch.no_grad()
def _norm_with_lora(layer: Adapted) -> torch.Tensor:
    """‖W + scale · up · down‖ for each input, (in,): ‖W‖² + 2·scale·⟨W, up·down⟩ + scale²·‖up·down‖², none of them made."""
    weight: Any = layer.base.weight
    up, down = layer.tensors[UP].flatten(1), layer.tensors[DOWN].flatten(1)
    with torch.autocast(down.device.type, enabled=False):
        cross = (up.T.to(weight.dtype) @ weight.detach().flatten(1)).float() * down
        own = (up.T @ up @ down) * down
        each = (2 * layer.scale * cross + layer.scale**2 * own).sum(0)
        squares = layer.squares() + each.view(weight.shape[1], -1).sum(1)
        norm: torch.Tensor = squares.clamp(min=_TINY).sqrt()
    return norm


class _Hadamard(torch.autograd.Function):
    """(a1 · b1) ∘ (a2 · b2), of which only the factors are kept: the products are made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, *factors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*factors)
        a1, b1, a2, b2 = factors
        product: torch.Tensor = (a1 @ b1) * (a2 @ b2)
        return product

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a1, b1, a2, b2 = ctx.saved_tensors
        through_first = gradients[0] * (a2 @ b2)
        grad_a1, grad_b1 = through_first @ b1.T, a1.T @ through_first
        through_second = gradients[0] * (a1 @ b1)
        return grad_a1, grad_b1, through_second @ b2.T, a2.T @ through_second


def _loha(layer: Adapted, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, enabled=False):
        factors = [layer.tensors[name] for name in LOHA]
        delta = _Hadamard.apply(*factors).reshape(layer.shape)  # type: ignore[no-untyped-call]
    return torch.add(layer.base(x), layer.applied(layer.dropped(x), delta.to(x.dtype)), alpha=layer.scale)


def _lokr(layer: Adapted, x: torch.Tensor) -> torch.Tensor:
    """(w1 ⊗ w2) x: the input cut into as many parts as w1 has columns, w2 applied to each, w1 to mix them."""
    fed, first = layer.dropped(x), layer.tensor(W1, x)
    parts = first.shape[1]
    if W2 in layer.tensors:
        second = layer.tensor(W2, x)
    else:
        second = layer.tensor(W2_A, x) @ layer.tensor(W2_B, x)
        second = second.reshape(-1, layer.shape[1] // parts, *layer.shape[2:])
    if len(layer.shape) == 4:
        batch = len(fed)
        each = layer.applied(fed.reshape(batch * parts, -1, *fed.shape[2:]), second)
        mixed = torch.einsum("oi,bi...->bo...", first, each.reshape(batch, parts, *each.shape[1:])).flatten(
            1, 2
        )
    else:
        each = functional.linear(fed.reshape(*fed.shape[:-1], parts, -1), second)
        mixed = torch.einsum("oi,...if->...of", first, each).flatten(-2)
    return torch.add(layer.base(x), mixed, alpha=layer.scale)


FORWARDS: dict[str, Callable[[Adapted, torch.Tensor], torch.Tensor]] = {
    "lora": _lora,
    "dora": _dora,
    "loha": _loha,
    "lokr": _lokr,
}
