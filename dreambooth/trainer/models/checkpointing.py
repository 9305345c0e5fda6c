"""Gradient checkpointing for as many of the UNet's blocks as needed (Chen et al. 2016, arXiv 1604.06174).

A unit is a residual block or a transformer block: what diffusers' own checkpointing works on, all or none. A unit that
is computed again in the backward pass keeps its input alone. They come in the order of the memory that they hold, which
is the order of what is gained for the work too: first the transformer blocks at the largest resolution.

Gradients stay the same to the bit: the same operations run on the same numbers, twice. It can be switched on and off
between any two steps. Only names that diffusers has had throughout are relied on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from dreambooth.shared.errors import InputError

if TYPE_CHECKING:
    from dreambooth.shared.settings import Settings
    from dreambooth.trainer.models.loading import LoadedModel

# What a transformer block holds for its gradients, in tensors of its width: three norms' inputs and outputs, queries,
# keys and values, attention's outputs, and the gated feed-forward's 8 + 4 + 4
TRANSFORMER_HOLDS = 28
# What a residual block holds, in tensors of its input's width (the first norm's and activation's output), and of its
# output's (the same of the second, what that norm is fed, and its own result)
RESIDUAL_HOLDS = 2, 4
# The first residual block of the middle is always kept: diffusers does not ask for it, and it is among the smallest
_KEPT = "mid_block.resnets.0"
_UNIT = re.compile(
    r"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(?:resnets\.\d+|attentions\.\d+\.transformer_blocks\.\d+)"
)


@dataclass(frozen=True)
class Unit:
    """A block that can be computed again: its path in the UNet, and the numbers that it holds for each pixel of the
    latents, give or take."""

    path: str
    module: nn.Module
    holds: float


def checkpointable_units(unet: nn.Module) -> list[Unit]:
    """The UNet's units, those that hold most first."""
    return sorted(_units(unet), key=lambda unit: -unit.holds)


def checkpoint_units(unet: Any, count: int) -> None:
    """Has the first `count` of the units be computed again in the backward pass, and no other one."""
    unet.disable_gradient_checkpointing()
    chosen = {unit.module: draws(unit.module) for unit in checkpointable_units(unet)[:count]}
    if not chosen:
        return

    def forward(module: nn.Module, *inputs: Any) -> Any:
        if module not in chosen:
            return module(*inputs)
        return again(module, *inputs, keep_random_state=chosen[module])

    unet.enable_gradient_checkpointing(forward)


def again(module: nn.Module, *inputs: Any, keep_random_state: bool = False) -> Any:
    """A module's output, whose inside is computed a second time for its gradients. `keep_random_state`: it draws
    random numbers, which must be the same ones then."""
    from torch.utils.checkpoint import checkpoint

    return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=keep_random_state)


def count_units(names: Iterable[str]) -> int:
    """How many units there are in a UNet with tensors of these names."""
    found = {match[0] for match in map(_UNIT.match, names) if match}
    return len(found - {_KEPT})


def units_of(base: LoadedModel) -> int:
    """How many units a model's UNet has, told from its names."""
    return count_units(name for binding in base.description.bindings["unet"] for name in binding.canonical)


def with_checkpointing(settings: Settings, base: LoadedModel) -> Settings:
    """The settings with what `gradient_checkpointing` comes to: yes, no, or a number in between.

    Raises InputError for a number of blocks that the UNet has not.
    """
    asked, most = settings.training.gradient_checkpointing, units_of(base)
    if asked.isdecimal() and int(asked) > most:
        raise InputError(
            f"this UNet has {most} blocks, and {int(asked)} are to be computed again",
            where="gradient_checkpointing",
            remedy=f"use a number from 0 to {most}, yes or no",
        )
    count = wanted(asked, most)
    resolved = {0: "no", most: "yes"}.get(count, str(count))
    return replace(settings, training=replace(settings.training, gradient_checkpointing=resolved))


def wanted(setting: str, units: int) -> int:
    """How many of so many units `gradient_checkpointing` asks for; auto asks for none."""
    return {"yes": units, "no": 0, "auto": 0}[setting] if not setting.isdecimal() else int(setting)


def _units(unet: Any) -> Iterator[Unit]:
    """In the order of the UNet's modules."""
    level = 0
    for path, block in _blocks(unet):
        for name, module in block.named_modules():
            where = f"{path}.{name}"
            if _UNIT.fullmatch(where) and where != _KEPT:
                yield Unit(where, module, _holds(module) / 4**level)
        if getattr(block, "downsamplers", None):
            level += 1
        if getattr(block, "upsamplers", None):
            level -= 1


def _blocks(unet: Any) -> Iterator[tuple[str, nn.Module]]:
    """The UNet's blocks in the order in which they are computed."""
    for number, block in enumerate(unet.down_blocks):
        yield f"down_blocks.{number}", block
    yield "mid_block", unet.mid_block
    for number, block in enumerate(unet.up_blocks):
        yield f"up_blocks.{number}", block


def _holds(module: Any) -> float:
    """What a unit holds for each position of its own resolution; norms tell widths, since no adapter takes their place."""
    if hasattr(module, "norm3"):
        return float(TRANSFORMER_HOLDS * module.norm3.normalized_shape[0])
    of_input, of_output = RESIDUAL_HOLDS
    return float(of_input * module.norm1.num_channels + of_output * module.norm2.num_channels)


def draws(module: nn.Module) -> bool:
    """Whether a module draws random numbers while it is trained."""
    found = [getattr(part, "dropout", 0.0) for part in module.modules()]
    found += [part.p for part in module.modules() if isinstance(part, nn.Dropout)]
    return any(isinstance(share, float) and share > 0 for share in found)
