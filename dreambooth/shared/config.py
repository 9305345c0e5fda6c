"""Reads settings: a YAML or JSON file, `key=value` overrides, one complete and checked `Settings`.

Text is text: every scalar is read as it stands in the file and becomes a number or a truth value only where
its setting is one, so that `mixed_precision: no`, `output_name: 001` and `${x}` mean what they say.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreambooth.shared import tolerant_json
from dreambooth.shared.concepts import ConceptsFile, concepts_from, read_concepts
from dreambooth.shared.errors import InputError
from dreambooth.shared.settings import GROUPS, Settings

PATHS = frozenset({"model", "vae", "output_dir", "runs_dir"})
CONCEPT_PATHS = frozenset({"instance_data_dir", "class_data_dir"})
# Written into a run's config.yaml beside the settings; no settings themselves.
NOTES = frozenset({"versions", "run"})
_EMPTY = ("", "null", "Null", "NULL", "~")
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "yes or no", str: "text"}


def groups() -> dict[str, type]:
    """The settings' groups by name, in the page's order."""
    hints = get_type_hints(Settings)
    return {name: hints[name] for name in GROUPS}


def setting_fields() -> dict[str, tuple[str, dataclasses.Field[Any]]]:
    """Every setting's name → its group's name and its definition."""
    return {item.name: (group, item) for group, cls in groups().items() for item in dataclasses.fields(cls)}


def load_settings(path: Path | None, overrides: Iterable[str] = (), *, where: str = "") -> Settings:
    """The settings of a file with overrides (`key=value`) on top; the rest are defaults.

    Relative paths are relative to the file's folder, in overrides to the working folder. Raises InputError
    that names the key for an unknown or mistyped setting and for a value out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = _make_paths_absolute(read_mapping(path), path.absolute().parent)
        where = str(path)
    given = _make_paths_absolute(dict(_split_override(text) for text in overrides), Path.cwd())
    values.update(given)
    return settings_from(values, where=where or "command line")


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file as nested dicts and lists whose scalars are all text. Raises InputError."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=str(path), remedy="check the path") from error
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", where=str(path), remedy="save it as UTF-8") from error
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", where=str(path), remedy="name a YAML or JSON file"
        ) from error
    if path.suffix.lower() == ".json":
        content = _as_text(_parse_json(text, path))
    else:
        content = _parse_yaml(text, path)
    if content in (None, ""):
        content = {}
    if not isinstance(content, dict):
        raise InputError(
            "does not hold settings (names and values)", where=str(path),
            remedy="write one `name: value` a line; a list of concepts belongs under `concepts:`",
        )  # fmt: skip
    return content


def _parse_json(text: str, path: Path) -> object:
    try:
        return tolerant_json.loads(text, path_keys=PATHS | CONCEPT_PATHS | {"concepts"})
    except tolerant_json.BrokenJSON as error:
        raise InputError(
            f"is no JSON at line {error.line}, column {error.column}: {error.what}", where=str(path),
            remedy="look at that place: a missing comma, a quote or a bracket that is not closed",
        ) from error  # fmt: skip


def _parse_yaml(text: str, path: Path) -> Any:
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)  # the base loader makes nothing but text
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(
            f"is no YAML{place}: {error.problem}", where=str(path),
            remedy="look at that line: indentation, a colon without a space, a quote that is not closed, a tab",
        ) from error  # fmt: skip
    except yaml.YAMLError as error:
        raise InputError(f"is no YAML: {error}", where=str(path), remedy="save it as plain text") from error


