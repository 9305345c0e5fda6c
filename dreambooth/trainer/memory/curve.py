"""A computation's memory as a function of how many images it takes at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """The peak of a computation: at each moment some bytes are there whatever the number of images, and some for each.

    `moments` are (fixed, for each image); those that no number of images makes the largest are left out.
    """

    moments: tuple[tuple[int, int], ...]

    def at(self, images: float) -> int:
        """The peak in bytes with so many images."""
        return max((round(fixed + images * each) for fixed, each in self.moments), default=0)


def curve_of(few: Sequence[int], many: Sequence[int], images: tuple[int, int]) -> Curve:
    """The curve through two histories of the same operations, with `images[0]` and with `images[1]` images.

    Histories of different lengths (an operation that one of them does without) are joined by their largest moments.
    """
    less, more = images
    if len(few) != len(many):
        few, many = [max(few)], [max(many)]
    each = [(high - low) / (more - less) for low, high in zip(few, many, strict=True)]
    pairs = ((round(low - less * slope), round(slope)) for low, slope in zip(few, each, strict=True))
    return Curve(tuple(upper(pairs)))


def upper(moments: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those of lines (value at 0, slope) that are above all others somewhere right of 0, from the steepest on."""
    best: list[tuple[int, int]] = []
    for fixed, slope in sorted(set(moments), key=lambda line: (-line[1], -line[0])):
        if best and fixed <= best[-1][0]:
            continue  # another is as high at 0, and steeper
        while len(best) > 1 and _above(best[-2], (fixed, slope), best[-1]):
            best.pop()
        best.append((fixed, slope))
    return best


def _above(steep: tuple[int, int], flat: tuple[int, int], between: tuple[int, int]) -> bool:
    """Whether a line is nowhere above both of the two others, one steeper and one flatter."""
    crossing_flat = (flat[0] - between[0]) * (steep[1] - flat[1])
    crossing_steep = (flat[0] - steep[0]) * (between[1] - flat[1])
    return crossing_flat >= crossing_steep
