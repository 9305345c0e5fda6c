"""What an adapter will be, decided before anything is loaded: its kind, its layers, their ranks; and what is wrong."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dreambooth.shared.errors import InputError, concerning
from dreambooth.shared.settings import AdapterSettings, Settings
from dreambooth.trainer.adapters.kinds import KINDS, MAGNITUDE, Kind, Shape, rank_of, scale_of
from dreambooth.trainer.adapters.reading import Bound, bind, open_adapter
from dreambooth.trainer.adapters.results import is_adapter
from dreambooth.trainer.adapters.summary import other_prediction
from dreambooth.trainer.adapters.targets import Target, choose, parse_choice, targets_of
from dreambooth.trainer.families import Family, TextPart
from dreambooth.trainer.models.loading import LoadedModel

DEFAULT_KINDS = {"lora": "lora", "lycoris": "lokr"}
DEFAULT_RANK = 16


@dataclass(frozen=True)
class PlannedLayer:
    """A layer that gets an adapter: the shapes of its tensors by kohya's names, and its alpha."""

    target: Target
    shapes: Mapping[str, Shape]
    alpha: float

    @property
    def scale(self) -> float:
        return scale_of(self.shapes, self.alpha)

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


@dataclass(frozen=True)
class AdapterPlan:
    """An adapter: `layers` in the order of the table of names; `rank` and `alpha` are what most of them have.

    `start` is the file that it goes on from, laid onto the model, or None.
    """

    kind: Kind
    rank: int
    alpha: float
    dropout: float
    layers: tuple[PlannedLayer, ...]
    start: Bound | None = None
    notes: tuple[str, ...] = ()

    def parameters(self, component: str) -> int:
        """How many numbers of a component's layers are trained."""
        return sum(layer.parameters for layer in self.layers if layer.target.component == component)

    def shapes(self, component: str) -> list[Shape]:
        """The shapes of a component's tensors."""
        return [
            shape
            for layer in self.layers
            if layer.target.component == component
            for shape in layer.shapes.values()
        ]

    def __str__(self) -> str:
        roles = dict.fromkeys(layer.target.role.replace("_", "-") for layer in self.layers)
        return (
            f"{self.kind.title} of rank {self.rank}, alpha {self.alpha:g}, "
            f"on {len(self.layers)} layers ({', '.join(roles)})"
        )


def adapter_plan(settings: Settings, base: LoadedModel, components: Collection[str]) -> AdapterPlan | None:
    """The adapter that the settings ask for on `components`, None where the model itself is trained.

    Raises InputError for a kind, rank, choice of layers or file to start from that cannot be.
    """
    asked = settings.adapters
    if not is_adapter(settings):
        _check_nothing_asked(asked)
        return None
    targets = targets_of(base.source, base.description)
    family = base.identified.family
    start = None
    if asked.init_from:
        with concerning("init_from"):
            _check_there(asked.init_from)
            start = bind(open_adapter(asked.init_from), family, targets, setting="init_from")
    kind = _kind(settings, start)
    rank, alpha = _rank_and_alpha(asked, start)
    chosen = _chosen(asked, start, targets, components, _unused(settings, base))
    layers, notes = _layers(kind, chosen, rank, alpha, asked, start)
    blocks = parse_choice(asked.target_blocks).blocks
    if blocks and "unet" not in components:
        named = ", ".join(blocks)
        notes.append(
            f"target_blocks: {named} has no effect: these are blocks of the UNet, which is not trained"
        )
    if start is not None:
        notes += [
            f"the adapter goes on from {asked.init_from}",
            *start.file.notes,
            *other_prediction(start.file, base.identified),
        ]
    if kind.result == "lycoris" and settings.result.output_dtype == "float16":
        notes.append(
            f"a WebUI that computes on a CPU passes over {kind.title} in float16, which its torch cannot multiply "
            "there; for such a one use output_dtype: float32"
        )
    return AdapterPlan(kind, rank, alpha, asked.lora_dropout, tuple(layers), start, tuple(notes))


