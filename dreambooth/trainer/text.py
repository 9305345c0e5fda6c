"""Prompts to what the UNet is conditioned on, as the WebUI does it, so that a model is used as it was trained.

A prompt is cut into chunks of 75 tokens, each framed by the start and end token, padded to 77, encoded by itself
and laid behind the others along the sequence. Everything else in a prompt is plain text: brackets and `(word:1.2)`
are tokens like any other, weights belong to the prompts of the WebUI's page and not to a caption.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from dreambooth.trainer.tokenizer import Tokenizer

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
        """Whether clip skip has a meaning. The WebUI ignores it for SD2, which never has its last layer."""


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


def encode(
    text_encoder: torch.nn.Module, rules: TextRules, token_chunks: torch.Tensor, *, clip_skip: int = 1
) -> torch.Tensor:
    """The conditioning (prompt, chunk * 77, width) of token ids (prompt, chunk, 77); differentiable.

    `clip_skip` counts as the WebUI does: 1 takes the last layer's output, 2 the one before it; the final layer
    norm follows in every case. It says nothing where the family has no clip skip. Under autocast the encoder
    works in the narrower dtype, except on a CPU, where it stays in its own.
    """
    prompts, chunks, length = token_chunks.shape
    skip = clip_skip if rules.clip_skip else 1
    ids = token_chunks.reshape(prompts * chunks, length)
    with _attention_that_works(ids.device):
        if skip == 1:
            encoded: torch.Tensor = text_encoder(input_ids=ids, return_dict=True).last_hidden_state
        else:
            states = text_encoder(input_ids=ids, output_hidden_states=True, return_dict=True).hidden_states
            encoded = _text_model(text_encoder).final_layer_norm(states[-skip])
    return encoded.reshape(prompts, chunks * length, encoded.shape[-1])


def skipped_layers(text_encoder: torch.nn.Module, rules: TextRules, clip_skip: int) -> list[torch.nn.Module]:
    """The layers whose output `encode` does not use, and which therefore can learn nothing."""
    layers = list(_text_model(text_encoder).encoder.layers)
    return layers[len(layers) - (clip_skip - 1 if rules.clip_skip else 0) :]


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
