"""The kinds of adapters, as rows of data: what they are made of, how they begin, and what they make of a weight.

Each kind is told in weight space here, as the WebUI computes it when it loads a file; `layers.py` has the same in the
form that is trained, which never holds a second weight. W is a layer's weight, (out, in) or (out, in, k, k); tensors
go by kohya's names; scale is alpha / rank.

- LoRA (Hu et al. 2021, arXiv 2106.09685, section 4.1): W + scale · up · down.
- DoRA (Liu et al. 2024, arXiv 2402.09353, eq. 5), in the orientation that the WebUI computes, a magnitude for each
  input: V = W + scale · up · down, then m · V / ‖V‖, the norm over all outputs of an input.
- LoHa (Hyeon-Woo et al. 2021, arXiv 2108.06098, eq. 3): W + scale · (w1_a · w1_b) ∘ (w2_a · w2_b).
- LoKr (Yeh et al. 2023, arXiv 2309.14859, section 3.2): W + scale · w1 ⊗ w2, where w2 may itself be w2_a · w2_b. A w2
  that is whole has the scale 1, whatever alpha.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

Shape = tuple[int, ...]
Tensors = Mapping[str, torch.Tensor]

UP, DOWN, MID = "lora_up.weight", "lora_down.weight", "lora_mid.weight"
MAGNITUDE = "dora_scale"
LORA = (DOWN, UP)
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
W1, W2, W1_A, W1_B, W2_A, W2_B, T2 = (
    "lokr_w1",
    "lokr_w2",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
)
# The two sides of a Kronecker product: the first has about this many rows and columns (LyCORIS's `factor`)
FACTOR = 8

Start = Literal["zero", "uniform", "normal", "small normal", "norm of the weight"]


@dataclass(frozen=True)
class Kind:
    """One kind of adapter.

    `result` is the `output_kind` that it belongs to, `module` and `algo` its names in a file's metadata. `shapes`
    gives the tensors of a layer for a weight's shape and a rank, `starts` how each begins, `merged` the new weight
    for a weight, the layer's tensors and the scale. `like` gives the tensors' shapes for a weight's shape and those of
    a file's, None if the file's are of a form that is not trained. `ranked`: a rank above a layer's width is senseless.
    """

    name: str
    title: str
    result: Literal["lora", "lycoris"]
    module: str
    algo: str
    shapes: Callable[[Shape, int], dict[str, Shape]]
    starts: Mapping[str, Start]
    merged: Callable[[torch.Tensor, Tensors, float], torch.Tensor]
    like: Callable[[Shape, Mapping[str, Shape]], dict[str, Shape] | None]
    ranked: bool = True


def _inputs(shape: Shape) -> int:
    """The columns of a weight seen as a matrix."""
    return math.prod(shape[1:])


def _lora_shapes(shape: Shape, rank: int) -> dict[str, Shape]:
    return {DOWN: (rank, *shape[1:]), UP: (shape[0], rank, *[1] * (len(shape) - 2))}


def _dora_shapes(shape: Shape, rank: int) -> dict[str, Shape]:
    return {**_lora_shapes(shape, rank), MAGNITUDE: (1, shape[1], *[1] * (len(shape) - 2))}


def _loha_shapes(shape: Shape, rank: int) -> dict[str, Shape]:
    sides = (shape[0], rank), (rank, _inputs(shape))
    return dict(zip(LOHA, sides * 2, strict=True))


def _lokr_shapes(shape: Shape, rank: int) -> dict[str, Shape]:
    (out_few, out_many), (in_few, in_many) = factors(shape[0]), factors(shape[1])
    whole = (out_many, in_many, *shape[2:])
    if rank >= max(out_many, in_many) / 2:
        return {W1: (out_few, in_few), W2: whole}
    return {W1: (out_few, in_few), W2_A: (out_many, rank), W2_B: (rank, _inputs(whole))}


def _same_rank(shapes: Callable[[Shape, int], dict[str, Shape]]) -> Callable[..., dict[str, Shape] | None]:
    """Shapes of the rank that a file's tensors have."""

    def like(shape: Shape, found: Mapping[str, Shape]) -> dict[str, Shape] | None:
        rank = rank_of(found)
        made = shapes(shape, rank) if rank is not None else {}
        return made if made.keys() == found.keys() else None

    return like


