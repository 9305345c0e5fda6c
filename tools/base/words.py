"""Captions as CLIP's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from dreambooth.trainer.models.tokenizer import default_tokenizer

LENGTH = 77
START, END = 49406, 49407
# With which chance a caption takes which form: some hold a word without a meaning, so that the rare word of
# a subject that is taught later does not change the picture before it is taught.
FORMS = (
    (0.45, "photo of {noun}"),
    (0.10, "a photo of {noun}"),
    (0.10, "a photo of a {noun}"),
    (0.05, "{noun}"),
    (0.05, "picture of {noun}"),
    (0.15, "photo of {word} {noun}"),
    (0.10, "{noun}, {word}"),
)


class Captions:
    """Draws captions for nouns and turns them into token ids."""

    def __init__(self, nouns: list[str], generator: torch.Generator) -> None:
        self.nouns, self.generator = nouns, generator
        self.chances = torch.tensor([chance for chance, _ in FORMS])

    def draw(self, noun: int, dropout: float) -> list[int]:
        if torch.rand((), generator=self.generator) < dropout:
            return []
        form = FORMS[int(torch.multinomial(self.chances, 1, generator=self.generator))][1]
        before, word, after = form.format(noun=self.nouns[noun], word="\0").partition("\0")
        nonsense = torch.randint(1000, START - 1000, (1,), generator=self.generator).tolist() if word else []
        return [*ids(before.strip()), *nonsense, *ids(after.strip())]


@cache
def ids(caption: str) -> tuple[int, ...]:
    """The ids of the words, without start and end."""
    return tuple(default_tokenizer()(caption))


def pad(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Start, words, end, and the end again up to CLIP's 77 positions: (n, 77)."""
    return torch.tensor([[START, *row, *[END] * (LENGTH - 1 - len(row))] for row in rows])
