"""The written checkpoint: the base with the trained tensors replaced, everything else as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from dreambooth.shared.errors import DreamboothError, InputError
from dreambooth.shared.paths import takes_away, write_whole
from dreambooth.trainer.families.description import Description
from dreambooth.trainer.families.detect import is_false_mark, marks_of
from dreambooth.trainer.families.ldm_yaml import (
    is_config,
    needs_yaml,
    with_parameterization,
    yaml_path,
    yaml_text,
)
from dreambooth.trainer.families.names import Binding
from dreambooth.trainer.models.loading import LoadedModel
from dreambooth.trainer.models.modelspec import modelspec
from dreambooth.trainer.models.place_base import (
    PLACEHOLDER,
    clip_folder_of,
    with_clip_folder,
    write_clip_folder,
)
from dreambooth.trainer.models.sources import EMA_PREFIX
from dreambooth.trainer.weights import Entry, WeightFile, Written, write_weights
from dreambooth.trainer.weights.casting import check_fits, narrowed

WEIGHT_PREFIXES = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")
EMA_COUNTERS = ("model_ema.decay", "model_ema.num_updates")
EMA_LEFT_OUT = "the base's averaged (EMA) weights, which the training did not touch, were left out"
Trained = Mapping[str, Mapping[str, torch.Tensor]]


def export_single_file(
    dst: str | Path,
    model: LoadedModel,
    trained: Trained,
    *,
    output_dtype: torch.dtype,
    metadata: Mapping[str, str],
    overwrite: bool,
) -> Written:
    """Write the base with `trained`'s tensors (by component and canonical name) in place of its own.

    Every other tensor is the base's, byte for byte, but for floating-point weights, which take `output_dtype`;
    the schedule's buffers, integers and unknown tensors never change. The base's averaged weights are left out.
    The modelspec metadata and the base's hash are added, `metadata` wins. A `.yaml` is written beside every SD2
    or v-prediction result and every one whose base has one.

    Raises InputError if `dst` exists and `overwrite` is not set, Overflow if a weight has no room in `output_dtype`,
    DreamboothError if the disk is full or the file does not read back as it was meant; then nothing is left behind.
    """
    source, dst = model.source, Path(dst)
    entries = export_entries(source, model.description, trained, output_dtype)
    about = {**modelspec(source, model.identified, title=dst.stem), **_base(model)}
    notes: tuple[str, ...] = ()
    if any(name.startswith(EMA_PREFIX) for name in source.tensors):
        about["dreambooth.ema"], notes = EMA_LEFT_OUT, (EMA_LEFT_OUT,)
    beside = yaml_beside(dst, source, model.description, overwrite=overwrite)
    written = write_weights(
        dst,
        entries,
        {**about, **metadata},
        extras=source.extras,
        overwrite=overwrite,
        before_rename=beside.write,
    )
    return replace(written, beside=beside.paths, notes=notes)


def export_entries(
    source: WeightFile,
    description: Description,
    trained: Trained,
    output_dtype: torch.dtype | None,
    *,
    keep_ema: bool = False,
) -> list[Entry]:
    """One entry for every tensor of the base that is kept or replaced, in the base's order.

    With an `output_dtype` of None every tensor keeps its own. Where other programs tell what a family's checkpoints
    predict by marker tensors, those that it needs are added, and those that say something else are left out.
    """
    replaced, identified = _replacements(description, trained), description.identified
    entries = [
        _entry(source, name, written_dtype(name, info.dtype, output_dtype), replaced.get(name))
        for name, info in source.tensors.items()
        if (keep_ema or not name.startswith(EMA_PREFIX)) and not is_false_mark(name, identified)
    ]
    marks = [name for name in marks_of(identified) if name not in source.tensors]
    return entries + [Entry(name, torch.float32, (0,), partial(torch.empty, 0)) for name in marks]


def written_dtype(name: str, dtype: torch.dtype, output_dtype: torch.dtype | None) -> torch.dtype:
    """What a tensor is written as: the chosen dtype if it is a floating-point weight, else its own."""
    is_weight = name.startswith(WEIGHT_PREFIXES) or (name.startswith(EMA_PREFIX) and name not in EMA_COUNTERS)
    return output_dtype if output_dtype is not None and is_weight and dtype.is_floating_point else dtype


@dataclass(frozen=True)
class Beside:
    """A small file that belongs beside a checkpoint; none without content. `clip_folder` is a folder that it names, for
    what was made from the small base as it comes with the project."""

    path: Path
    content: bytes | None
    clip_folder: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path,) if self.content is not None else ()

    def write(self) -> None:
        if self.clip_folder is not None:
            write_clip_folder(self.clip_folder)
        if self.content is not None and not self.is_there():
            write_whole(self.path, self.content)

    def is_there(self) -> bool:
        return self.path.exists() and self.path.read_bytes() == self.content


def yaml_beside(dst: Path, source: WeightFile, description: Description, *, overwrite: bool) -> Beside:
    """The `.yaml` that `dst` needs: the base's own if it has one, else one of ours for SD2 and for v.

    Raises InputError if a file of another content has its name and may not be replaced: the base's own never may.
    """
    identified, theirs = description.identified, yaml_path(source.path)
    content = clip_folder = None
    if source.path.is_file() and theirs.is_file():
        text = theirs.read_text(encoding="utf-8")
        if PLACEHOLDER in text:
            clip_folder = clip_folder_of(dst)
            text = with_clip_folder(text, clip_folder)
        content = with_parameterization(text, identified.prediction_type).encode()
    elif needs_yaml(identified):
        content = yaml_text(identified, description.configs).encode()
    beside = Beside(yaml_path(dst), content, clip_folder)
    if content is not None and takes_away(beside.path, theirs) and not beside.is_there():
        raise InputError(
            "this .yaml is the base model's own, and the result needs another one",
            where=str(beside.path),
            remedy="choose another name",
        )
    replaceable = (
        not beside.path.exists()
        or beside.is_there()
        or (overwrite and dst.exists() and is_config(beside.path))
    )
    if content is not None and not replaceable:
        raise InputError(
            "another .yaml has this name, and would be taken for the written checkpoint's",
            where=str(beside.path),
            remedy="choose another name, or move that file away",
        )
    return beside


def _base(model: LoadedModel) -> dict[str, str]:
    found = {"dreambooth.base": model.source.path.name}
    return found | ({"dreambooth.base_sha256": model.base_sha256} if model.base_sha256 else {})


@dataclass(frozen=True)
class Replacement:
    """The trained tensors that one of the base's becomes; several where the base has them as one."""

    binding: Binding
    parts: list[torch.Tensor]

    def whole(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """What is written, in the file's shape. Raises Overflow for what the dtype has no room for."""
        return self.binding.join([narrowed(self.binding.original, part, dtype) for part in self.parts], shape)


def _replacements(description: Description, trained: Trained) -> dict[str, Replacement]:
    """The trained tensors by the base's names."""
    found: dict[str, Replacement] = {}
    for component, tensors in trained.items():
        known: set[str] = set()
        for binding in description.bindings[component]:
            known.update(binding.canonical)
            if any(name in tensors for name in binding.canonical):
                parts = [_trained_tensor(binding, component, tensors, name) for name in binding.canonical]
                found[binding.original] = Replacement(binding, parts)
        unknown = sorted(set(tensors) - known)
        if unknown:
            raise DreamboothError(f"trained tensors of {component} that the base has not: {unknown[:6]}")
    return found


def _trained_tensor(
    binding: Binding, component: str, tensors: Mapping[str, torch.Tensor], name: str
) -> torch.Tensor:
    if name not in tensors:
        raise DreamboothError(f"{binding.original} needs {component}'s {name}, which was not given")
    return tensors[name]


def _entry(
    source: WeightFile,
    name: str,
    dtype: torch.dtype,
    replacement: Replacement | None,
) -> Entry:
    if replacement is None:
        return kept(source, name, dtype)
    shape = source.tensors[name].shape
    return Entry(name, dtype, shape, partial(replacement.whole, shape, dtype))


def kept(source: WeightFile, name: str, dtype: torch.dtype) -> Entry:
    """A tensor of the source as it is, or cast: byte for byte if it has the dtype already."""
    info = source.tensors[name]
    raw = source.raw(name) if info.dtype == dtype else None
    return Entry(name, dtype, info.shape, partial(_cast, source, name, dtype), raw)


def _cast(source: WeightFile, name: str, dtype: torch.dtype) -> torch.Tensor:
    def read(wanted: torch.dtype) -> torch.Tensor:
        out = torch.empty(source.tensors[name].shape, dtype=wanted)
        source.read_into(name, out)
        return out

    made = read(dtype)
    # what is infinite in the source already stays so
    check_fits(name, made, lambda: read(torch.float64), where=str(source.path))
    return made
