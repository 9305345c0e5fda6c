"""The settings' catalog laid out for the page: what stands in sight, what in which accordion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..shared.catalog import as_json, catalog, concept_catalog


@dataclass(frozen=True)
class Theme:
    """An accordion. It takes its group's settings, or those it names; `section` is where its common ones stand."""

    name: str
    title: str
    group: str
    section: str
    names: tuple[str, ...] = ()


# Later themes of a group take what earlier ones did not name, so that a new setting is never left out.
THEMES = (
    Theme("model", "Reading the checkpoint", "model", "model"),
    Theme("result", "The result's file", "result", "model"),
    Theme("images", "Photos", "images", "preset"),
    Theme("captions", "Captions", "captions", "preset"),
    Theme("prior", "Class images", "prior", "preset"),
    Theme(
        "optimizer", "Optimizer and precision", "training", "preset",
        ("optimizer", "optimizer_args", "adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon",
         "max_grad_norm", "mixed_precision", "gradient_checkpointing", "forward_batch_size", "fused_backward"),
    ),
    Theme(
        "averaging", "Noise, average and chance", "training", "preset",
        ("snr_gamma", "offset_noise", "use_ema", "ema_decay", "seed", "deterministic"),
    ),
    Theme("training", "Steps and rates", "training", "preset"),
    Theme("adapters", "Adapters (LoRA)", "adapters", "preset"),
    Theme("saving", "Samples and saving", "saving", "preset"),
)  # fmt: skip
ORDER = (
    "model",
    "result",
    "training",
    "images",
    "captions",
    "prior",
    "adapters",
    "optimizer",
    "averaging",
    "saving",
)
# drawn by the page in forms of their own
OWN_FORM = frozenset({"concepts"})


def groups() -> list[dict[str, Any]]:
    """The themes with their settings as plain JSON values: `{name, title, section, fields: [entry…]}`."""
    found = {theme.name: _fields(index, theme) for index, theme in enumerate(THEMES)}
    themes = {theme.name: theme for theme in THEMES}
    made = [
        {"name": name, "title": themes[name].title, "section": themes[name].section, "fields": found[name]}
        for name in ORDER
    ]
    return [group for group in made if group["fields"]] + _left_over()


def concept_fields() -> list[dict[str, Any]]:
    """The fields of one concept, in the same form as a group's."""
    return [as_json(entry) for entry in concept_catalog()]


def _fields(index: int, theme: Theme) -> list[dict[str, Any]]:
    taken = {name for earlier in THEMES[:index] if earlier.group == theme.group for name in earlier.names}
    return [
        as_json(entry)
        for entry in catalog()
        if entry.group == theme.group
        and entry.name not in OWN_FORM | taken
        and (not theme.names or entry.name in theme.names)
    ]


def _left_over() -> list[dict[str, Any]]:
    """Groups of the catalog that no theme knows, each as an accordion of its own."""
    known = {theme.group for theme in THEMES}
    others: dict[str, list[dict[str, Any]]] = {}
    for entry in catalog():
        if entry.group not in known and entry.name not in OWN_FORM:
            others.setdefault(entry.group, []).append(as_json(entry))
    return [
        {"name": name, "title": name.capitalize(), "section": "preset", "fields": fields}
        for name, fields in others.items()
    ]