def _check_there(path: str) -> None:
    """Raises InputError, with the setting's name, if the file to start from is gone."""
    if not Path(path).exists():
        raise InputError(
            f"there is no such file: {path}", where="init_from", remedy="check the path, or put the file back"
        )


def _check_nothing_asked(asked: AdapterSettings) -> None:
    """Raises InputError if something is asked for that only an adapter has."""
    for name in ("init_from", "target_blocks"):
        if getattr(asked, name):
            raise InputError(
                "only an adapter has that, and this trains the whole model",
                where=name,
                remedy="set output_kind: lora (or lycoris) for an adapter, or leave it empty",
            )
    if asked.adapter != "auto":
        raise InputError(
            f"{KINDS[asked.adapter].title} is an adapter, and output_kind says that the whole model is trained",
            where="adapter",
            remedy=f"set output_kind: {KINDS[asked.adapter].result}, or leave adapter at auto",
        )


def _kind(settings: Settings, start: Bound | None) -> Kind:
    result, asked = settings.result.output_kind, settings.adapters.adapter
    wanted = KINDS[DEFAULT_KINDS[result] if asked == "auto" else asked]
    if start is not None:
        found = start.file.kinds
        if len(found) > 1:
            raise _start_error(start, f"it mixes {' and '.join(kind.title for kind in found)}")
        if asked != "auto" and found[0] != wanted:
            remedy = f"leave adapter at auto, with output_kind: {found[0].result}"
            raise _start_error(start, f"it is {found[0].title}, not {wanted.title}", remedy)
        wanted = found[0]
    if wanted.result != result:
        why = f"{wanted.title} is written with output_kind: {wanted.result}, not {result}"
        remedy = f"set output_kind: {wanted.result}"
        if start is not None:
            raise _start_error(start, why, remedy)
        raise InputError(why, where="adapter", remedy=remedy)
    return wanted


def _start_error(start: Bound, why: str, remedy: str = "") -> InputError:
    """`remedy` makes the settings those of the file."""
    return InputError(
        f"training cannot go on from this file: {why}",
        where=f"init_from: {start.file.path}",
        setting="init_from",
        remedy=f"{remedy}, or name another file" if remedy else "name another file, or leave init_from empty",
    )


def _rank_and_alpha(asked: AdapterSettings, start: Bound | None) -> tuple[int, float]:
    """What is asked for, else what the file to start from has, else the usual."""
    if start is None:
        rank = asked.rank or DEFAULT_RANK
        return rank, asked.lora_alpha or float(rank)
    ranks = start.file.ranks
    rank = ranks[-1] if ranks else asked.rank or DEFAULT_RANK
    if asked.rank and asked.rank not in (ranks or (asked.rank,)):
        why = f"its rank is {', '.join(map(str, ranks))}, not {asked.rank}"
        raise _start_error(start, why, "leave rank at 0, which is the file's")
    layers = start.layers.values()
    alphas = [start.file.alpha(layer) for layer in layers if rank_of(layer.shapes) == rank]
    alpha = float(alphas[0]) if alphas and alphas[0] is not None else float(rank)
    if asked.lora_alpha and asked.lora_alpha != alpha:
        why = f"its alpha is {alpha:g}, not {asked.lora_alpha:g}"
        raise _start_error(start, why, "leave lora_alpha at 0, which is the file's")
    return rank, alpha


def _unused(settings: Settings, base: LoadedModel) -> list[str]:
    """Layers of text encoders whose output reaches nobody, and which therefore can learn nothing."""
    family = base.identified.family
    found = []
    for part in family.text_encoders:
        count = int(base.configs[part.component]["num_hidden_layers"])
        used = _layers_used(part, family, count, settings.model.clip_skip)
        found += [f"{part.component}.encoder.layers.{number}" for number in range(used, count)]
    return found


def _layers_used(part: TextPart, family: Family, count: int, clip_skip: int) -> int:
    if part.pooled:  # goes through all of them
        return count
    return count + 1 - part.layer - (clip_skip - 1 if family.clip_skip else 0)


