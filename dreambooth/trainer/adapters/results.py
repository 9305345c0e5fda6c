"""Which results are adapters."""

from __future__ import annotations

from dreambooth.shared.settings import Settings

RESULTS = ("lora", "lycoris")


def is_adapter(settings: Settings) -> bool:
    """Whether an adapter is trained, and not the model itself."""
    return settings.result.output_kind in RESULTS
