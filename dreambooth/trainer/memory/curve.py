"""A computation's memory as a function of how many images it takes at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Moment = tuple[int, int]  # bytes whatever the number of images, and bytes for each of them


@dataclass(frozen=True)
class Curve:
    """The peak of a computation: at each moment some bytes are there whatever the number of images, and some for each.

    `moments` are (fixed, for each image); those that no number of images makes the largest are left out.
    """

    moments: tuple[Moment, ...]

    def at(self, images: float) -> int:
        """The peak in bytes with so many images."""
        return max((round(fixed + images * each) for fixed, each in self.moments), default=0)


def curve_of(moments: Iterable[Moment]) -> Curve:
    """The curve of all moments of a computation, (fixed, for each image)."""
    return Curve(tuple(upper(moments)))


def repeated(moments: Sequence[Moment], parts: Iterable[tuple[int, int, int]]) -> list[Moment]:
    """Moments of which each part (from, to, times) happens so many times more: each time beside what the last one left."""
    found: list[Moment] = []
    at, fixed, each = 0, 0, 0
    for start, end, times in sorted(parts):
        found += [(one + fixed, other + each) for one, other in moments[at:end]]
        more, more_each = (
            now - before for now, before in zip(moments[end - 1], moments[start - 1], strict=True)
        )
        for _ in range(times):
            fixed, each = fixed + more, each + more_each
            found += [(one + fixed, other + each) for one, other in moments[start:end]]
        at = end
    return found + [(one + fixed, other + each) for one, other in moments[at:]]


def upper(moments: Iterable[Moment]) -> list[Moment]:
    """Those of lines (value at 0, slope) that are above all others somewhere right of 0, from the steepest on."""
    best: list[Moment] = []
    highest: dict[int, int] = {}
    for fixed, slope in moments:
        if fixed > highest.get(slope, fixed - 1):
            highest[slope] = fixed
    for slope, fixed in sorted(highest.items(), reverse=True):
        if best and fixed <= best[-1][0]:
            continue  # another is as high at 0, and steeper
        while len(best) > 1 and _above(best[-2], (fixed, slope), best[-1]):
            best.pop()
        best.append((fixed, slope))
    return best


def _above(steep: Moment, flat: Moment, between: Moment) -> bool:
    """Whether a line is nowhere above both of the two others, one steeper and one flatter."""
    crossing_flat = (flat[0] - between[0]) * (steep[1] - flat[1])
    crossing_steep = (flat[0] - steep[0]) * (between[1] - flat[1])
    return crossing_flat >= crossing_steep
