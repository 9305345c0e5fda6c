"""Noise from seeds: each sample's own, drawn on the CPU, so that it is the same on every device and in any batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def seeded_normal(seeds: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise, float32 (len(seeds), *shape) on the CPU; row i depends on seed i alone.

    Seeds are integers of up to 64 bits, of which torch's CPU generator takes the lower 32.
    """
    generator = torch.Generator()
    noise = torch.empty((len(seeds), *shape))
    for row, seed in zip(noise, seeds, strict=True):
        generator.manual_seed(seed)
        row.normal_(generator=generator)
    return noise


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Sends a tensor from the CPU without waiting for the device's earlier work."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
