"""Every optimizer that can be chosen, as data: whose class it is, which settings it takes, what it can do.

A class by its import path is one more row, of which nothing is known but its arguments.
`python -m dreambooth.trainer.optim.optimizer_table` prints the README's table.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dreambooth import pins

Shape = Sequence[int]
# bitsandbytes keeps the states of smaller tensors in float32, and a float32 scale for each block of larger ones
SMALLEST_8BIT = 4096
BLOCK_8BIT = 256
ANYWHERE = frozenset({"cuda", "cpu", "mps"})


class Library(NamedTuple):
    """An optional library: its name for pip, which is its module's too, and the file that pins it ("": any version)."""

    name: str
    file: str


BITSANDBYTES = Library("bitsandbytes", pins.EIGHT_BIT)
PRODIGYOPT = Library("prodigyopt", pins.OPTIMIZERS)
SCHEDULEFREE = Library("schedulefree", pins.OPTIMIZERS)
PYTORCH_OPTIMIZER = Library("pytorch_optimizer", pins.OPTIMIZERS)
TORCHAO = Library("torchao", "")


# ---- bytes that are kept of a tensor ---------------------------------------------------------------------------------


def in_float32(states: int) -> Callable[[Shape], float]:
    """So many float32 states as large as the tensor."""
    return lambda shape: 4.0 * states * math.prod(shape)


def in_8bit(states: int) -> Callable[[Shape], float]:
    """So many states of a byte each, and their scales; small tensors keep float32."""

    def kept(shape: Shape) -> float:
        count = math.prod(shape)
        return states * (4.0 * count if count < SMALLEST_8BIT else count + 4 * math.ceil(count / BLOCK_8BIT))

    return kept


def factored(*, full: int, rows: int) -> Callable[[Shape], float]:
    """`full` float32 states, and `rows` more as a row and a column over the last two dimensions (arXiv 1804.04235);
    a vector has nothing to factor."""

    def kept(shape: Shape) -> float:
        count = math.prod(shape)
        if len(shape) < 2:
            return 4.0 * (full + 1) * count
        return 4.0 * (full * count + rows * (count / shape[-1] + count / shape[-2]))

    return kept


