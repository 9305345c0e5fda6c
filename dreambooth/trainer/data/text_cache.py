"""What captions become for the model: embeddings computed once and kept, computed at each step, or token ids.

All captions of a run are encoded with one number of chunks, so that a caption's embedding does not depend on what it
shares a batch with, and shapes stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch

from dreambooth.trainer.data.cache import Progress
from dreambooth.trainer.data.store import Key, TensorStore
from dreambooth.trainer.models.embeddings import Embeddings, combined
from dreambooth.trainer.noise import to_device

_EMBEDDINGS_KEPT = 64
_TOKENS_KEPT = 4096


@dataclass(frozen=True)
class TextEncoder:
    """`encode`: one prompt → its embeddings, (tokens, width) and, if they are `pooled`, (width,), float32, on the CPU.

    Encoders with one `id` give the same for the same prompt: it names the weights, clip skip and number of chunks.
    """

    id: str
    encode: Callable[[str], Embeddings]
    pooled: bool = False


class TextSource(Protocol):
    """What the model is told of captions, on the training device."""

    def batch(self, captions: Sequence[str]) -> Embeddings | torch.Tensor:
        """Embeddings of B captions, or token ids (B, chunks, 77)."""
        ...


class CachedText:
    """Embeddings of a fixed set of captions, in memory; `store` None keeps them nowhere else.

    `progress` is told (0, all) first and then after each caption that had to be encoded; it may raise to stop.
    """

    def __init__(
        self,
        captions: Sequence[str],
        encoder: TextEncoder,
        device: torch.device,
        *,
        store: TensorStore | None = None,
        progress: Progress = lambda done, of: None,
    ) -> None:
        known = {text: _stored(text, encoder, store) if store else None for text in captions}
        missing = [text for text, found in known.items() if found is None]
        progress(0, len(missing))
        for done, text in enumerate(missing, 1):
            told = known[text] = encoder.encode(text)
            if store:
                _store(text, encoder, told, store)
            progress(done, len(missing))
        self._device = device
        self._rows = {text: row for row, text in enumerate(known)}
        table = combined([found for found in known.values() if found is not None], torch.stack)
        self._table = table.each(lambda tensor: tensor.to(device))

    def batch(self, captions: Sequence[str]) -> Embeddings:
        # a list of numbers as an index would make the host wait for all that the card has still to do
        rows = to_device(torch.tensor([self._rows[text] for text in captions]), self._device)
        return self._table.each(lambda tensor: tensor[rows])


class LiveText:
    """Embeddings that are computed when they are needed: for captions that vary without end."""

    def __init__(self, encoder: TextEncoder, device: torch.device) -> None:
        self._encode = lru_cache(maxsize=_EMBEDDINGS_KEPT)(encoder.encode)
        self._device = device

    def batch(self, captions: Sequence[str]) -> Embeddings:
        told = combined([self._encode(text) for text in captions], torch.stack)
        return told.each(lambda tensor: to_device(tensor, self._device))


class TokenText:
    """Token ids, for a text encoder that trains. `tokenize`: one prompt → int64 (chunks, 77)."""

    def __init__(self, tokenize: Callable[[str], torch.Tensor], device: torch.device) -> None:
        self._tokenize = lru_cache(maxsize=_TOKENS_KEPT)(tokenize)
        self._device = device

    def batch(self, captions: Sequence[str]) -> torch.Tensor:
        return to_device(torch.stack([self._tokenize(text) for text in captions]), self._device)


def _key(text: str, encoder: TextEncoder, kind: str = "text") -> Key:
    return {"kind": kind, "encoder": encoder.id, "text": text}


def _stored(text: str, encoder: TextEncoder, store: TensorStore) -> Embeddings | None:
    context = store.get(_key(text, encoder))
    pooled = store.get(_key(text, encoder, "pooled text")) if encoder.pooled else None
    return None if context is None or (encoder.pooled and pooled is None) else Embeddings(context, pooled)


def _store(text: str, encoder: TextEncoder, told: Embeddings, store: TensorStore) -> None:
    store.put(_key(text, encoder), told.context)
    if told.pooled is not None:
        store.put(_key(text, encoder, "pooled text"), told.pooled)