def _as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def _split_override(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{text!r} is no setting", where="command line", remedy="write name=value")
    return key.strip(), value


def _make_paths_absolute(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Resolves the paths in `values`, and a `concepts` that names a file, against `folder`."""
    resolved = dict(values)
    for key in PATHS & values.keys():
        resolved[key] = _absolute(values[key], folder)
    concepts = values.get("concepts")
    if isinstance(concepts, str):
        resolved["concepts"] = _absolute(concepts, folder)
    elif isinstance(concepts, list):
        resolved["concepts"] = [
            {key: _absolute(item, folder) if key in CONCEPT_PATHS else item for key, item in concept.items()}
            if isinstance(concept, dict) else concept
            for concept in concepts
        ]  # fmt: skip
    return resolved


def _absolute(value: Any, folder: Path) -> Any:
    if not isinstance(value, str) or value in _EMPTY:
        return value
    return str((folder / Path(value).expanduser()).absolute())


def settings_from(values: Mapping[str, Any], *, where: str) -> Settings:
    """`Settings` from flat names and text values. Raises InputError that names the key."""
    known = setting_fields()
    for key in values:
        if key not in known and key not in NOTES:
            raise _unknown(key, known, where)
    made: dict[str, Any] = {}
    for group, cls in groups().items():
        own = {item.name: values[item.name] for item in dataclasses.fields(cls) if item.name in values}
        if group == "concepts":
            read = _concepts(own.get("concepts", []), where)
            made[group], made["not_taken"] = cls(concepts=read.concepts), tuple(read.not_taken)
        else:
            made[group] = build(cls, own, where)
    return Settings(**made)


def _unknown(key: str, known: Iterable[str], where: str) -> InputError:
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else "the README lists all settings"
    return InputError(f"there is no setting `{key}`", where=where, remedy=hint)


def build(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    """One settings dataclass from text values, typed by OmegaConf and checked against choices and range."""
    node = OmegaConf.structured(cls)
    for item in dataclasses.fields(cls):
        if item.name in values:
            _assign(node, item, values[item.name], where, prefix)
    made = OmegaConf.to_object(node)
    for item in dataclasses.fields(cls):
        check_value(item, getattr(made, item.name), where, prefix)
    return made


def _assign(node: DictConfig, item: dataclasses.Field[Any], value: Any, where: str, prefix: str) -> None:
    kind = str(item.type)
    name = f"{prefix}{item.name}"
    if kind.startswith("dict"):
        if value in _EMPTY:
            return
        if not isinstance(value, dict):
            raise InputError(
                f"`{name}` needs names with values", where=where, remedy=f"write {name}: {{name: value}}"
            )
        value = {key: _escape(text) if isinstance(text, str) else text for key, text in value.items()}
    elif isinstance(value, (dict, list)):
        raise InputError(f"`{name}` takes one value, not a list", where=where, remedy=_expected(item))
    elif kind.startswith("str"):
        value = _escape(_choice(str(value), item.metadata.get("choices") or ()))
    elif isinstance(value, str) and value.strip() in _EMPTY:
        return
    elif kind.startswith("int"):
        value = _whole(value)
    try:
        OmegaConf.update(node, item.name, value)
    except OmegaConfBaseException as error:
        raise InputError(f"`{name}` cannot be {value!r}", where=where, remedy=_expected(item)) from error


def _choice(text: str, choices: tuple[str, ...]) -> str:
    """A choice in any case: `AdamW8bit` is `adamw8bit`."""
    return next((choice for choice in choices if choice.lower() == text.strip().lower()), text)


def _escape(text: str) -> str:
    """Text as OmegaConf must be given it to be read back unchanged: `${` is no interpolation here."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _whole(value: Any) -> Any:
    """`1e3` and `100.0` are whole numbers to people; what is none is left for OmegaConf to refuse."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    plain = str(value).strip().lstrip("+-").isdigit()  # read exactly, however long
    return int(number) if not plain and math.isfinite(number) and number.is_integer() else value


def _expected(item: dataclasses.Field[Any]) -> str:
    about = item.metadata
    if about.get("choices"):
        return f"choose one of {', '.join(about['choices'])}"
    kind = {"int": int, "float": float, "bool": bool}.get(str(item.type).split(" ")[0], str)
    return f"give {_TYPE_NAMES[kind]}{_range_text(about)}"


def _range_text(about: Mapping[str, Any]) -> str:
    low, high = about.get("minimum"), about.get("maximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    return f" of at least {low:g}" if low is not None else ""


def check_value(item: dataclasses.Field[Any], value: Any, where: str, prefix: str = "") -> None:
    """Raises InputError if a value is outside its setting's choices or range."""
    about, name = item.metadata, f"{prefix}{item.name}"
    choices = about.get("choices") or ()
    if choices and value not in choices:
        raise InputError(f"`{name}` cannot be {value!r}", where=where, remedy=_expected(item))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = about.get("minimum"), about.get("maximum")
        if (
            not math.isfinite(value)
            or (low is not None and value < low)
            or (high is not None and value > high)
        ):
            raise InputError(f"`{name}` cannot be {value}", where=where, remedy=_expected(item))


def _concepts(value: Any, where: str) -> ConceptsFile:
    if isinstance(value, str):
        return ConceptsFile([], []) if value in _EMPTY else read_concepts(Path(value))
    if value == []:
        return ConceptsFile([], [])
    entries = [value] if isinstance(value, dict) else value
    given = [
        {key: text for key, text in entry.items() if text not in _EMPTY} if isinstance(entry, dict) else entry
        for entry in entries
    ]
    return concepts_from(given, where=where)


def to_mapping(settings: Settings) -> dict[str, Any]:
    """Settings as flat names and plain values, in the page's order."""
    flat: dict[str, Any] = {}
    for group in GROUPS:
        flat.update(dataclasses.asdict(getattr(settings, group)))
    return flat


def dump_settings(settings: Settings, notes: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """The settings as YAML that `load_settings` reads back to the same settings.

    `notes` (`versions`, `run`) stand beside them and are no settings; `read_notes` reads them.
    """
    flat: dict[str, Any] = to_mapping(settings)
    for name, values in (notes or {}).items():
        if name not in NOTES:
            raise ValueError(f"{name!r} is not one of {sorted(NOTES)}")
        flat[name] = dict(values)
    text: str = yaml.safe_dump(flat, sort_keys=False, allow_unicode=True, width=1000)
    return text


def read_notes(path: Path, name: str) -> dict[str, str]:
    """What stands beside the settings of a run's config.yaml under `name`; {} if nothing does."""
    values = read_mapping(path).get(name)
    return {str(key): str(value) for key, value in values.items()} if isinstance(values, dict) else {}
