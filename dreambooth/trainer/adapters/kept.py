"""The form of an adapter that went on from a file, kept with the run: once there is a state, the file is not needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dreambooth.shared.errors import InputError
from dreambooth.shared.paths import write_json
from dreambooth.shared.runfolder import RunFolder, saved_step
from dreambooth.shared.settings import Settings
from dreambooth.trainer.adapters.kinds import KINDS
from dreambooth.trainer.adapters.plan import AdapterPlan, PlannedLayer
from dreambooth.trainer.adapters.targets import Target, targets_of
from dreambooth.trainer.models.loading import LoadedModel

FILE = "adapter.json"


def keep_adapter(run: Path, plan: AdapterPlan | None) -> None:
    """Notes in a run's folder what the file that its adapter goes on from has decided."""
    if plan is None or plan.start is None:
        return
    layers = [
        {
            "component": layer.target.component,
            "path": layer.target.path,
            "shape": layer.target.shape,
            "tensors": layer.shapes,
            "alpha": layer.alpha,
        }
        for layer in plan.layers
    ]
    about = {"kind": plan.kind.name, "rank": plan.rank, "alpha": plan.alpha}
    write_json(run / FILE, {**about, "layers": layers})


def kept_adapter(run: Path | None, settings: Settings, base: LoadedModel) -> AdapterPlan | None:
    """The adapter of a run that has a state and went on from a file; None for all others.

    Raises InputError if the model is not the one that the run began with.
    """
    if run is None or not settings.adapters.init_from or not saved_step(RunFolder(run)):
        return None
    try:
        about = json.loads((run / FILE).read_bytes())
        targets = {
            (target.component, target.path): target for target in targets_of(base.source, base.description)
        }
        return AdapterPlan(
            KINDS[about["kind"]],
            about["rank"],
            about["alpha"],
            settings.adapters.lora_dropout,
            tuple(_layer(said, targets) for said in about["layers"]),
        )
    except (OSError, ValueError, KeyError, TypeError):  # older runs have none: the file itself says it
        return None


def _layer(said: dict[str, Any], targets: dict[tuple[str, str], Target]) -> PlannedLayer:
    target = targets.get((said["component"], said["path"]))
    if target is None or list(target.shape) != said["shape"]:
        raise InputError(
            f"this is not the model that the run began with: it has no {said['component']}.{said['path']} of that size",
            where="model",
            remedy="put the model file and config.yaml back as they were when the run began, or start a new run",
        )
    return PlannedLayer(
        target, {name: tuple(shape) for name, shape in said["tensors"].items()}, said["alpha"]
    )
