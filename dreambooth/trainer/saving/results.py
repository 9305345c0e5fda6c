"""From trained weights to a checkpoint that is there whole: the export, and the proof that it learned."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dreambooth.shared.aside import aside
from dreambooth.shared.config import CONCEPT_PATHS, PATHS, to_mapping
from dreambooth.shared.errors import InputError, RunFailed
from dreambooth.shared.runfolder import RunFolder
from dreambooth.shared.settings import Settings
from dreambooth.trainer.adapters.merging import adapted_weights
from dreambooth.trainer.adapters.plan import AdapterPlan
from dreambooth.trainer.adapters.results import is_adapter
from dreambooth.trainer.adapters.writing import training_metadata, write_adapter
from dreambooth.trainer.machine import DTYPES
from dreambooth.trainer.models.convert import LoadedModel, convert, export_single_file
from dreambooth.trainer.models.loading import in_file_order
from dreambooth.trainer.models.sources import open_model
from dreambooth.trainer.saving.checkpoint import State
from dreambooth.trainer.saving.outputs import RUN_ID_KEY, SETTINGS_KEY, check_takes_nothing_away
from dreambooth.trainer.weights import Written
from dreambooth.trainer.weights.base import file_sha256, folder_sha256
from dreambooth.trainer.weights.casting import Overflow

Trained = Mapping[str, Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class WeightChange:
    """How far a component moved, in the written precision.

    `relative` is ‖new − old‖ / ‖old‖ over all its weights, `changed` the share of weights that differ at all.
    """

    relative: float
    changed: float


def weight_change(
    base: LoadedModel, trained: Trained, dtype: torch.dtype, adapter: AdapterPlan | None = None
) -> dict[str, WeightChange]:
    """The change of each trained component against the base, both cast to the written `dtype`; of an adapter, what
    it makes of the weights of its layers when it is written so."""
    if adapter is not None:
        return {
            component: _adapted(base, component, tensors, dtype, adapter)
            for component, tensors in trained.items()
        }
    return {component: _change(base, component, tensors, dtype) for component, tensors in trained.items()}


def _change(
    base: LoadedModel, component: str, new: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> WeightChange:
    return _change_of(
        (before.to(dtype).float(), new[name].detach().cpu().to(dtype).float())
        for name, before in _original(base, component, new)
    )


def _adapted(
    base: LoadedModel,
    component: str,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    adapter: AdapterPlan,
) -> WeightChange:
    written = {name: tensor.detach().cpu().to(dtype).float() for name, tensor in tensors.items()}
    return _change_of(adapted_weights(base, component, adapter, written))


def _change_of(weights: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> WeightChange:
    """Of weights before and after, float32."""
    moved = length = 0.0
    differing = count = 0
    for before, after in weights:
        difference = after - before
        # double accumulators: a billion small squares are lost in float32
        moved += float(difference.double().pow(2).sum())
        length += float(before.double().pow(2).sum())
        differing += int((difference != 0).sum())
        count += difference.numel()
    return WeightChange(relative=(moved / max(length, 1e-30)) ** 0.5, changed=differing / max(count, 1))


def _original(
    base: LoadedModel, component: str, new: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The base's tensors by canonical name, one after the other: never a second model in memory."""
    for binding in in_file_order(base.description.bindings[component], base.source):
        for name, part in binding.split(base.source.read(binding.original)):
            yield name, part.reshape(new[name].shape)


def is_unchanged(changes: Mapping[str, WeightChange]) -> bool:
    """Whether nothing at all was learned, as far as the written file can tell."""
    return all(change.changed == 0 for change in changes.values())


def as_plain(changes: Mapping[str, WeightChange]) -> dict[str, dict[str, float]]:
    return {component: asdict(change) for component, change in changes.items()}


def trained_of(state: State) -> Trained:
    """What a saved state exports: the averages where there are some, else the weights."""
    return {name: {**tensors, **state.averages.get(name, {})} for name, tensors in state.weights.items()}


