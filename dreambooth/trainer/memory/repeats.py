"""Blocks of a model that do the same one after the other: three of them are computed, what the others do is known.

SDXL's UNet has up to ten equal transformer blocks in a row. Each takes what the one before it
did, beside what has come together by then. The first and the last of a row have other neighbours, so they are computed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dreambooth.trainer.memory.counting import Autocast, Count

ROW = "transformer_blocks"  # each of whose parts feeds the next
COMPUTED = 3


@dataclass
class Row:
    """Equal blocks in a row: `block` stands for `more` others, and `after` is what comes then.

    `marks` are how many moments there were before the block's forward pass and after it; before autocast forgets its weights
    and after; before its backward pass and after.
    """

    block: nn.Module
    after: nn.Module
    more: int
    marks: list[int] = field(default_factory=list)

    def watch(self, count: Count) -> None:
        """Notes the marks of the next pass: a block works between its input and that of the block after it."""
        for module in (self.block, self.after):
            handles: list[Any] = []
            note = functools.partial(self._begins, count, handles)
            handles.append(module.register_forward_pre_hook(note))

    def _begins(self, count: Count, handles: list[Any], module: nn.Module, inputs: tuple[Any, ...]) -> None:
        handles[0].remove()  # a block that is computed twice is called twice
        self._mark(count)
        inputs[0].register_hook(lambda gradient: self._mark(count))

    def _mark(self, count: Count) -> None:
        count.note()
        self.marks.append(len(count.history))

    def forgotten(self, count: Count, autocast: Autocast) -> None:
        """Notes what goes with the end of autocast."""
        self._mark(count)
        autocast.forget(self.block.parameters())
        self._mark(count)

    def parts(self) -> Iterator[tuple[int, int, int]]:
        """The parts of a history that others have too: from, to, how many others."""
        for start, end in zip(self.marks[::2], self.marks[1::2], strict=True):
            yield start, end, self.more


@contextmanager
def shortened(model: nn.Module, twice: Collection[nn.Module]) -> Iterator[list[Row]]:
    """Takes blocks that do what their neighbours do out of a model while the block runs. `twice` are those that are
    computed twice."""
    found: list[Row] = []
    whole: list[tuple[nn.Module, nn.ModuleList]] = []
    for name, blocks in list(model.named_modules()):
        above, _, last = name.rpartition(".")
        if last == ROW and isinstance(blocks, nn.ModuleList):
            kept, rows = _kept(blocks, twice)
            found += rows
            whole.append((model.get_submodule(above), blocks))
            setattr(whole[-1][0], ROW, nn.ModuleList(kept))
    try:
        yield found
    finally:
        for parent, blocks in whole:
            setattr(parent, ROW, blocks)


def _kept(blocks: nn.ModuleList, twice: Collection[nn.Module]) -> tuple[list[nn.Module], list[Row]]:
    kept: list[nn.Module] = []
    rows: list[Row] = []
    for _, group in itertools.groupby(blocks, key=lambda block: (block in twice, _form(block))):
        equal = list(group)
        learns = any(
            tensor.requires_grad for tensor in equal[0].parameters()
        )  # so that the next has a gradient
        if len(equal) > COMPUTED and learns:
            rows.append(Row(equal[1], equal[-1], len(equal) - COMPUTED))
            equal = [*equal[:2], equal[-1]]
        kept += equal
    return kept, rows


def _form(block: nn.Module) -> list[tuple[Any, ...]]:
    """What a block's memory depends on."""
    parts = [(name, type(part), part.training) for name, part in block.named_modules()]
    tensors = [
        (name, tensor.shape, tensor.dtype, tensor.requires_grad) for name, tensor in block.named_parameters()
    ]
    return [*parts, *tensors]
