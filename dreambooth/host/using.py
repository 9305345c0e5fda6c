"""How a result comes into use: a checkpoint is what the WebUI loads; an adapter is called for by the prompt, on the
checkpoint that it was made on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..shared.config import read_mapping
from ..shared.errors import DreamboothError, InputError
from ..shared.runfolder import RunFolder
from . import checkpoint_file, webui
from .answers import NotFound
from .folders import is_inside
from .schemas import UseBody
from .services import Services

_BASE_NAME = "ss_sd_model_name"
_BASE_HASH = "dreambooth.base_sha256"


def use(shared: Services, run: RunFolder, body: UseBody) -> dict[str, Any]:
    """Makes the WebUI list an export, and loads it (an adapter's base) where `body.load` says so. Raises InputError."""
    path, sha256 = _export(shared, run, body.path)
    checkpoint_file.check_whole(path, sha256=sha256)
    webui.await_first_load()
    told, (failures, _) = _settings(run), webui.failed_loads()
    common = {"prompt": _prompt(told), "resolution": _resolution(told), "failures": failures}
    if is_inside(path, [webui.lora_dir()]):
        return common | _use_adapter(path, told, load=body.load)
    model = webui.load_checkpoint(path) if body.load else _listed(path)
    return common | {
        "title": model.title, "name": model.name, "path": model.path, "load_with": "selectCheckpoint",
        "loaded": body.load,
    }  # fmt: skip


def _export(shared: Services, run: RunFolder, wanted: str) -> tuple[Path, str]:
    """A file that the run has written, and its hash."""
    export = next((one for one in shared.watcher.exports(run) if one["path"] == wanted), None)
    if export is None:
        raise NotFound("this run has written no such file", where="path", remedy="take one of its exports")
    path = Path(wanted)
    if not path.exists():
        raise NotFound("the file is not there any more", where=str(path), remedy="export it again")
    if path.is_dir():
        raise InputError(
            "the WebUI does not use diffusers folders", where=str(path),
            remedy="`convert` makes a single file of it; or train with output_kind: checkpoint",
        )  # fmt: skip
    return path, str(export["sha256"] or "")


def _use_adapter(path: Path, told: Mapping[str, Any], *, load: bool) -> dict[str, Any]:
    about = checkpoint_file.metadata(path)
    base = base_of(str(told.get("model") or ""), about.get(_BASE_HASH, ""))
    name = Path(str(told.get("model") or about.get(_BASE_NAME, ""))).name
    if load and base is None:
        raise InputError(
            f"it was made on {name or 'a checkpoint'}, which the WebUI does not list", where=str(path),
            remedy=f"put that checkpoint into {webui.checkpoints_dir()}",
        )  # fmt: skip
    if load and base is not None:
        base = webui.load_checkpoint(base.path)
    return {
        "title": base.title if base else "", "name": path.stem, "path": base.path if base else "",
        "prompt": f"{_prompt(told)} <lora:{path.stem}:1>".strip(), "load_with": "prompt", "loaded": load,
        "base": base.name if base else name, "selected": _selected_name(),
    }  # fmt: skip


def base_of(path: str, sha256: str) -> webui.Model | None:
    """The WebUI's checkpoint that is the file at `path`, or has its bytes where that is known; None if it lists none."""
    webui.list_in_turn()
    listed, real = webui.checkpoints(), os.path.realpath(path) if path else ""
    same = (one for one in listed if os.path.realpath(one.path) == real)
    alike = (one for one in listed if sha256 and one.sha256 == sha256)
    return next(same, None) or next(alike, None)


def _selected_name() -> str:
    chosen = webui.selected_checkpoint()
    return chosen.name if chosen is not None else ""


def _listed(path: Path) -> webui.Model:
    """A file as the WebUI lists it, after it has listed anew. Raises InputError if it does not."""
    listed = base_of(str(path), "")
    if listed is None:
        raise InputError(
            "the WebUI does not list this file", where=str(path),
            remedy=f"move it into {webui.checkpoints_dir()}; leave `output_dir` empty next time",
        )  # fmt: skip
    return listed


def _settings(run: RunFolder) -> Mapping[str, Any]:
    """A run's settings, also of another version's; {} where they cannot be read."""
    with contextlib.suppress(DreamboothError):
        return read_mapping(run.config)
    return {}


def _prompt(told: Mapping[str, Any]) -> str:
    """The first concept's instance prompt."""
    with contextlib.suppress(LookupError, TypeError):
        return str(told["concepts"][0]["instance_prompt"] or "").replace("[filewords]", "").strip(" ,")
    return ""


def _resolution(told: Mapping[str, Any]) -> int:
    """The side of the pictures that it was trained on, in pixels; 0 where nobody knows."""
    with contextlib.suppress(ValueError, TypeError):
        return int(told.get("resolution", 0))
    return 0
