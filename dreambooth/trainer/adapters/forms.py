"""Whether a layer's tensors make a weight together, told by their names and shapes before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

from dreambooth.trainer.adapters.kinds import DOWN, LOHA, MID, T2, UP, W1, W1_A, W1_B, W2, W2_A, W2_B, Shape

NUMBERS = ("alpha", "scale")
T1_HADA, T2_HADA = "hada_t1", "hada_t2"
_HALVES = ((*LOHA[:2], T1_HADA), (*LOHA[2:], T2_HADA))
_MATRICES = (UP, DOWN, MID, *LOHA, T1_HADA, T2_HADA, W1, W1_A, W1_B, W2, W2_A, W2_B, T2)
_SIDES = {W1: (W1_A, W1_B), W2: (W2_A, W2_B)}
# of tensors that are nothing without each other, each group's; a whole one of LoKr does without its two parts
_GROUPS = ((UP, DOWN), LOHA, (W1_A, W1_B), (W2_A, W2_B))


def lacking(names: Collection[str]) -> str:
    """The tensor without which those of a layer, by kohya's names, make nothing; "" if none is lacking."""
    for group in _GROUPS:
        whole = {W1_A: W1, W2_A: W2}.get(group[0])
        if whole not in names and any(name in names for name in group):
            lost = [name for name in group if name not in names]
            if lost:
                return lost[0]
    sides = {first: any(name in names for name in (first, *parts)) for first, parts in _SIDES.items()}
    return next((first for first, there in sides.items() if not there), "") if any(sides.values()) else ""


def misfit(shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    """What does not go together in a layer that lacks nothing, by the shapes of its tensors: the tensor's name, or
    those of two that cannot be multiplied; () if all do."""
    for name, shape in shapes.items():
        if name in NUMBERS and math.prod(shape) != 1:
            return (name,)
        if name in _MATRICES and (len(shape) < 2 or 0 in shape):
            return (name,)
    cores = (MID, T1_HADA, T2_HADA, T2)
    flat = (W1, W1_A, W1_B, *(name for *pair, core in _HALVES if core in shapes for name in pair))
    for name, dims in (*((core, 4) for core in cores), *((name, 2) for name in flat)):
        if name in shapes and len(shapes[name]) != dims:
            return (name,)
    for left, columns, right, rows in _products(shapes):
        if columns != rows:
            return left, right
    if LOHA[0] in shapes and _half(shapes, *_HALVES[0]) != _half(shapes, *_HALVES[1]):
        return LOHA[0], LOHA[2]
    return ()


def fits_magnitude(magnitude: Shape, weight: Shape, *, flat: bool) -> bool:
    """Whether DoRA's magnitude is one for each input or output of a weight; `flat`: for each output, in whatever shape."""
    ones = (1,) * (len(weight) - 2)
    return (
        math.prod(magnitude) == weight[0]
        if flat
        else magnitude in ((1, weight[1], *ones), (weight[0], 1, *ones))
    )


def _products(shapes: Mapping[str, Shape]) -> Iterator[tuple[str, int, str, int]]:
    """Each two tensors that are multiplied: the left one and its columns, the right one and its rows."""
    three = ((UP, DOWN, MID), *_HALVES, (W2_A, W2_B, T2))
    for left, right, core in three:
        if left not in shapes or right not in shapes:
            continue
        if core in shapes:  # between the two; all but LoRA's have the left one transposed
            outer = _columns(shapes[left]) if left == UP else shapes[left][0]
            yield left, outer, core, shapes[core][0]
            yield core, shapes[core][1], right, shapes[right][0]
        else:
            yield left, _columns(shapes[left]), right, shapes[right][0]
    if W1 not in shapes and W1_A in shapes:
        yield W1_A, shapes[W1_A][1], W1_B, shapes[W1_B][0]


def _half(shapes: Mapping[str, Shape], left: str, right: str, core: str) -> tuple[int, int]:
    """Rows and columns of one of LoHa's two factors."""
    if core in shapes:
        return shapes[left][1], _columns(shapes[right]) * math.prod(shapes[core][2:])
    return shapes[left][0], _columns(shapes[right])


def made_shape(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Rows and columns of what a layer's tensors make, seen as a matrix (0 where they make none)."""

    def core(name: str) -> int:
        return math.prod(shapes[name][2:]) if name in shapes else 1

    if UP in shapes:
        return shapes[UP][0], _columns(shapes[DOWN]) * core(MID)
    if LOHA[0] in shapes:
        return _half(shapes, *_HALVES[0])
    first = shapes[W1] if W1 in shapes else (shapes[W1_A][0], shapes[W1_B][1])
    if W2 in shapes:
        second = shapes[W2][0], _columns(shapes[W2])
    elif T2 in shapes:
        second = shapes[W2_A][1], _columns(shapes[W2_B]) * core(T2)
    else:
        second = shapes[W2_A][0], _columns(shapes[W2_B])
    return first[0] * second[0], first[1] * second[1]


def _columns(shape: Shape) -> int:
    return math.prod(shape[1:])
