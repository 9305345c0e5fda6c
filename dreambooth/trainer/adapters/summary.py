"""What an adapter's file is, told from the file alone: what `inspect` shows."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreambooth.trainer.adapters import kinds
from dreambooth.trainer.adapters.forms import misfit
from dreambooth.trainer.adapters.names import foreign_model
from dreambooth.trainer.adapters.reading import AdapterFile, problems, strangers
from dreambooth.trainer.adapters.told import TITLES
from dreambooth.trainer.families import Identified
from dreambooth.trainer.families.detect import told_by_file

# What a layer does, by a part of its name in any of the ways in which files call it
_ROLES = (
    ("projections", r"proj_(in|out)$"),
    ("attention", r"attn"),
    ("feed-forward", r"ff[._]net|mlp"),
    ("embeddings", r"time_emb|label_emb|add_embedding|emb_layers"),
    ("convolutions", r"conv|in_layers|out_layers|skip_connection|[._]op$"),
)
_COMPONENTS = (
    ("second text encoder", ("lora_te2_", "text_encoder_2.")),
    ("text encoder", ("lora_te_", "lora_te1_", "text_encoder.", "base_model.model.text_model.")),
)


@dataclass(frozen=True)
class AdapterSummary:
    """`kind` and `family` are titles ("" for an unknown family); `layers` count what is changed, by component and role;
    `alphas` are those of the layers, each once, `unusable` says what in it cannot be used here, and `notes` what else
    there is to say."""

    kind: str
    family: str
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    layers: Mapping[str, Mapping[str, int]]
    unusable: str
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def lines(self) -> list[str]:
        """As `inspect` prints it."""
        of = f" for {self.family}" if self.family else ", which does not say its model's family"
        ranks, alphas = (
            ", ".join(f"{n:g}" for n in numbers) or "none" for numbers in (self.ranks, self.alphas)
        )
        lines = [f"  adapter        {self.kind}{of}", f"  rank           {ranks}; alpha {alphas}"]
        for component, roles in self.layers.items():
            counted = ", ".join(f"{role} ({count} layers)" for role, count in roles.items())
            lines.append(f"  changes        {component}: {counted}")
        lines += [f"  note           {note}" for note in self.notes]
        return [*lines, *([f"  not usable     {self.unusable}"] if self.unusable else [])]


def summarize(file: AdapterFile, *, read: bool = True) -> AdapterSummary:
    """What a file is; without `read` its numbers are not looked at."""
    layers: dict[str, Counter[str]] = {}
    alphas: dict[float, None] = {}
    problem = next(problems(file, read=read), "")
    for layer in file.layers:
        layers.setdefault(_component(layer.name), Counter())[_role(layer.name)] += 1
        if misfit(layer.shapes):
            continue
        alpha = file.alpha(layer)
        rank = kinds.rank_of(layer.shapes)
        if rank is not None:
            alphas[float(rank) if alpha is None else alpha] = None
    return AdapterSummary(
        kind=" and ".join(kind.title for kind in file.kinds),
        family=TITLES.get(file.family, "")
        or foreign_model(file.metadata, [layer.name for layer in file.layers]),
        ranks=file.ranks,
        alphas=tuple(sorted(alphas)),
        layers={component: dict(roles) for component, roles in layers.items()},
        unusable=f"damaged: {problem}" if problem else strangers(file),
        notes=file.notes,
    )


def other_prediction(file: AdapterFile, identified: Identified) -> list[str]:
    """A note where a file says that it was made for a model that predicts something else than this one."""
    told = told_by_file(file.source, None)
    if told is None or told[0] == identified.prediction_type:
        return []
    return [
        f"{file.path.name} was made for a model that predicts {told[0]} ({told[1]}), and this one predicts "
        f"{identified.prediction_type}: its pictures may be worse for it"
    ]


def _component(name: str) -> str:
    return next((title for title, starts in _COMPONENTS if name.startswith(starts)), "UNet")


def _role(name: str) -> str:
    return next((role for role, pattern in _ROLES if re.search(pattern, name)), "others")
