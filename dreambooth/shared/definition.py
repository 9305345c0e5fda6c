"""How a setting is written down."""

from __future__ import annotations

from dataclasses import field
from typing import Any

# The kinds of result (`output_kind`): those that are beside the model, and those that are the model itself
ADAPTERS = ("lora", "lycoris")
WHOLE = ("checkpoint", "diffusers")


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
    kinds: tuple[str, ...] = (),
    choice_kinds: dict[str, tuple[str, ...]] | None = None,
    listed: bool = False,
) -> Any:
    """One setting: its default and all that is known of it. `common` ones stand in sight on the page; `other` is a
    pattern of text that is taken beside the choices, and what it is called. `kinds` are the kinds of result for which it
    means something (none named: all), `choice_kinds` those of single choices: a page offers it for no others. Text that is
    `listed` names several things, with commas between them, and a file may have them as a list."""
    about = {
        "help": help,
        "label": label,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "unit": unit,
        "common": common,
        "other": other,
        "kinds": kinds,
        "choice_kinds": choice_kinds or {},
        "listed": listed,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=about)
    return field(default=default, metadata=about)
