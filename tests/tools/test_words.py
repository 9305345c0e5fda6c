from __future__ import annotations

import torch

from tools.base import words


def draws(count: int, dropout: float) -> list[list[int]]:
    captions = words.Captions(["cat"], torch.Generator().manual_seed(0))
    return [captions.draw(0, dropout) for _ in range(count)]


def test_captions_are_framed_and_filled_with_the_end_token() -> None:
    rows = words.pad([[320, 2368], []])
    assert rows.shape == (2, 77)
    assert rows[0, :4].tolist() == [49406, 320, 2368, 49407]
    assert rows[1].tolist() == [49406] + [49407] * 76


def test_every_caption_that_is_not_dropped_names_its_photo() -> None:
    assert all(2368 in row for row in draws(200, dropout=0.0))


def test_a_tenth_of_the_captions_is_empty_so_that_guidance_works() -> None:
    empty = sum(not row for row in draws(2000, dropout=0.1))
    assert 150 < empty < 250  # six standard deviations are 80


def test_some_captions_hold_a_rare_word_beside_the_noun() -> None:
    rare = [
        row for row in draws(200, dropout=0.0) if len(row) == 4 and row[:2] == [1125, 539] and row[3] == 2368
    ]
    assert len({row[2] for row in rare}) > 5
