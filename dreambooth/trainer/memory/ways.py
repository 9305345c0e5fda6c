"""The settings that a run's memory depends on and that `auto` leaves open: what they come to, and what each of them does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dreambooth.shared.settings import Settings
from dreambooth.trainer.memory.room import GB
from dreambooth.trainer.models.checkpointing import units_of, wanted
from dreambooth.trainer.planning.sizes import optimizer_bytes

if TYPE_CHECKING:
    from dreambooth.trainer.planning.plan import Plan

# What the choices come to where memory is no matter
PLAIN = {
    "optimizer": "adamw",
    "weights_dtype": "float32",
    "fused_backward": "no",
    "gradient_checkpointing": "no",
    "base_precision": "full",
    "vae_tiling": "no",
}
IN_PARTS = "forward_batch_size"  # 0 where it is left open
# Where they stand among the settings, if not with the training's
GROUPS = {"base_precision": "model", "vae_tiling": "images"}


@dataclass(frozen=True)
class Way:
    """One of the settings as the run has it: `asked` by the user, or chosen for him; `does` says in words what it does."""

    name: str
    value: str
    asked: bool
    does: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"name": self.name, "value": self.value, "asked": self.asked, "does": self.does}


def value_of(settings: Settings, name: str) -> Any:
    """What one of the choices is set to."""
    return getattr(getattr(settings, GROUPS.get(name, "training")), name)


def left_open(settings: Settings, name: str) -> bool:
    """Whether the user has left one of the choices to the plan."""
    return value_of(settings, name) in ("auto", 0)


def with_ways(settings: Settings, ways: dict[str, Any]) -> Settings:
    """The settings with some of the choices made."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in ways.items():
        groups.setdefault(GROUPS.get(name, "training"), {})[name] = value
    return replace(
        settings, **{group: replace(getattr(settings, group), **own) for group, own in groups.items()}
    )


def plain(settings: Settings) -> Settings:
    """The settings with what they come to where memory is no matter."""
    return with_ways(settings, {name: value for name, value in PLAIN.items() if left_open(settings, name)})


def images_of(settings: Settings) -> int:
    """Images of a micro-batch, both halves."""
    return settings.training.train_batch_size * (2 if settings.prior.prior_loss_weight > 0 else 1)


def ways_of(plan: Plan, asked: Settings) -> tuple[Way, ...]:
    """The choices of a plan that the user made, and those that were made for him and are not plain."""
    found = []
    for name in (*PLAIN, IN_PARTS):
        value = value_of(plan.settings, name)
        open_ = left_open(asked, name)
        if not (open_ and value == PLAIN.get(name, 0)):
            found.append(Way(name, str(value), not open_, _does(plan, name, value)))
    return tuple(found)


def _does(plan: Plan, name: str, value: Any) -> str:
    if name == "gradient_checkpointing":
        units = units_of(plan.base)
        return f"{wanted(value, units)} of the UNet's {units} blocks are computed twice instead of kept"
    if name == IN_PARTS:
        images = images_of(plan.settings)
        return f"{min(value or images, images)} of a step's {images} images go through the model at once"
    if name == "optimizer":
        kept = optimizer_bytes(plan.base, plan.trained, value, plan.adapter)
        return f"it keeps {kept / GB:.2f} GB"
    return _DO.get((name, value), "")


_DO = {
    ("weights_dtype", "float32"): "what is trained has its full width",
    ("weights_dtype", "bfloat16"): "what is trained takes half the room, rounded by chance",
    ("fused_backward", "no"): "all gradients are there before a step",
    ("fused_backward", "yes"): "each gradient is used up as soon as it is there",
    ("base_precision", "full"): "the frozen base is kept as it is computed with",
    ("base_precision", "int8"): "the frozen base is kept in 8 bit",
    ("vae_tiling", "no"): "pictures go through the VAE whole",
    ("vae_tiling", "yes"): "pictures go through the VAE in tiles",
}
