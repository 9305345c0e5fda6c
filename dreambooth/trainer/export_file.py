"""The written checkpoint: the base with the trained tensors replaced, everything else as it was."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from dreambooth.shared.errors import DreamboothError
from dreambooth.trainer.families.names import Binding
from dreambooth.trainer.loading import LoadedModel
from dreambooth.trainer.weights import Entry, TensorInfo, WeightFile, Written, write_weights

WEIGHT_PREFIXES = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
EMA_PREFIX = "model_ema."
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
    the schedule's buffers, integers and unknown tensors never change. The base's EMA copy is left out.
    """
    entries = export_entries(model, trained, output_dtype)
    return write_weights(dst, entries, dict(metadata), extras=model.source.extras, overwrite=overwrite)


def export_entries(model: LoadedModel, trained: Trained, output_dtype: torch.dtype) -> list[Entry]:
    """One entry for every tensor of the base that is kept or replaced, in the base's order."""
    replaced = _replacements(model, trained)
    return [
        _entry(model.source, name, info, output_dtype, replaced.get(name))
        for name, info in model.source.tensors.items()
        if not name.startswith(EMA_PREFIX)
    ]


def written_dtype(name: str, dtype: torch.dtype, output_dtype: torch.dtype | None) -> torch.dtype:
    """What a tensor is written as: the chosen dtype if it is a floating-point weight, else its own."""
    is_weight = dtype.is_floating_point and name.startswith(WEIGHT_PREFIXES)
    return output_dtype if output_dtype is not None and is_weight else dtype


def _replacements(model: LoadedModel, trained: Trained) -> dict[str, list[torch.Tensor]]:
    """The trained tensors by the base's names; several where the base has them as one."""
    found: dict[str, list[torch.Tensor]] = {}
    for component, tensors in trained.items():
        known: set[str] = set()
        for binding in model.description.bindings[component]:
            known.update(binding.canonical)
            if any(name in tensors for name in binding.canonical):
                found[binding.original] = [
                    _trained_tensor(binding, component, tensors, name) for name in binding.canonical
                ]
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
    info: TensorInfo,
    output_dtype: torch.dtype | None,
    replacement: list[torch.Tensor] | None,
) -> Entry:
    dtype = written_dtype(name, info.dtype, output_dtype)
    if replacement is None:
        return Entry(name, dtype, info.shape, partial(_kept, source, name, dtype))
    return Entry(name, dtype, info.shape, partial(_replaced, replacement, info.shape, dtype))


def _kept(source: WeightFile, name: str, dtype: torch.dtype) -> torch.Tensor:
    return source.read(name).to(dtype)


def _replaced(parts: list[torch.Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    parts = [part.detach().to("cpu", dtype) for part in parts]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.reshape(shape)
