"""A frozen base in 8 bit: the weights of its layers as whole numbers, with a scale for each output channel.

A weight w is kept as round(w / scale), from -127 to 127, scale being its channel's largest |w| / 127 in float32: what is
computed with differs from w by half a scale at most, 1/254 of the channel's largest. It is made anew for each use, for
gradients too, in the precision of the computation; nothing of it is kept. Only what adapters stand on is kept so: it
learns nothing itself. torch alone does it, on every device.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from dreambooth.shared.errors import InputError
from dreambooth.trainer.adapters.results import is_adapter
from dreambooth.trainer.families.names import TEXT_MODEL

if TYPE_CHECKING:
    from dreambooth.shared.settings import Settings
    from dreambooth.trainer.models.loading import LoadedModel

LARGEST = 127
NOTE = "the base is kept in 8 bit: weights differ by at most 1/254 of each channel's largest"
# Nearly all weights are there; the few others, at the way in and out, count for most of what is seen
_WHERE = re.compile(r"(?:down_blocks|mid_block|up_blocks|encoder\.layers)\..+")
_WEIGHT = ".weight"


def with_base_precision(settings: Settings) -> Settings:
    """The settings with what `base_precision` comes to. Raises InputError for 8 bit where the base is trained."""
    asked = settings.model.base_precision
    if asked == "int8" and not is_adapter(settings):
        raise InputError(
            "only a base that stays as it is can be kept in 8 bit, and this trains the whole model",
            where="base_precision",
            remedy="use base_precision: auto, or train an adapter (output_kind: lora)",
        )
    resolved = "full" if asked == "auto" else asked
    return replace(settings, model=replace(settings.model, base_precision=resolved))


def is_int8(settings: Settings) -> bool:
    """Whether the base is kept in 8 bit."""
    return settings.model.base_precision == "int8"


def quantised(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes in int8 of a weight's form, and its scales in float32, (out, 1) or (out, 1, 1, 1)."""
    if weight.is_meta:  # where memory is counted, there are sizes and no numbers
        scales = torch.empty(len(weight), *[1] * (weight.dim() - 1), device="meta")
        return torch.empty_like(weight, dtype=torch.int8), scales
    wide = weight.detach().float()
    largest = wide.abs().amax(tuple(range(1, wide.dim())), keepdim=True)
    scale = largest / LARGEST
    codes = wide / torch.where(scale > 0, scale, torch.ones_like(scale))  # a channel of zeros stays one
    return codes.round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def dequantised(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weight in `dtype`, rounded to it once, with the codes' layout."""
    return torch.mul(codes, scale, out=torch.empty_like(codes, dtype=dtype))


class _Linear(torch.autograd.Function):
    """x · Wᵀ + bias, of which only the codes are kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Int8Linear) -> torch.Tensor:
        ctx.save_for_backward(layer.codes, layer.scale)
        ctx.dtype = x.dtype
        return functional.linear(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        codes, scale = ctx.saved_tensors
        weight = dequantised(codes, scale, gradient.dtype)
        return (gradient @ weight).to(ctx.dtype), None


class _Conv2d(torch.autograd.Function):
    """The same for a convolution."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Int8Conv2d) -> torch.Tensor:
        ctx.save_for_backward(layer.codes, layer.scale)
        ctx.dtype, ctx.shape = x.dtype, x.shape
        ctx.rest = layer.stride, layer.padding, layer.dilation
        return functional.conv2d(x, layer.weight, layer.bias, *ctx.rest)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        codes, scale = ctx.saved_tensors
        weight = dequantised(codes, scale, gradient.dtype)
        found = conv2d_input(ctx.shape, weight, gradient, *ctx.rest)  # type: ignore[no-untyped-call]
        return found.to(ctx.dtype), None


class _Int8(nn.Module):
    """What both kinds of layers have: codes and scale in the place of the weight, which is made when it is asked for.

    They are parameters, so that several processes do not send each other what never changes.
    """

    bias: nn.Parameter | None

    def _keep(self, layer: nn.Linear | nn.Conv2d, dtype: torch.dtype, device: torch.device) -> None:
        codes, scale = quantised(layer.weight.to(device))
        self.dtype = dtype
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = None
        if layer.bias is not None:
            self.bias = nn.Parameter(layer.bias.detach().to(device, dtype), requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:
        """The weight in the precision of the computation."""
        return dequantised(self.codes, self.scale, self.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Scales stay in float32, whatever the module is cast to."""
        before = self.scale.data
        done = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scale.data = before.to(self.scale.device)
        return done


class Int8Linear(_Int8, nn.Linear):  # type: ignore[misc,override]
    """A frozen linear layer in 8 bit."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._keep(layer, dtype, device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _Linear.apply(x, self)  # type: ignore[no-untyped-call]
        return found


class Int8Conv2d(_Int8, nn.Conv2d):  # type: ignore[misc,override]
    """A frozen convolution in 8 bit, of one group."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype, device: torch.device) -> None:
        nn.Module.__init__(self)
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            setattr(self, name, getattr(layer, name))
        self.padding_mode, self.output_padding, self.transposed = "zeros", (0, 0), False
        self._keep(layer, dtype, device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _Conv2d.apply(x, self)  # type: ignore[no-untyped-call]
        return found


def quantise(component: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Puts a frozen UNet or text encoder on `device`, its layers in 8 bit and all else in `dtype`, layer by layer: the
    device never holds more."""
    for path, layer in list(component.named_modules()):
        if not _WHERE.fullmatch(path.removeprefix(TEXT_MODEL)):
            continue
        made: nn.Module
        if type(layer) is nn.Linear:
            made = Int8Linear(layer, dtype, device)
        elif type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros":
            made = Int8Conv2d(layer, dtype, device)
        else:
            continue
        above, _, name = path.rpartition(".")
        setattr(component.get_submodule(above), name, made.eval())
    nn.Module.to(component, device, dtype)  # diffusers' own warns of what is meant here


def int8_weights(base: LoadedModel, component: str) -> int:
    """How many of a component's weights are kept in 8 bit, told from their names and shapes."""
    found = 0
    for binding in base.description.bindings[component]:
        shape = base.source.tensors[binding.original].shape
        name = binding.canonical[0]
        if name.endswith(_WEIGHT) and _WHERE.fullmatch(name.removesuffix(_WEIGHT)) and len(shape) > 1:
            found += math.prod(shape)
    return found


def stored_dtype(base: LoadedModel, component: str) -> torch.dtype:
    """The precision in which the file has a component's largest tensor."""
    infos = [base.source.tensors[binding.original] for binding in base.description.bindings[component]]
    return max(infos, key=lambda info: math.prod(info.shape)).dtype
