"""Which results are adapters, and what only they can have."""

from __future__ import annotations

from dreambooth.shared.errors import InputError
from dreambooth.shared.settings import ADAPTERS, Settings


def is_adapter(settings: Settings) -> bool:
    """Whether an adapter is trained, and not the model itself."""
    return settings.result.output_kind in ADAPTERS


def from_base(settings: Settings) -> bool:
    """Whether the prior is what the model without the adapter predicts."""
    return settings.prior.prior == "base_prediction"


def check_prior(settings: Settings) -> None:
    """Raises InputError where the base's prediction is wanted and the base will not be there."""
    if from_base(settings) and settings.prior.prior_loss_weight > 0 and not is_adapter(settings):
        raise InputError(
            "the base's prediction is only to be had beside an adapter: a whole model that is trained is its own base",
            where="prior",
            remedy="use prior: class_images, or train an adapter (output_kind: lora)",
        )
