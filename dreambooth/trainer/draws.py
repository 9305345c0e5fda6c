"""Random numbers that are pure functions of a key: the same on every platform, Python and numpy version.

A key is any sequence of integers and texts. What is drawn for one key does not depend on what was drawn for another,
so that a step's samples can be computed without those before it.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from hashlib import blake2b

_WORDS = struct.Struct("<8Q")


def words(*key: int | str) -> tuple[int, ...]:
    """Eight independent 64-bit integers for a key."""
    return _WORDS.unpack(blake2b(repr(key).encode()).digest())


def unit(word: int) -> float:
    """A 64-bit word as a number in [0, 1), with the 53 bits that a float holds."""
    return (word >> 11) * 2.0**-53


def below(word: int, count: int) -> int:
    """A 64-bit word as an integer in [0, count); the bias is below count / 2**64."""
    return word % count


@lru_cache(maxsize=64)
def shuffled(count: int, *key: int | str) -> tuple[int, ...]:
    """A uniformly random order of range(count) for a key."""
    order = list(range(count))
    drawn: tuple[int, ...] = ()
    for place in range(count - 1, 0, -1):
        used = (count - 1 - place) % 8
        if used == 0:
            drawn = words(*key, "shuffled", place)
        other = below(drawn[used], place + 1)
        order[place], order[other] = order[other], order[place]
    return tuple(order)
