"""How a setting is written down."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(
    default: Any,
    help: str,
    *,
    label: str = "",
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    unit: str = "",
    common: bool = False,
    other: tuple[str, str] = ("", ""),
) -> Any:
    """One setting: its default and all that is known of it. `common` ones stand in sight on the page; `other` is a
    pattern of text that is taken beside the choices, and what it is called."""
    about = {
        "help": help,
        "label": label,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "unit": unit,
        "common": common,
        "other": other,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=about)
    return field(default=default, metadata=about)
