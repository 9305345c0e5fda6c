"""A micro-batch in parts: fewer images go through the model at once, and the sum of the parts is the whole's.

Each part's error counts with its share of its half, so that the parts' losses and gradients add up to those of the
micro-batch, up to rounding. Activations take the memory of the largest part.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dreambooth.trainer.models.embeddings import Embeddings

if TYPE_CHECKING:
    from dreambooth.trainer.engine import Half, MicroBatch


@dataclass(frozen=True)
class Part:
    """Rows of a micro-batch's halves, None where there are none of that half; `shares` of each half's rows are here."""

    instance: Half | None
    prior: Half | None
    shares: tuple[float, float] = (1.0, 1.0)


def alike(one: Half, other: Half) -> bool:
    """Whether two halves can go through the model in one forward."""
    shapes = one.latents.shape[1:] == other.latents.shape[1:]
    return shapes and _length(one.condition) == _length(other.condition)


def at_once(micro: MicroBatch) -> int:
    """The images of a micro-batch that go through the model in its largest forward."""
    instance, prior = len(micro.instance.latents), 0 if micro.prior is None else len(micro.prior.latents)
    if micro.prior is not None and alike(micro.instance, micro.prior):
        return instance + prior
    return max(instance, prior)


def parts_of(micro: MicroBatch, most: int) -> list[Part]:
    """The micro-batch in parts of at most `most` images, the instance images first.

    Halves of one shape share a part where they meet, as they share a forward when nothing is cut.
    """
    own, others = len(micro.instance.latents), 0 if micro.prior is None else len(micro.prior.latents)
    if micro.prior is None or alike(micro.instance, micro.prior):
        cuts = _cuts(0, own + others, most)
    else:
        cuts = [*_cuts(0, own, most), *_cuts(own, own + others, most)]
    return [
        Part(
            _rows(micro.instance, begin, min(end, own)),
            None if micro.prior is None else _rows(micro.prior, max(begin - own, 0), end - own),
            (max(0, min(end, own) - begin) / own, max(0, end - max(begin, own)) / max(1, others)),
        )
        for begin, end in cuts
    ]


def _cuts(begin: int, end: int, most: int) -> list[tuple[int, int]]:
    return [(place, min(place + most, end)) for place in range(begin, end, most)]


def _rows(half: Half, begin: int, end: int) -> Half | None:
    if begin >= end:
        return None

    def cut(value: Any) -> Any:
        if isinstance(value, Embeddings):
            return value.each(lambda tensor: tensor[begin:end])
        return None if value is None else value[begin:end]

    fields = [field.name for field in dataclasses.fields(half)]
    return dataclasses.replace(half, **{name: cut(getattr(half, name)) for name in fields})


def _length(condition: Embeddings | torch.Tensor) -> torch.Size:
    tensor = condition.context if isinstance(condition, Embeddings) else condition
    return tensor.shape[1:]
