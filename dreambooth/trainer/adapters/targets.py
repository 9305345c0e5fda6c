"""Which layers an adapter changes, chosen by what they do and where they are; read from a checkpoint's description.

Nothing is built for it: the table of names and the file's shapes say all, so that a plan takes no time.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dreambooth.shared.errors import InputError
from dreambooth.trainer.adapters.kinds import Shape
from dreambooth.trainer.families.description import Description
from dreambooth.trainer.families.names import UNET_PREFIX
from dreambooth.trainer.weights import WeightFile

# What layers do, by how their canonical names end. The OpenCLIP attention's four always go together: the WebUI
# applies them only so.
ROLES = {
    "attention": r"\.attn[12]\.(to_[qkv]|to_out\.0)|\.self_attn\.(q|k|v|out)_proj",
    "feed_forward": r"\.ff\.net\.(0\.proj|2)|\.mlp\.fc[12]",
    "projections": r"\.proj_(in|out)",
    "convolutions": r"\.resnets\.\d+\.conv(1|2|_shortcut)|samplers\.0\.conv",
    "embeddings": r"(time|add)_embedding\.linear_[12]|\.time_emb_proj",
}
DEFAULT_ROLES = ("attention", "feed_forward")
_ROLES = {role: re.compile(f"(?:.*)(?:{pattern})") for role, pattern in ROLES.items()}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)|(mid)_block")
_BLOCK_WORD = re.compile(r"(down|mid|up)(\.\d+)?")
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
_WEIGHT = ".weight"


@dataclass(frozen=True)
class Target:
    """A layer that can have an adapter: its component, canonical path and weight's shape, and `original`, the name
    of the tensor that holds it in a single file. `block` is where it lies in the UNet ("down.1", "mid"; "" else)."""

    component: str
    path: str
    shape: Shape
    role: str
    block: str
    original: str

    @property
    def weight(self) -> str:
        """The canonical name of its weight."""
        return self.path + _WEIGHT

    @property
    def original_path(self) -> str:
        """The original's name of the layer in the UNet."""
        return self.original.removeprefix(UNET_PREFIX).removesuffix(_WEIGHT)

    @property
    def where(self) -> str:
        """The layer's name as messages have it."""
        return f"{self.component}.{self.path}"


@dataclass(frozen=True)
class Choice:
    """What is asked for: roles, and blocks of the UNet (all if none are named)."""

    roles: tuple[str, ...] = DEFAULT_ROLES
    blocks: tuple[str, ...] = ()

    def takes(self, target: Target) -> bool:
        """Whether a layer is chosen; blocks say nothing of text encoders."""
        if target.role not in self.roles:
            return False
        if not self.blocks or target.component != "unet":
            return True
        return target.block in self.blocks or target.block.partition(".")[0] in self.blocks


def parse_choice(text: str) -> Choice:
    """What `target_blocks` asks for: words with commas between them. Raises InputError for a word that is none."""
    words = [word.strip().lower().replace("-", "_") for word in text.split(",") if word.strip()]
    if text.strip() and not words:
        raise InputError(
            "nothing is named",
            where="target_blocks",
            remedy=f"name layers, or leave it empty for the usual ones ({', '.join(DEFAULT_ROLES)})",
        )
    roles = tuple(ROLES) if "all" in words else tuple(word for word in words if word in ROLES)
    blocks = tuple(word for word in words if _BLOCK_WORD.fullmatch(word))
    for word in words:
        if word != "all" and word not in ROLES and word not in blocks:
            raise InputError(
                f"there is no {word!r} that an adapter could change",
                where="target_blocks",
                remedy=f"use {', '.join(ROLES)} or all, and blocks of the UNet: down, down.0, mid, up, up.3, …",
            )
    return Choice(roles or DEFAULT_ROLES, blocks)


def choose(
    targets: Sequence[Target], choice: Choice, components: Collection[str], unused: Collection[str] = ()
) -> list[Target]:
    """The targets of `components` that are chosen, without those that lie in `unused` ("component.path" prefixes).

    Raises InputError for a component in which nothing is left, and for a block that the UNet has not.
    """
    blocks = {target.block for target in targets} | {target.block.partition(".")[0] for target in targets}
    for block in choice.blocks:
        if block not in blocks:
            there = ", ".join(sorted(name for name in blocks if name))
            raise InputError(
                f"this model's UNet has no block {block!r}",
                where="target_blocks",
                remedy=f"there are {there}",
            )
    left_out = tuple(f"{prefix}." for prefix in unused)
    found = [
        target
        for target in targets
        if target.component in components and choice.takes(target) and not target.where.startswith(left_out)
    ]
    for component in components:
        if not any(target.component == component for target in found):
            raise InputError(
                f"nothing of the {component.replace('_', ' ')} would be trained: none of its layers is in target_blocks",
                where="target_blocks",
                remedy="name attention or feed_forward too, or turn its training off",
            )
    return found


def targets_of(source: WeightFile, description: Description) -> list[Target]:
    """Every layer of the UNet and the text encoders that an adapter can change, in the table's order."""
    found = []
    for component, bindings in description.bindings.items():
        if component == "vae":
            continue
        for binding in bindings:
            for name in binding.canonical:
                path = name.removesuffix(_WEIGHT)
                role = role_of(path)
                if role and path != name and binding.original in source.tensors:
                    shape = binding.shape_in_module(source.tensors[binding.original].shape)
                    found.append(Target(component, path, shape, role, _block(path), binding.original))
    return found


def unused_layers(component: str, targets: Sequence[Target], used: int) -> list[str]:
    """The paths of a text encoder's layers from the `used`th on: what they give reaches nobody."""
    numbers = {
        int(match[1])
        for target in targets
        if target.component == component and (match := _LAYER.match(target.path))
    }
    return [f"{component}.encoder.layers.{number}" for number in sorted(numbers) if number >= used]


def role_of(path: str) -> str:
    """What the layer at a canonical path does, "" for one that no adapter changes."""
    return next((role for role, pattern in _ROLES.items() if pattern.fullmatch(path)), "")


def _block(path: str) -> str:
    match = _BLOCK.match(path)
    if match is None:
        return ""
    return match[3] or f"{match[1]}.{match[2]}"
