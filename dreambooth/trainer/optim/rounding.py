"""Weights in bfloat16 that still learn: each step is computed in float32 and rounded up or down at random, so that on
average nothing of it is lost (arXiv 2010.06192). To the nearest, a step smaller than half of bfloat16's own would be.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from dreambooth.trainer.draws import words

_LOW_BITS = 1 << 16
_HIGH_BITS = -_LOW_BITS  # 0xFFFF0000 as a signed number


def rounded(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """float32 `values` as bfloat16, each one of its two neighbours, the nearer one the more probably.

    The bits that bfloat16 drops, plus 16 random ones, carry into those that it keeps as often as they should.
    Infinity and NaN stay what they are.
    """
    noise = torch.randint(
        0, _LOW_BITS, values.shape, generator=generator, device=values.device, dtype=torch.int32
    )
    bits = values.contiguous().view(torch.int32)
    carried = noise.add_(bits).bitwise_and_(_HIGH_BITS).view(torch.float32)
    return torch.where(torch.isfinite(values), carried, values).to(torch.bfloat16)


class StochasticRounding:
    """Rounds with random bits that are a function of (seed, step, tensor) alone: nothing to save."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        self._step = 0
        self._generator = torch.Generator(device=device)

    def begin(self, step: int) -> None:
        """From here on it is this step's."""
        self._step = step

    def write(self, target: torch.Tensor, values: torch.Tensor, tensor: int) -> None:
        """Rounds float32 `values` into the bfloat16 `target`, the run's tensor number `tensor`."""
        self._generator.manual_seed(words("rounding", self._seed, self._step, tensor)[0] >> 1)
        target.copy_(rounded(values, self._generator))


@contextlib.contextmanager
def as_float32(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """While the block runs, parameters pass for float32: what is loaded into an optimizer takes its parameter's type,
    and keeps float32 beside bfloat16 weights."""
    held = [p for group in optimizer.param_groups for p in group["params"] if p.dtype == torch.bfloat16]
    data = [parameter.data for parameter in held]
    try:
        for parameter in held:
            parameter.data = torch.zeros((), dtype=torch.float32, device=parameter.device)
        yield
    finally:
        for parameter, own in zip(held, data, strict=True):
            parameter.data = own