# ---- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OptimizerKind:
    """One optimizer. `target` is its class's import path; `takes` names, for an argument, the settings it comes from
    (two make a pair); `fixed` are arguments that have to be other than the class's own defaults.

    What it can do: `devices`; `fused_backward`: each tensor can be stepped by itself, as soon as its gradient is
    there; `paged`: its state moves to the computer's memory when the card's is full; `own_rate`: it finds the rate
    by itself, the setting is a factor of it and the same for all; `averages`: what is exported is an average that it
    keeps, so that neither a schedule nor another average has a place; `exact_resume`: a run that was interrupted goes
    on to the same bits (None: nobody tried).
    """

    name: str
    title: str
    target: str
    bytes_of: Callable[[Shape], float]
    library: Library | None = None
    takes: Mapping[str, str | tuple[str, str]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    devices: frozenset[str] = ANYWHERE
    eight_bit: bool = False
    paged: bool = False
    fused_backward: bool = True
    own_rate: bool = False
    averages: bool = False
    exact_resume: bool | None = True


_ADAM: Mapping[str, str | tuple[str, str]] = {
    "betas": ("adam_beta1", "adam_beta2"),
    "eps": "adam_epsilon",
    "weight_decay": "adam_weight_decay",
}
_DECAY: Mapping[str, str | tuple[str, str]] = {"weight_decay": "adam_weight_decay"}
_NVIDIA = frozenset({"cuda"})
_NO_APPLE = frozenset({"cuda", "cpu"})

_ROWS = (
    OptimizerKind("adamw", "AdamW", "torch.optim.AdamW", in_float32(2), takes=_ADAM),
    OptimizerKind(
        "adamw8bit", "AdamW8bit", "bitsandbytes.optim.AdamW8bit", in_8bit(2), BITSANDBYTES, _ADAM,
        devices=_NO_APPLE, eight_bit=True,
    ),
    OptimizerKind(
        "pagedadamw8bit", "PagedAdamW8bit", "bitsandbytes.optim.PagedAdamW8bit", in_8bit(2), BITSANDBYTES, _ADAM,
        devices=_NVIDIA, eight_bit=True, paged=True,
    ),
    OptimizerKind("lion", "Lion", "pytorch_optimizer.Lion", in_float32(1), PYTORCH_OPTIMIZER, _DECAY),
    OptimizerKind(
        "lion8bit", "Lion8bit", "bitsandbytes.optim.Lion8bit", in_8bit(1), BITSANDBYTES, _DECAY,
        devices=_NO_APPLE, eight_bit=True,
    ),
    OptimizerKind(
        "adafactor", "Adafactor", "transformers.optimization.Adafactor", factored(full=0, rows=1), None, _DECAY,
        {"scale_parameter": False, "relative_step": False},
    ),
    OptimizerKind(
        "prodigy", "Prodigy", "prodigyopt.Prodigy", in_float32(4), PRODIGYOPT, _ADAM,
        fused_backward=False, own_rate=True,
    ),
    OptimizerKind(
        "dadaptadam", "D-Adaptation (Adam)", "pytorch_optimizer.DAdaptAdam", in_float32(3), PYTORCH_OPTIMIZER, _ADAM,
        {"weight_decouple": True}, fused_backward=False, own_rate=True,
    ),
    OptimizerKind(
        "adamwschedulefree", "schedule-free AdamW", "schedulefree.AdamWScheduleFree", in_float32(2), SCHEDULEFREE,
        _ADAM, fused_backward=False, averages=True,
    ),
    OptimizerKind("came", "CAME", "pytorch_optimizer.CAME", factored(full=1, rows=2), PYTORCH_OPTIMIZER, _DECAY),
)  # fmt: skip
AUTO = "adamw"
TABLE: Mapping[str, OptimizerKind] = {row.name: row for row in _ROWS}
# Known, and not offered beside the others: it is compiled anew in each run, and for where bitsandbytes does not work.
TORCHAO_ADAMW8BIT = OptimizerKind(
    "torchao.optim.AdamW8bit", "torchao's AdamW8bit", "torchao.optim.AdamW8bit", in_8bit(2), TORCHAO, _ADAM,
    devices=_NO_APPLE, eight_bit=True, fused_backward=False,
)  # fmt: skip
BY_PATH: Mapping[str, OptimizerKind] = {TORCHAO_ADAMW8BIT.name: TORCHAO_ADAMW8BIT}


def kind_of(name: str) -> OptimizerKind:
    """The row of a name, or one for the class of an import path. `auto` is AdamW until a plan chooses otherwise."""
    return TABLE.get(AUTO if name == "auto" else name) or BY_PATH.get(name) or _of_path(name)


def _of_path(path: str) -> OptimizerKind:
    library, eight_bit = None, False
    if (
        path.partition(".")[0] == BITSANDBYTES.name
    ):  # has to be prepared and proved, whichever of its classes it is
        library, eight_bit = BITSANDBYTES, "8bit" in path.lower()
    return OptimizerKind(
        path, path, path, in_float32(2), library, eight_bit=eight_bit, fused_backward=False, exact_resume=None
    )


# ---- the README's table ----------------------------------------------------------------------------------------------

_MATRIX: Shape = (4096, 4096)
_CONVOLUTION: Shape = (640, 640, 3, 3)
_WHERE = (("cuda", "CUDA, ROCm"), ("cpu", "processor"), ("mps", "Apple"))


def reference_table() -> str:
    """The rows as a Markdown table. Bytes are those kept of each weight, of a matrix and, if that differs, of a 3×3
    convolution."""
    lines = [
        "| `optimizer` | is | keeps of a weight | runs on | needs | good to know |",
        "|---|---|---|---|---|---|",
    ]
    for row in (*TABLE.values(), *BY_PATH.values()):
        where = ", ".join(title for device, title in _WHERE if device in row.devices)
        needs = row.library.name if row.library else "–"
        lines.append(
            f"| `{row.name}` | {row.title} | {_kept(row)} bytes | {where} | {needs} | {_traits(row)} |"
        )
    return "\n".join(lines) + "\n"


def _kept(row: OptimizerKind) -> str:
    each = (f"{row.bytes_of(shape) / math.prod(shape):.1f}" for shape in (_MATRIX, _CONVOLUTION))
    return ", convolutions ".join(dict.fromkeys(text.removesuffix(".0") for text in each))


def _traits(row: OptimizerKind) -> str:
    traits = (
        (row.paged, "its state moves to the computer's memory when the card's is full"),
        (row.own_rate, "finds the rate itself: `learning_rate: 1`, one for all; what is shown is the one found"),
        (row.averages, "its own average is the result: constant schedule, no warm-up, no EMA"),
        (not row.fused_backward, "not with `fused_backward`"),
        (row is TORCHAO_ADAMW8BIT, "compiled at the first step; for where bitsandbytes does not work"),
    )  # fmt: skip
    return "; ".join(text for holds, text in traits if holds)


if __name__ == "__main__":
    sys.stdout.buffer.write(reference_table().encode())
