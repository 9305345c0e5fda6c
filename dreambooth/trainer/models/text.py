"""Prompts to what the UNet is conditioned on, as the WebUI does it, so that a model is used as it was trained.

A prompt is cut into chunks of 75 tokens, each framed by the start and end token, padded to 77, encoded by itself
and laid behind the others along the sequence. Everything else in a prompt is plain text: brackets and `(word:1.2)`
are tokens like any other, weights belong to the prompts of the WebUI's page and not to a caption.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from dreambooth.trainer.models.embeddings import Embeddings

if TYPE_CHECKING:
    from dreambooth.trainer.families import TextPart
    from dreambooth.trainer.models.tokenizer import Tokenizer

CONTENT = 75
LENGTH = 77
# A chunk that is full ends after its last comma if that lies within this many tokens: the WebUI's default of
# "Prompt word wrap length limit".
COMMA_BACKTRACK = 20
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


class TextRules(Protocol):
    """What differs among families' text encoders; a `families.Family` is one."""

    @property
    def pad_token(self) -> str:
        """ "end": padded with the end token (OpenAI's CLIP, SD1); "0": with id 0 (OpenCLIP, SD2)."""

    @property
    def clip_skip(self) -> bool:
        """Whether clip skip has a meaning. The WebUI ignores it for SD2 and SDXL, which never have the last layer."""

    @property
    def text_encoders(self) -> tuple[TextPart, ...]:
        """What is used of each encoder."""

    @property
    def blank_is_zero(self) -> bool:
        """Whether no prompt at all is zeros, as for SDXL, and not the encoding of an empty one."""


def split_prompt(tokenizer: Tokenizer, prompt: str) -> list[list[int]]:
    """The ids of each chunk, at least one chunk, each of at most 75 ids, without start, end and padding.

    The word BREAK ends a chunk where it stands.
    """
    *closed, last = _BREAK.split(prompt)
    chunks: list[list[int]] = []
    for part in closed:
        chunks += _fill_chunks(tokenizer(part), tokenizer.comma) or [[]]
    return (chunks + _fill_chunks(tokenizer(last), tokenizer.comma)) or [[]]


def count_chunks(tokenizer: Tokenizer, prompt: str) -> int:
    """How many chunks `prompt` needs."""
    return len(split_prompt(tokenizer, prompt))


def chunks_for(tokenizer: Tokenizer, prompts: Iterable[str], max_chunks: int) -> int:
    """The number of chunks that all prompts of a run get: what the longest needs, at most `max_chunks`."""
    return min(max_chunks, max((count_chunks(tokenizer, prompt) for prompt in prompts), default=1))


def tokens_cut(tokenizer: Tokenizer, prompt: str, max_chunks: int) -> int:
    """How many tokens of `prompt` are lost where at most `max_chunks` chunks are used; 0 in most cases."""
    return sum(len(chunk) for chunk in split_prompt(tokenizer, prompt)[max_chunks:])


def tokenize(
    tokenizer: Tokenizer,
    rules: TextRules,
    prompts: Sequence[str],
    *,
    chunks: int | None = None,
    max_chunks: int | None = None,
) -> torch.Tensor:
    """Token ids (prompt, chunk, 77), int64, on the CPU.

    A prompt longer than `max_chunks` is cut (`tokens_cut` says by how much). All prompts get `chunks` chunks, or
    as many as the longest needs; the shorter ones are filled up with empty chunks, as the WebUI fills a batch.
    """
    limit = min((limit for limit in (chunks, max_chunks) if limit is not None), default=None)
    split = [split_prompt(tokenizer, prompt)[:limit] for prompt in prompts]
    count = chunks if chunks is not None else max(map(len, split))
    pad = {"end": tokenizer.end, "0": 0}[rules.pad_token]
    rows = [
        [_frame(chunk, tokenizer, pad) for chunk in [*found, *[[]] * (count - len(found))]] for found in split
    ]
    return torch.tensor(rows, dtype=torch.int64)


def encoders_of(components: Mapping[str, torch.nn.Module], rules: TextRules) -> list[torch.nn.Module]:
    """A model's text encoders, in the order in which `encode` wants them."""
    return [components[part.component] for part in rules.text_encoders]


