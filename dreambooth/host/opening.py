"""What a user already has, as a form: a concepts_list.json, the old extension's db_config.json, a saved YAML or JSON,
an earlier run. What could not be taken over is named."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..shared import db_config, tolerant_json
from ..shared.concepts import NOT_TAKEN, Concept, concepts_from
from ..shared.config import NOTES, read_mapping, setting_fields, settings_from, to_mapping
from ..shared.errors import InputError
from ..shared.runfolder import RunFolder
from ..shared.settings import Settings
from ..shared.settings_file import MAX_BYTES
from ..shared.text_files import decode_text
from .forms import Form

# kept by this WebUI, whatever a file says
_OURS = frozenset({"runs_dir"})
_OF_A_CONCEPT = NOT_TAKEN | {field.name for field in dataclasses.fields(Concept)}
_JSON = re.compile(r"\s*(?:\[|\{|[A-Za-z_]\w*\s*=\s*\[)")


@dataclass(frozen=True)
class Opened:
    """A form, and the names of what it could not take."""

    form: Form
    not_taken: list[str]


def open_content(content: str, name: str) -> Opened:
    """What a text means that came from the page; `name` is only shown. Raises InputError."""
    shown = name[:80] or "the file"
    if len(content.encode(errors="replace")) > MAX_BYTES:
        raise InputError("it is too large to hold settings", where=shown, remedy="open a YAML or JSON file")
    listed = _as_list(content, shown)
    if listed is not None:
        return _concepts(listed, shown, None)
    suffix = ".json" if _JSON.match(content.lstrip("\ufeff")) else ".yaml"
    with tempfile.TemporaryDirectory(prefix="dreambooth-open-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / f"opened{suffix}"
        path.write_text(content, encoding="utf-8", errors="replace")
        try:
            values = read_mapping(path)
        except InputError as error:
            raise InputError(error.what, where=shown, remedy=error.remedy) from error
    return _settings(values, shown)


def open_path(path: Path) -> Opened:
    """A file of this machine; a relative folder in a concepts_list.json is relative to it. Raises InputError."""
    try:
        if not path.is_file():
            raise InputError("there is no such file", where=str(path), remedy="check the path")
        with path.open("rb") as file:
            content = decode_text(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise InputError(f"it cannot be read ({error.strerror})", where=str(path)) from error
    except ValueError as error:
        raise InputError("it is no text file", where=str(path), remedy="open a YAML or JSON file") from error
    listed = _as_list(content, str(path))
    if listed is not None:
        return _concepts(listed, str(path), path.parent)
    return open_content(content, str(path))


def open_run(run: RunFolder) -> Opened:
    """The settings of an earlier run as they were asked for, so that what was left open is open again; of a run that does
    not know that any more, those that it went by. But for its name's number and its folder."""
    return _settings(read_mapping(run.asked if run.asked.is_file() else run.config), run.name)


def _as_list(content: str, shown: str) -> list[Any] | None:
    """A concepts_list.json, None for anything else. Raises InputError for a list that is broken."""
    text = content.lstrip("\ufeff")
    if not re.match(r"(?:\s|#[^\n]*\n|//[^\n]*\n)*(?:\[|[A-Za-z_]\w*\s*=\s*\[)", text):
        return None
    try:
        value = tolerant_json.loads(text, path_keys=("instance_data_dir", "class_data_dir"))
    except tolerant_json.BrokenJSON as error:
        raise InputError(
            error.what, where=f"{shown}, line {error.line}, column {error.column}",
            remedy="mend the file at this place",
        ) from error  # fmt: skip
    return value if isinstance(value, list) else None


def _concepts(value: Any, shown: str, folder: Path | None) -> Opened:
    known, unknown = _known_names(value)
    read = concepts_from(known, where=shown, folder=folder)
    return Opened({"concepts": [_said(concept) for concept in read.concepts]}, [*unknown, *read.not_taken])


def _known_names(entries: Any) -> tuple[Any, list[str]]:
    """Concepts without the names that mean nothing here, and these: other trainers' files have many of them."""
    if not isinstance(entries, list):
        return entries, []
    plain = [entry for entry in entries if isinstance(entry, Mapping)]
    unknown = dict.fromkeys(str(key) for entry in plain for key in entry if key not in _OF_A_CONCEPT)
    known = [
        {key: value for key, value in entry.items() if key in _OF_A_CONCEPT}
        if isinstance(entry, Mapping)
        else entry
        for entry in entries
    ]
    return known, list(unknown)


def _with_concepts(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The old extension's `concepts_list` under our name; one concept that stands alone is a list of one."""
    if "concepts" in values:
        return values
    if isinstance(values.get("concepts_list"), list):
        return {"concepts" if name == "concepts_list" else name: value for name, value in values.items()}
    is_one = bool(values.keys() & {"instance_prompt", "instance_data_dir"})
    if is_one and not values.keys() & (setting_fields().keys() - _OF_A_CONCEPT):
        return {"concepts": [dict(values)]}
    return values


def _said(concept: Concept) -> Form:
    """What a concept says beyond the defaults."""
    plain = dataclasses.asdict(Concept())
    return {name: value for name, value in dataclasses.asdict(concept).items() if value != plain[name]}


def _settings(values: Mapping[str, Any], shown: str) -> Opened:
    """Each setting by itself, so that one that means nothing here does not keep the others out."""
    not_taken: list[str] = []
    if db_config.is_db_config(values):
        taken = db_config.from_db_config(values)
        values, not_taken = taken.values, list(taken.not_taken)
    values = _with_concepts(values)
    form: Form = {}
    for name, value in values.items():
        if name in NOTES or name in _OURS:
            continue
        if name not in setting_fields():
            not_taken.append(name)
            continue
        if name == "concepts":
            value, unknown = _known_names(value)
            not_taken += unknown
        try:
            read = settings_from({name: value}, where=shown)
        except InputError as error:
            not_taken.append(f"{name}: {error.what}")
            continue
        not_taken += read.not_taken
        form.update(_differing(read))
    if not form:
        raise InputError(
            "none of its names is a setting", where=shown,
            remedy="open a saved form, a concepts_list.json, a db_config.json or a run's config.yaml",
        )  # fmt: skip
    return Opened(form, list(dict.fromkeys(not_taken)))


def _differing(settings: Settings) -> Form:
    """The values that are not the default, concepts as what they say."""
    plain = to_mapping(Settings())
    form = {name: value for name, value in to_mapping(settings).items() if value != plain[name]}
    if settings.concepts.concepts:
        form["concepts"] = [_said(concept) for concept in settings.concepts.concepts]
    return form
