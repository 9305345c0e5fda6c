"""What would make a training smaller, for a plan that does not fit and for a run whose memory ran out."""

from __future__ import annotations

from collections.abc import Sequence

from dreambooth.shared.settings import Settings
from dreambooth.trainer.adapters.results import is_adapter
from dreambooth.trainer.memory.ways import PLAIN, left_open, value_of
from dreambooth.trainer.optim.optimizer_table import kind_of


def what_a_plan_leaves(settings: Settings, asked: Settings) -> str:
    """What the user can give up of what he `asked` for; where he left a choice open, the plan has made it."""
    fixed = [
        name for name, value in PLAIN.items() if not left_open(asked, name) and value_of(asked, name) == value
    ]
    ways = [f"{', '.join(fixed)}: auto"] if fixed else []
    *ways, last = [*ways, *_given_up(settings)]
    return f"use {', '.join(ways)}, or {last}" if ways else f"use {last}"


def what_a_run_leaves(settings: Settings) -> str:
    """What a run that has come to its last rung could still do with less of, as settings."""
    training, kind = settings.training, kind_of(settings.training.optimizer)
    whole = not is_adapter(settings)
    able = (
        (whole and not kind.eight_bit, "optimizer: adamw8bit"),
        (whole and kind.fused_backward and training.fused_backward != "yes", "fused_backward: yes"),
        (whole and training.weights_dtype == "float32", "weights_dtype: bfloat16"),
        (not whole and settings.model.base_precision != "int8", "base_precision: int8"),
    )
    return ", ".join([*(text for holds, text in able if holds), *_given_up(settings)])


def _given_up(settings: Settings) -> Sequence[str]:
    """What makes another training of it, or another result."""
    able = (
        (settings.training.train_text_encoder, "train_text_encoder: no"),
        (settings.training.use_ema, "use_ema: no"),
        (not settings.images.cache_latents, "cache_latents: yes"),
        (not is_adapter(settings), "output_kind: lora"),
        (True, "a smaller resolution"),
    )
    return [text for holds, text in able if holds]