def _chosen(
    asked: AdapterSettings,
    start: Bound | None,
    targets: Sequence[Target],
    components: Collection[str],
    unused: Collection[str],
) -> list[Target]:
    chosen = choose(targets, parse_choice(asked.target_blocks), components, unused)
    if start is None:
        return chosen
    for target in start.layers:
        if target.component not in components:
            part = "UNet" if target.component == "unet" else "text encoder"
            remedy = f"set train_{part.lower().replace(' ', '_')}: yes"
            raise _start_error(start, f"it has layers of the {part}, which is not trained", remedy)
    if asked.target_blocks:
        lost = [target.where for target in start.layers if target not in chosen]
        if lost:
            why = f"{len(lost)} of its layers are not in target_blocks: {lost[0]}, …"
            raise _start_error(start, why, "leave target_blocks empty, which is the file's layers")
        return chosen
    of_components = {target.component for target in start.layers}
    fresh = [target for target in chosen if target.component not in of_components]
    return [target for target in targets if target in start.layers or target in fresh]


def _layers(
    kind: Kind,
    chosen: Sequence[Target],
    rank: int,
    alpha: float,
    asked: AdapterSettings,
    start: Bound | None,
) -> tuple[list[PlannedLayer], list[str]]:
    layers, clipped = [], 0
    fresh = [target for target in chosen if start is None or target not in start.layers]
    if kind.ranked and fresh and not asked.clip_rank:
        _check_rank(rank, min(fresh, key=_width))
    for target in chosen:
        if start is not None and target in start.layers:
            layers.append(_as_in_file(kind, target, start))
            continue
        own = min(rank, _width(target)) if kind.ranked else rank
        clipped += own < rank
        # the factor alpha / rank is everywhere the same
        layers.append(PlannedLayer(target, kind.shapes(target.shape, own), alpha * own / rank))
    notes = [f"rank {rank} is lowered to the width of {clipped} narrower layers"] if clipped else []
    return layers, notes


def _width(target: Target) -> int:
    """The largest rank that a layer can have."""
    return min(target.shape[0], math.prod(target.shape[1:]))


def _check_rank(rank: int, narrowest: Target) -> None:
    width = _width(narrowest)
    if rank > width:
        raise InputError(
            f"rank {rank} is above the width {width} of {narrowest.where}",
            where="rank",
            remedy=f"use at most {width}, or set clip_rank: yes, by which narrow layers get less",
        )


def _as_in_file(kind: Kind, target: Target, start: Bound) -> PlannedLayer:
    layer = start.layers[target]
    weights = {name: shape for name, shape in layer.shapes.items() if name != "alpha"}
    shapes = kind.like(target.shape, weights)
    sizes = [{name: math.prod(shape) for name, shape in found.items()} for found in (shapes or {}, weights)]
    for_outputs = weights.get(MAGNITUDE, (1,))[0] != 1
    if for_outputs:
        why = "has a magnitude for each output, as the WebUI does not compute it"
        raise _start_error(start, f"its {layer.name} {why}")
    if shapes is None or sizes[0] != sizes[1]:
        odd = sorted(weights.keys() - kind.starts.keys()) or sorted(weights)
        why = f"is made of {', '.join(odd)}, which can be used and not trained here"
        raise _start_error(start, f"its {layer.name} {why}")
    alpha = start.file.alpha(layer)
    return PlannedLayer(target, shapes, float(rank_of(shapes) or 1) if alpha is None else alpha)


def with_resolved(settings: Settings, plan: AdapterPlan | None) -> Settings:
    """The settings with what `auto` and 0 have become, and the file's whole path."""
    if plan is None:
        return settings
    asked = settings.adapters
    resolved = replace(
        asked,
        adapter=plan.kind.name,
        rank=plan.rank,
        lora_alpha=plan.alpha,
        init_from=str(Path(asked.init_from).absolute()) if asked.init_from else "",
    )
    return replace(settings, adapters=resolved)
