"""CLIP's text encoder, as Stable Diffusion uses it (Radford et al. 2021, arXiv 2103.00020, section 2.4).

transformers has the same module, but importing it takes longer than everything else between the start of a training
and its first step together, and its names of the weights changed between versions. Here they are the canonical
ones: those of transformers from 5.6 on, before which each began with `text_model.`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from dreambooth.trainer.models.checkpointing import again, draws

_EPSILON = 1e-5


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "quick_gelu": _quick_gelu,  # OpenAI's
    "gelu": functional.gelu,  # OpenCLIP's
}


@dataclass(frozen=True)
class Encoded:
    """What the encoder gives: (batch, length, width) each. `hidden_states`, if they were asked for, are the
    embeddings and each layer's output, without the final norm, which only `last_hidden_state` went through.
    `text_embeds`, where it has a projection, is that of the end token's last state, (batch, projection)."""

    last_hidden_state: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None = None
    text_embeds: torch.Tensor | None = None


class CLIPTextEncoder(nn.Module):
    """The causal transformer over a prompt's token ids; `config` is transformers' CLIPTextConfig as a mapping.

    It has a projection if that names transformers' CLIPTextModelWithProjection as its architecture.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.embeddings = _Embeddings(config["vocab_size"], config["max_position_embeddings"], width)
        self.encoder = _Encoder(
            _Layer(
                width,
                config["num_attention_heads"],
                config["intermediate_size"],
                ACTIVATIONS[config["hidden_act"]],
            )
            for _ in range(config["num_hidden_layers"])
        )
        self.final_layer_norm = nn.LayerNorm(width, eps=_EPSILON)
        self.text_projection = (
            nn.Linear(width, config["projection_dim"], bias=False)
            if "CLIPTextModelWithProjection" in config.get("architectures", ())
            else None
        )
        self._checkpointing = False

    def gradient_checkpointing_enable(self) -> None:
        """In training mode, compute each layer again for its gradients rather than keep what is inside it."""
        self._checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep what is inside the layers."""
        self._checkpointing = False

    def forward(
        self, input_ids: torch.Tensor, *, output_hidden_states: bool = False, return_dict: bool = True
    ) -> Encoded:
        """The encoding of ids (batch, length), int64. There is no other form of the result: `return_dict` is what
        callers of transformers' encoder say."""
        assert return_dict
        x = self.embeddings(input_ids)
        states = [x]
        for layer in self.encoder.layers:
            x = self._checkpointed(layer, x) if self._checkpointing and self.training else layer(x)
            states.append(x)
        last = self.final_layer_norm(x)
        return Encoded(last, tuple(states) if output_hidden_states else None, self._pooled(input_ids, last))

    def _pooled(self, input_ids: torch.Tensor, last: torch.Tensor) -> torch.Tensor | None:
        """The end token has the highest id, and only the first one is the prompt's end."""
        if self.text_projection is None:
            return None
        rows = torch.arange(len(last), device=last.device)
        pooled: torch.Tensor = self.text_projection(last[rows, input_ids.argmax(dim=-1)])
        return pooled

    def _checkpointed(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = again(layer, x, keep_random_state=draws(layer))
        return out


class _Embeddings(nn.Module):
    def __init__(self, vocabulary: int, positions: int, width: int) -> None:
        super().__init__()
        self.token_embedding = _embedding(vocabulary, width)
        self.position_embedding = _embedding(positions, width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        return embedded


def _embedding(count: int, width: int) -> nn.Embedding:
    embedding: nn.Embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
        torch.empty(count, width), freeze=False
    )
    if not embedding.weight.is_meta:  # random numbers there make torch import sympy
        nn.init.normal_(embedding.weight, std=0.02)
    return embedding


class _Encoder(nn.Module):
    """Only a name: the layers are `encoder.layers` in every file."""

    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class _Layer(nn.Module):
    def __init__(
        self, width: int, heads: int, hidden: int, activation: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self.self_attn = _Attention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width, eps=_EPSILON)
        self.mlp = _MLP(width, hidden, activation)
        self.layer_norm2 = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: torch.Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            projection(x).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: torch.Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int, activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._activation = activation
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(self._activation(self.fc1(x)))
        return out
