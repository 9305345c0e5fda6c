"""A peak as a function of the number of images is the largest of its moments, for any number."""

from __future__ import annotations

import random

import pytest

from dreambooth.trainer.memory.curve import Curve, repeated, upper


@pytest.mark.parametrize("seed", range(20))
def test_only_moments_that_are_never_the_largest_are_left_out(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(20):
        moments = [(draw.randint(-20, 50), draw.randint(0, 20)) for _ in range(draw.randint(1, 12))]
        kept = upper(moments)
        assert set(kept) <= set(moments)
        for images in (0, 0.5, 1, 2, 3, 7, 100):
            assert max(f + images * e for f, e in kept) == max(f + images * e for f, e in moments)


def test_a_part_that_happens_more_often_adds_each_time_what_it_left() -> None:
    one_block = [(10, 1), (14, 3), (12, 2), (9, 1)]  # leaves (2, 1) forward, takes it back later
    others = repeated(one_block, [(1, 3, 2), (3, 4, 2)])
    assert others == [
        (10, 1), (14, 3), (12, 2), (16, 4), (14, 3), (18, 5), (16, 4),
        (13, 3), (10, 2), (7, 1),
    ]  # fmt: skip
    assert repeated(one_block, []) == one_block


def test_nothing_takes_nothing() -> None:
    assert Curve(()).at(3) == 0