def metadata(settings: Settings, run_id: str, learned: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What the written file says of itself; folders of the user's machine are left out of it. An adapter's also says
    what it was shown: `learned`, as `learned_by` has it."""
    plain = {key: value for key, value in to_mapping(settings).items() if key not in PATHS}
    plain["concepts"] = [
        {key: value for key, value in concept.items() if key not in CONCEPT_PATHS}
        for concept in plain["concepts"]
    ]
    said = training_metadata(settings, learned or {}) if is_adapter(settings) else {}
    return {**said, RUN_ID_KEY: run_id, SETTINGS_KEY: json.dumps(plain, ensure_ascii=False)}


def learned_by(folder: RunFolder) -> Mapping[str, Any]:
    """What a run was shown, noted when it began."""
    try:
        learned: Mapping[str, Any] = json.loads((folder.path / "data.json").read_bytes())["learned"]
    except (OSError, ValueError, KeyError):  # a run that began before this was noted
        return {}
    return learned


def belongs_to_run(path: Path, run_id: str) -> bool:
    """Whether a checkpoint, in any of the forms that are written, is this run's."""
    try:
        return open_model(path).weights.metadata.get(RUN_ID_KEY) == run_id
    except InputError:
        return False


def may_replace(path: Path, run_id: str, *, overwrite: bool) -> bool:
    """Whether an export may take the place of what is at `path`. Raises InputError if not."""
    if not path.exists():
        return False
    if overwrite or belongs_to_run(path, run_id):
        return True
    raise InputError(
        f"{path} has appeared since the run was started, and is not this run's",
        where="output_name",
        remedy="move that file away, then go on with `resume`: the trained weights are saved",
    )


def write_checkpoint(
    path: Path,
    base: LoadedModel,
    trained: Trained,
    settings: Settings,
    metadata: Mapping[str, str],
    scratch: Path,
    adapter: AdapterPlan | None = None,
) -> Written:
    """Writes the base with the trained weights in their place, or an adapter, whole and read back, or not at all.

    A diffusers folder is made from a single file that is written into `scratch` first, and has the
    sha256 that `folder_sha256` gives it. Raises RunFailed for weights that `output_dtype` has no room for.
    """
    check_takes_nothing_away(path, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    overwrite = may_replace(path, metadata[RUN_ID_KEY], overwrite=settings.result.overwrite)
    dtype = DTYPES[settings.result.output_dtype]
    with _overflow_is_said(scratch):
        if adapter is not None:
            return write_adapter(
                path, base, adapter, trained, output_dtype=dtype, metadata=metadata, overwrite=overwrite
            )
        if settings.result.output_kind == "checkpoint":
            return export_single_file(
                path, base, trained, output_dtype=dtype, metadata=dict(metadata), overwrite=overwrite
            )
        with aside(scratch / path.name) as room:
            room.mkdir()
            single = room / f"{path.name}.safetensors"
            export_single_file(
                single, base, trained, output_dtype=dtype, metadata=dict(metadata), overwrite=False
            )
            made = convert(single, path, overwrite=overwrite)
        return Written(path, made.nbytes, folder_sha256(path))


@contextlib.contextmanager
def _overflow_is_said(run: Path) -> Iterator[None]:
    """What is trained is saved, and a run reads its settings anew when it goes on."""
    try:
        yield
    except Overflow as error:
        raise RunFailed(
            error.what,
            where="output_dtype",
            remedy=f"nothing was written, and what was trained is saved: set output_dtype: float32 in {run / 'config.yaml'}",
        ) from error


def files_of(written: Written) -> list[dict[str, str]]:
    """Every file of a result with its sha256: the checkpoint and what was written beside it, or a folder's files."""
    if written.path.is_dir():
        paths = sorted(path for path in written.path.rglob("*") if path.is_file())
        return [{"path": str(path), "sha256": file_sha256(path)} for path in paths]
    beside = [{"path": str(path), "sha256": file_sha256(path)} for path in written.beside]
    return [{"path": str(written.path), "sha256": written.sha256}, *beside]
