"""The settings as data: what the page, the REST schema and the README's table are made from.

`python -m dreambooth.shared.catalog` prints that table.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from typing import Any

from .concepts import Concept
from .config import groups, number_text


@dataclass(frozen=True)
class Entry:
    """One setting: `kind` is int, float, bool, str, dict or concepts; `group` orders page and help; `kinds` and
    `choice_kinds` are the kinds of result that it and its choices are for (see definition.py)."""

    name: str
    group: str
    kind: str
    default: Any
    label: str
    help: str
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    unit: str
    common: bool
    other: str = ""
    kinds: tuple[str, ...] = ()
    choice_kinds: dict[str, tuple[str, ...]] = field(default_factory=dict)


def catalog() -> list[Entry]:
    """Every setting once, in the page's order."""
    return [_entry(group, item) for group, cls in groups().items() for item in dataclasses.fields(cls)]


def concept_catalog() -> list[Entry]:
    """The fields of one concept, in the same form."""
    return [_entry("concept", item) for item in dataclasses.fields(Concept)]


def schema() -> list[dict[str, Any]]:
    """The catalog as plain JSON values, for a page or a REST client."""
    return [as_json(entry) for entry in catalog()]


def as_json(entry: Entry) -> dict[str, Any]:
    """One entry as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(entry)))
    return plain


def reference_table() -> str:
    """The README's table of settings, as Markdown."""
    lines = []
    for group in groups():
        lines += [f"**{group}**", "", "| setting | default | meaning |", "|---|---|---|"]
        entries = [entry for entry in catalog() if entry.group == group]
        lines += [f"| `{entry.name}` | {_default_text(entry)} | {_meaning(entry)} |" for entry in entries]
        lines.append("")
    return "\n".join(lines)


def _entry(group: str, item: dataclasses.Field[Any]) -> Entry:
    about = item.metadata
    factory = item.default_factory
    default = factory() if factory is not dataclasses.MISSING else item.default
    kind = "concepts" if item.name == "concepts" else str(item.type).split("[")[0].split(" ")[0]
    return Entry(
        name=item.name,
        group=group,
        kind=kind,
        default=default,
        label=about.get("label") or item.name.replace("_", " ").capitalize(),
        help=about.get("help", ""),
        choices=tuple(about.get("choices") or ()),
        minimum=about.get("minimum"),
        maximum=about.get("maximum"),
        unit=about.get("unit", ""),
        common=bool(about.get("common")),
        other=(about.get("other") or ("", ""))[1],
        kinds=tuple(about.get("kinds") or ()),
        choice_kinds=dict(about.get("choice_kinds") or {}),
    )


def _default_text(entry: Entry) -> str:
    if entry.kind == "bool":
        return "yes" if entry.default else "no"
    if entry.default in ("", None) or entry.default in ([], {}):
        return "–"
    return f"{entry.default:g}" if isinstance(entry.default, float) else str(entry.default)


def _meaning(entry: Entry) -> str:
    parts = [entry.help]
    if entry.choices:
        choices = ", ".join(f"`{choice}`" for choice in entry.choices)
        parts.append(f"One of {choices}{f' or {entry.other}' if entry.other else ''}.")
    low, high = entry.minimum, entry.maximum
    unit = f" {entry.unit}" if entry.unit else ""
    if low is not None and high is not None:
        parts.append(f"From {number_text(low)} to {number_text(high)}{unit}.")
    elif low is not None and low != 0:
        parts.append(f"At least {number_text(low)}{unit}.")
    return " ".join(parts).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    # as bytes, so that a redirected table is UTF-8 on Windows too
    sys.stdout.buffer.write(reference_table().encode())
