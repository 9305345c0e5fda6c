"""The trackers that a run tells its numbers to: TensorBoard and W&B, through accelerate."""

from __future__ import annotations

import importlib.util

from dreambooth.shared.errors import InputError
from dreambooth.shared.settings import Settings

TRACKERS = ("tensorboard", "wandb")


def trackers_of(settings: Settings) -> list[str]:
    """The trackers that are named, in order."""
    return [name.strip().lower() for name in settings.saving.report_to.split(",") if name.strip()]


def check_trackers(settings: Settings) -> None:
    """Raises InputError for one that there is not, or that is not installed."""
    for tracker in trackers_of(settings):
        if tracker not in TRACKERS:
            raise InputError(
                f"there is no tracker {tracker!r}", where="report_to", remedy=f"one of {', '.join(TRACKERS)}"
            )
        if importlib.util.find_spec(tracker) is None:
            raise InputError(
                f"the package {tracker} is not installed in the trainer's environment", where="report_to",
                remedy=f"install it there (pip install {tracker}), or leave report_to empty",
            )  # fmt: skip
