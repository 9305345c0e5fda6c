"""Files of tensors for tests of what is done with a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from dreambooth.trainer.weights import Entry, TensorInfo, write_weights
from dreambooth.trainer.weights.base import nbytes_of


@dataclass
class Described:
    """A weight file of which only names and shapes are there, and the tensors that are given."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)
    given: dict[str, torch.Tensor] = field(default_factory=dict)
    path: Path = Path("model.safetensors")
    format: str = "safetensors"
    extras: dict[str, object] = field(default_factory=dict)

    def read(self, name: str) -> torch.Tensor:
        return self.given[name]

    def raw(self, name: str) -> None:
        return None

    def mapped(self, name: str) -> torch.Tensor | None:
        return None


def described(shapes: dict[str, tuple[int, ...]], metadata=None, **given: torch.Tensor) -> Described:
    shapes = shapes | {name: tuple(tensor.shape) for name, tensor in given.items()}
    return Described(
        {
            name: TensorInfo(torch.float32, shape, nbytes_of(torch.float32, shape))
            for name, shape in shapes.items()
        },
        metadata or {},
        given,
    )


def write(path: Path, tensors: dict[str, torch.Tensor], metadata=None, extras=None) -> Path:
    """Write tensors as they are, in their order."""
    entries = [
        Entry(name, tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor)
        for name, tensor in tensors.items()
    ]
    return write_weights(path, entries, metadata or {}, extras=extras, overwrite=True, verify=False).path


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit, dtype and shape included."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    )