def _lokr_like(shape: Shape, found: Mapping[str, Shape]) -> dict[str, Shape] | None:
    """As the file's are: it may have been cut with another factor."""
    if found.keys() not in ({W1, W2}, {W1, W2_A, W2_B}):
        return None
    rows, columns = found[W1]
    whole = (shape[0] // rows, shape[1] // columns, *shape[2:])
    if W2 in found:
        return {W1: found[W1], W2: whole}
    rank = found[W2_B][0]
    return {W1: found[W1], W2_A: (whole[0], rank), W2_B: (rank, _inputs(whole))}


def factors(size: int, most: int = FACTOR) -> tuple[int, int]:
    """`size` as a product of two numbers: the larger divisor up to `most` and below the root, and the rest."""
    few = max(number for number in range(1, most + 1) if size % number == 0 and number * number <= size)
    return few, size // few


# ---- in weight space -------------------------------------------------------------------------------------------


def lora_delta(tensors: Tensors) -> torch.Tensor:
    """up · down as a matrix (out, in·k·k); with a core in the middle (a Tucker decomposition) up · (core · down)."""
    up, down = tensors[UP].flatten(1), tensors[DOWN].flatten(1)
    if MID not in tensors:
        return up @ down
    return torch.einsum("or,rskl,si->oikl", up, tensors[MID], down).flatten(1)


def column_norm(weight: torch.Tensor) -> torch.Tensor:
    """The norm of each input's weights over all outputs and the kernel: (1, in) or (1, in, 1, 1)."""
    over = tuple(dim for dim in range(weight.dim()) if dim != 1)
    return weight.pow(2).sum(over, keepdim=True).sqrt()


def row_norm(weight: torch.Tensor) -> torch.Tensor:
    """The norm of each output's weights: (out, 1) or (out, 1, 1, 1)."""
    return weight.pow(2).sum(tuple(range(1, weight.dim())), keepdim=True).sqrt()


def _merged_lora(weight: torch.Tensor, tensors: Tensors, scale: float) -> torch.Tensor:
    return weight + scale * lora_delta(tensors).reshape(weight.shape)


def with_magnitude(weight: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """A changed weight, rescaled to DoRA's magnitudes if there are any; those for each output are understood too."""
    magnitude = tensors.get(MAGNITUDE)
    if magnitude is None:
        return weight
    for_outputs = magnitude.shape[0] == weight.shape[0] and magnitude.shape[1] == 1 != weight.shape[1]
    norm = row_norm(weight) if for_outputs else column_norm(weight)
    return weight * (magnitude / norm)


def _merged_dora(weight: torch.Tensor, tensors: Tensors, scale: float) -> torch.Tensor:
    return with_magnitude(_merged_lora(weight, tensors, scale), tensors)


def _core(core: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left · right, or with a core (r, s, k, k) between left (r, out) and right (s, in)."""
    if core is None:
        return left.flatten(1) @ right.flatten(1)
    return torch.einsum("rskl,ro,si->oikl", core, left, right).flatten(1)


def _merged_loha(weight: torch.Tensor, tensors: Tensors, scale: float) -> torch.Tensor:
    first, second = (
        _core(tensors.get(f"hada_t{n}"), tensors[f"hada_w{n}_a"], tensors[f"hada_w{n}_b"]) for n in (1, 2)
    )
    return with_magnitude(weight + scale * (first * second).reshape(weight.shape), tensors)


def _merged_lokr(weight: torch.Tensor, tensors: Tensors, scale: float) -> torch.Tensor:
    first = tensors[W1] if W1 in tensors else tensors[W1_A] @ tensors[W1_B]
    if W2 in tensors:
        second = tensors[W2].flatten(1)
    else:
        second = _core(tensors.get(T2), tensors[W2_A], tensors[W2_B])
    delta = torch.kron(first, second)
    return with_magnitude(weight + scale * delta.reshape(weight.shape), tensors)


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            name="lora",
            title="LoRA",
            result="lora",
            module="networks.lora",
            algo="lora",
            shapes=_lora_shapes,
            starts={DOWN: "uniform", UP: "zero"},
            merged=_merged_lora,
            like=_same_rank(_lora_shapes),
        ),
        Kind(
            name="dora",
            title="DoRA",
            result="lora",
            module="networks.lora",
            algo="lora",
            shapes=_dora_shapes,
            starts={DOWN: "uniform", UP: "zero", MAGNITUDE: "norm of the weight"},
            merged=_merged_dora,
            like=_same_rank(_dora_shapes),
        ),
        Kind(
            name="loha",
            title="LoHa",
            result="lycoris",
            module="lycoris.kohya",
            algo="loha",
            shapes=_loha_shapes,
            starts=dict(zip(LOHA, ("small normal", "normal", "zero", "normal"), strict=True)),
            merged=_merged_loha,
            like=_same_rank(_loha_shapes),
        ),
        Kind(
            name="lokr",
            title="LoKr",
            result="lycoris",
            module="lycoris.kohya",
            algo="lokr",
            shapes=_lokr_shapes,
            starts={W1: "uniform", W2: "zero", W2_A: "uniform", W2_B: "zero"},
            merged=_merged_lokr,
            like=_lokr_like,
            ranked=False,
        ),
    )
}


def kind_of(names: Mapping[str, object]) -> Kind | None:
    """The kind whose tensors these are, by their names; None for none that is known."""
    if UP in names and DOWN in names:
        return KINDS["dora" if MAGNITUDE in names else "lora"]
    if all(name in names for name in LOHA):
        return KINDS["loha"]
    first, second = W1 in names or W1_B in names, W2 in names or W2_B in names
    return KINDS["lokr"] if first and second else None


def rank_of(tensors: Mapping[str, Shape]) -> int | None:
    """The rank of a layer's tensors, by their shapes; None where they are whole (LoKr)."""
    for name in (DOWN, LOHA[1], W2_B, W1_B):
        if name in tensors:
            return tensors[name][0]
    return None


def scale_of(tensors: Mapping[str, Shape], alpha: float | None) -> float:
    """alpha / rank, as the WebUI has it: 1 without alpha, and where nothing has a rank."""
    rank = rank_of(tensors)
    return 1.0 if alpha is None or rank is None else alpha / rank


def beginning(start: Start, shape: Shape, layer: Any, seed: int) -> torch.Tensor:
    """The values that a tensor of a layer begins with, float32 on the CPU: the same for a seed on every machine.

    "uniform" is that of torch's layers and of kohya's LoRA (He et al. 2015, arXiv 1502.01852, with a = √5):
    ±1/√columns. The normal ones are LyCORIS's. A layer's addition is zero as a whole.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    if start == "uniform":
        bound = 1 / math.sqrt(_inputs(shape))
        return (torch.rand(shape, generator=generator) * 2 - 1) * bound
    if start == "norm of the weight":
        return column_norm(layer.weight.detach().float().cpu())
    deviation = {"zero": 0.0, "normal": 1.0, "small normal": 0.1}[start]
    return torch.randn(shape, generator=generator) * deviation if deviation else torch.zeros(shape)
