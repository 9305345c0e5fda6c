"""The form: one object with the names of a config file. Checked here, saved as YAML, remembered between visits."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..shared.concepts import NOT_TAKEN
from ..shared.config import CONCEPT_PATHS, PATHS, setting_fields, settings_from
from ..shared.errors import InputError
from ..shared.paths import write_json
from ..shared.presets import PRESETS
from ..shared.settings import ADAPTERS, Settings
from . import folders

Form = dict[str, Any]
_ABOUT = "page"  # in the file of the last form: what stands beside its settings


def check(form: Mapping[str, Any]) -> Settings:
    """The settings that a form means. Raises InputError that names the field."""
    return settings_from(_texts(form), where="")


def _texts(form: Mapping[str, Any]) -> Form:
    """The values as a config file's reader gives them: text, and None where nothing is said."""
    return {name: _text(value) for name, value in form.items()}


def _text(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _text(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_text(item) for item in value]
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if value is None or isinstance(value, str) else repr(value)


def to_yaml(form: Mapping[str, Any]) -> str:
    """What the form says and nothing else, in the page's order; `train` takes it. Raises InputError."""
    check(form)
    values = {name: form[name] for name in setting_fields() if form.get(name) is not None}
    concepts = values.get("concepts")
    if isinstance(concepts, list):
        values["concepts"] = [_without_empty(concept) for concept in concepts]
    text: str = yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True, width=1000)
    return text


def _without_empty(concept: Mapping[str, Any]) -> Form:
    return {name: value for name, value in concept.items() if value not in ("", None)}


def _plain(values: Form) -> Form:
    plain: Form = json.loads(json.dumps(values))
    return plain


def _as_today(name: str, value: Any) -> Any:
    """A value that was kept when its setting was still a truth value, and is a choice by now."""
    if isinstance(value, bool) and isinstance(setting_fields()[name][1].default, str):
        return "yes" if value else "no"
    return value


def name_of(form: Mapping[str, Any]) -> str:
    """What a saved form is called as a file, without ending."""
    name = form.get("output_name")
    return name if isinstance(name, str) and name.strip() else "dreambooth"


class Places:
    """The folders that a form's paths are made of, and may lead to."""

    def __init__(
        self,
        *,
        data: Path,
        photos: Path,
        runs: Path,
        checkpoints: Path,
        loras: Path,
        models: list[Path],
        free: bool,
    ) -> None:
        self.data, self.photos, self.runs = data, photos, runs
        self.checkpoints, self.loras, self.models = checkpoints, loras, models
        self.free = free

    def results(self, kind: Any) -> Path:
        """Where the WebUI looks for a result of this `output_kind`."""
        return self.loras if kind in ADAPTERS else self.checkpoints

    def roots(self, name: str) -> list[Path]:
        """Where a setting's path may lead when paths may not be chosen."""
        return {
            "model": self.models,
            "vae": self.models,
            "init_from": [self.loras],
            "output_dir": [self.checkpoints, self.loras],
            "runs_dir": [self.runs],
        }.get(name, [self.photos])


def complete(form: Mapping[str, Any], places: Places) -> Form:
    """The form as the trainer gets it: the WebUI's folders where it names none, and every path absolute and allowed.

    Runs are always kept in the WebUI's folder, where the tab finds them. Raises InputError that names the field.
    """
    made = dict(form)
    made["runs_dir"] = str(places.runs)
    if not made.get("output_dir"):
        made["output_dir"] = str(places.results(made.get("output_kind")))
    for name in PATHS:
        if made.get(name):
            made[name] = _resolved(made[name], name, name, places)
    concepts = made.get("concepts")
    if isinstance(concepts, str) and concepts:
        made["concepts"] = _resolved(concepts, "concepts", "concepts", places)
    elif isinstance(concepts, list):
        made["concepts"] = [_concept(one, number, places) for number, one in enumerate(concepts)]
    return made


def left_open(form: Mapping[str, Any], places: Places) -> Form:
    """A form as it came from a file or a run, without the usual place for its kind of result: another kind has another."""
    made = dict(form)
    told = made.get("output_dir")
    if isinstance(told, str) and told and Path(told) == places.results(made.get("output_kind")):
        del made["output_dir"]
    return made


def _concept(concept: Any, number: int, places: Places) -> Any:
    if not isinstance(concept, Mapping):
        return concept  # refused by `check`, which names it
    made = dict(concept)
    for name in CONCEPT_PATHS:
        if made.get(name):
            made[name] = _resolved(made[name], name, f"concepts[{number}].{name}", places)
    return made


def _resolved(value: Any, name: str, setting: str, places: Places) -> str:
    if not isinstance(value, str):
        raise InputError("a path is text", where=setting, setting=setting, remedy="name a folder or a file")
    path = folders.followed(value, base=places.data, setting=setting)
    return str(folders.allowed(path, roots=places.roots(name), free=places.free, setting=setting))


def file_to_read(text: str, places: Places) -> Path:
    """A file that a call may open. Raises InputError."""
    path = folders.followed(text, base=places.data, setting="path")
    return folders.allowed(path, roots=[places.photos, places.runs], free=places.free, setting="path")


def folder_to_read(text: str, places: Places) -> Path:
    """A folder whose photos a call may look at. Raises InputError."""
    path = folders.followed(text, base=places.data, setting="path")
    return folders.allowed(path, roots=[places.photos], free=places.free, setting="path")


@dataclass(frozen=True)
class Kept:
    """A form between visits. What `preset` filled in, all but what is `typed`, goes on moving with the kind of result and
    the model's `family`; each is empty where it is not known."""

    form: Form
    preset: str = ""
    typed: tuple[str, ...] = ()
    family: str = ""


class LastForm:
    """The form as it was last, in a file of the WebUI's data."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, kept: Kept) -> None:
        """Remembers the form, right or wrong."""
        about = {name: value for name, value in dataclasses.asdict(kept).items() if name != "form"}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {**kept.form, _ABOUT: about})

    def load(self) -> Kept | None:
        """The last form without names that mean nothing any more, None if there is none."""
        found = None
        with contextlib.suppress(OSError, ValueError, RecursionError):
            found = json.loads(self.path.read_bytes())
        if not isinstance(found, dict):
            return None
        form = {name: _as_today(name, value) for name, value in found.items() if name in setting_fields()}
        if not isinstance(form.get("concepts", []), list):
            del form["concepts"]
        form["concepts"] = [
            {name: value for name, value in one.items() if name not in NOT_TAKEN}
            for one in form.get("concepts", [])
            if isinstance(one, dict)
        ]
        return Kept(form, **_about(found.get(_ABOUT)))


def _about(found: Any) -> dict[str, Any]:
    """What a file says of how its form came to be, without what means nothing any more."""
    told = found if isinstance(found, dict) else {}
    texts = {name: told[name] for name in ("preset", "family") if isinstance(told.get(name), str)}
    if texts.get("preset") not in {preset.name for preset in PRESETS}:
        texts.pop("preset", None)
    typed = told.get("typed")
    names = typed if isinstance(typed, list) else []
    return {
        **texts,
        "typed": tuple(name for name in names if isinstance(name, str) and name in setting_fields()),
    }
