"""Skips tests of what not every environment has: optimizers that are libraries of their own, 8 bits without a card."""

from __future__ import annotations

import functools
import importlib.util

import pytest

from dreambooth.trainer.optim.optimizer_table import kind_of


def skip_without(optimizer: str) -> None:
    """Skips the running test where this optimizer takes no step on the processor."""
    kind = kind_of(optimizer)
    if kind.library and importlib.util.find_spec(kind.library.name) is None:
        pytest.skip(f"{kind.library.name} is not installed")
    if kind.eight_bit and why_no_8bit():
        pytest.skip(why_no_8bit())


@functools.cache
def why_no_8bit() -> str:
    """Why the installed bitsandbytes takes no 8-bit step on the processor (older ones never do), empty if it does."""
    import bitsandbytes
    import torch

    weight = torch.nn.Parameter(torch.ones(64, 64))
    weight.grad = torch.ones_like(weight)
    try:
        bitsandbytes.optim.AdamW8bit([weight]).step()
    except (RuntimeError, NotImplementedError, AttributeError, NameError) as error:
        return f"bitsandbytes {bitsandbytes.__version__} takes no 8-bit step on the processor: {error}"
    return ""
