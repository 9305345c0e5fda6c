"""What a UNet is told beside latents and timestep: the prompts' embeddings and, where it knows them, sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch


class Embeddings(NamedTuple):
    """Prompts as the UNet sees them: `context` (B, tokens, width) and, where the model has it, `pooled` (B, width).

    A single prompt's have no B.
    """

    context: torch.Tensor
    pooled: torch.Tensor | None = None

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Embeddings:
        """Both tensors, changed alike."""
        return Embeddings(change(self.context), None if self.pooled is None else change(self.pooled))


def combined(
    parts: Sequence[Embeddings], how: Callable[[list[torch.Tensor]], torch.Tensor] = torch.cat
) -> Embeddings:
    """Embeddings laid together: `torch.cat` for batches, `torch.stack` for single prompts."""
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Embeddings(how([part.context for part in parts]), how(pooled) if pooled else None)


def unet_arguments(told: Embeddings, sizes: torch.Tensor | None) -> dict[str, Any]:
    """The arguments of diffusers' UNet2DConditionModel; `sizes` (B, 6) are those of SDXL (arXiv 2307.01952, 2.2)."""
    arguments: dict[str, Any] = {"encoder_hidden_states": told.context}
    if told.pooled is not None:
        arguments["added_cond_kwargs"] = {"text_embeds": told.pooled, "time_ids": sizes}
    return arguments
