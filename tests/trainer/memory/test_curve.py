"""A peak as a function of the number of images is the largest of its moments, for any number."""

from __future__ import annotations

import random

import pytest

from dreambooth.trainer.memory.curve import Curve, curve_of, upper


@pytest.mark.parametrize("seed", range(20))
def test_only_moments_that_are_never_the_largest_are_left_out(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(20):
        moments = [(draw.randint(-20, 50), draw.randint(0, 20)) for _ in range(draw.randint(1, 12))]
        kept = upper(moments)
        assert set(kept) <= set(moments)
        for images in (0, 0.5, 1, 2, 3, 7, 100):
            assert max(f + images * e for f, e in kept) == max(f + images * e for f, e in moments)


def test_two_histories_give_the_peak_for_any_number() -> None:
    fixed, each = [5, 100, 40, 0], [10, 2, 30, 0]
    few, many = ([f + n * e for f, e in zip(fixed, each, strict=True)] for n in (2, 4))
    curve = curve_of(few, many, (2, 4))
    for images in (1, 2, 3, 4, 16):
        assert curve.at(images) == max(f + images * e for f, e in zip(fixed, each, strict=True))


def test_histories_of_other_operations_are_joined_by_their_largest_moments() -> None:
    curve = curve_of([10, 30], [10, 20, 50], (2, 4))
    assert curve == Curve(((10, 10),))


def test_nothing_takes_nothing() -> None:
    assert Curve(()).at(3) == 0