def encode(
    text_encoders: Sequence[torch.nn.Module],
    rules: TextRules,
    token_chunks: torch.Tensor,
    *,
    clip_skip: int = 1,
    unconditional: bool = False,
) -> Embeddings:
    """The conditioning of token ids (prompt, chunk, 77); differentiable.

    `context` is (prompt, chunk * 77, width), the encoders' outputs side by side; `pooled`, (prompt, width), is the
    first chunk's, as in the WebUI. `clip_skip` counts as the WebUI does: 1 takes the usual layer's output, 2 that of
    the one before it; it says nothing where the family has no clip skip. With `unconditional` a blank prompt stands
    for none at all. Under autocast the encoders work in the narrower dtype, except on a CPU, where they stay in their
    own.
    """
    prompts, chunks, length = token_chunks.shape
    ids = token_chunks.reshape(prompts * chunks, length)
    contexts, pooled = [], None
    with _attention_that_works(ids.device):
        for encoder, part in zip(text_encoders, rules.text_encoders, strict=True):
            own = ids if part.pad_token == rules.pad_token else _padded_with_zeros(ids)
            states, end = _encode(encoder, part, own, part.layer + (clip_skip - 1 if rules.clip_skip else 0))
            contexts.append(states.reshape(prompts, chunks * length, states.shape[-1]))
            pooled = end.reshape(prompts, chunks, -1)[:, 0] if end is not None else pooled
    context = contexts[0] if len(contexts) == 1 else torch.cat(contexts, dim=-1)
    told = Embeddings(context, pooled)
    return _without_blanks(told, token_chunks) if unconditional and rules.blank_is_zero else told


def _encode(
    text_encoder: torch.nn.Module, part: TextPart, ids: torch.Tensor, layer: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The states that are used of an encoder, (batch, length, width), and its pooled output, None if that is not."""
    if layer == 1 and part.norm:
        last: torch.Tensor = text_encoder(input_ids=ids, return_dict=True).last_hidden_state
        return last, None
    found = text_encoder(input_ids=ids, output_hidden_states=True, return_dict=True)
    states = found.hidden_states[-layer]
    if part.norm:
        states = _text_model(text_encoder).final_layer_norm(states)
    return states, found.text_embeds if part.pooled else None


def _ends(ids: torch.Tensor) -> torch.Tensor:
    """The place of the first end token, which has the highest id: (..., 77) → (...)."""
    return ids.argmax(dim=-1)


def _padded_with_zeros(ids: torch.Tensor) -> torch.Tensor:
    places = torch.arange(ids.shape[-1], device=ids.device)
    return ids.masked_fill(places > _ends(ids)[..., None], 0)


def _without_blanks(told: Embeddings, token_chunks: torch.Tensor) -> Embeddings:
    """Zeros where a prompt has no token between start and end in any chunk."""
    blank = (_ends(token_chunks) == 1).all(dim=1)

    def emptied(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.masked_fill(blank.view(-1, *[1] * (tensor.dim() - 1)), 0)

    return told.each(emptied)


def unused_modules(
    text_encoders: Sequence[torch.nn.Module], rules: TextRules, clip_skip: int
) -> list[torch.nn.Module]:
    """What of the encoders `encode` does not use, and which therefore can learn nothing: layers, and a norm."""
    unused: list[torch.nn.Module] = []
    for encoder, part in zip(text_encoders, rules.text_encoders, strict=True):
        if part.pooled:  # goes through all of it
            continue
        layers = list(_text_model(encoder).encoder.layers)
        unused += layers[len(layers) + 1 - part.layer - (clip_skip - 1 if rules.clip_skip else 0) :]
        unused += [] if part.norm else [_text_model(encoder).final_layer_norm]
    return unused


def _attention_that_works(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """torch 2.1's autocast on a CPU narrows an attention's queries but not its mask, which is then refused."""
    return torch.autocast("cpu", enabled=False) if device.type == "cpu" else contextlib.nullcontext()


def _text_model(text_encoder: torch.nn.Module) -> Any:
    """transformers 5.6 moved what was in `text_model` into the encoder itself."""
    return getattr(text_encoder, "text_model", text_encoder)


def _fill_chunks(ids: Sequence[int], comma: int) -> list[list[int]]:
    chunks: list[list[int]] = []
    chunk: list[int] = []
    last_comma = -1
    for token in ids:
        if len(chunk) == CONTENT:
            near = last_comma != -1 and CONTENT - last_comma <= COMMA_BACKTRACK and token != comma
            end = last_comma + 1 if near else CONTENT
            chunks.append(chunk[:end])
            chunk, last_comma = chunk[end:], -1
        elif token == comma:
            last_comma = len(chunk)
        chunk.append(token)
    return [*chunks, chunk] if chunk else chunks


def _frame(chunk: Sequence[int], tokenizer: Tokenizer, pad: int) -> list[int]:
    return [tokenizer.start, *chunk, tokenizer.end, *[pad] * (CONTENT - len(chunk))]
