"""Settings from a file, with `key=value` overrides on top: one complete and checked `Settings`, and back to YAML.

Text is text: every scalar is read as it stands in the file and becomes a number or a truth value only where
its setting is one, so that `mixed_precision: no`, `output_name: 001` and `${x}` mean what they say.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .concepts import ConceptsFile, concepts_from, read_concepts
from .db_config import PATH_KEYS as DB_PATHS
from .db_config import from_db_config, is_db_config
from .errors import InputError, concerning, quoted
from .paths import is_from_windows
from .settings import GROUPS, Settings
from .settings_file import parse_yaml, read_file

PATHS = frozenset({"model", "vae", "output_dir", "runs_dir", "init_from"})
CONCEPT_PATHS = frozenset({"instance_data_dir", "class_data_dir"})
# Written into a run's config.yaml beside the settings; no settings themselves.
NOTES = frozenset({"versions", "run"})
COMMAND_LINE = "command line"
_EMPTY = ("", "null", "Null", "NULL", "~")
_TYPE_NAMES = {
    "int": "a whole number", "float": "a number", "bool": "yes or no", "str": "text", "dict": "names with values",
}  # fmt: skip
_YES_OR_NO = frozenset(["yes", "no", "true", "false", "on", "off", "y", "n", "1", "0"])
_TRUTH = {"true": "yes", "on": "yes", "y": "yes", "false": "no", "off": "no", "n": "no"}
_LARGEST = 2**53  # the largest whole number that JavaScript and every JSON reader keep exactly


def groups() -> dict[str, type]:
    """The settings' groups by name, in the page's order."""
    hints = get_type_hints(Settings)
    return {name: hints[name] for name in GROUPS}


def setting_fields() -> dict[str, tuple[str, dataclasses.Field[Any]]]:
    """Every setting's name → its group's name and its definition."""
    return {item.name: (group, item) for group, cls in groups().items() for item in dataclasses.fields(cls)}


def load_settings(path: Path | None, overrides: Iterable[str] = (), *, where: str = "") -> Settings:
    """The settings of a file with overrides (`key=value`) on top; the rest are defaults. The old extension's
    `db_config.json` is taken over as far as it has a meaning here (`Settings.not_taken` names the rest).

    Relative paths are relative to the file's folder, in overrides to the working folder. Raises InputError
    that names the key for an unknown or mistyped setting and for a value out of range; what is wrong in an
    override is said of the command line, all else of the file (or of `where`).
    """
    values: dict[str, Any] = {}
    left: list[str] = []
    if path is not None:
        values = read_mapping(path)
        if is_db_config(values):
            old = from_db_config(values)
            values, left = old.values, old.not_taken
        values = _make_paths_absolute(values, path.absolute().parent)
    given = _make_paths_absolute(dict(_split_override(text) for text in overrides), Path.cwd())
    if given:
        settings_from(given, where=COMMAND_LINE)
    settings = settings_from({**values, **given}, where=where or (str(path) if path else COMMAND_LINE))
    return dataclasses.replace(settings, not_taken=(*left, *settings.not_taken))


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file as nested dicts and lists whose scalars are all text, None where it says nothing.
    Raises InputError."""
    return read_file(path, path_keys=PATHS | CONCEPT_PATHS | DB_PATHS | {"concepts"})


def _split_override(text: str) -> tuple[str, Any]:
    """`key=value`; a value in brackets is read as YAML where the setting takes several values or names with values."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"{text!r} is no setting", where=COMMAND_LINE, remedy="write name=value")
    if key in setting_fields() and value.lstrip()[:1] in ("[", "{"):
        item = setting_fields()[key][1]
        if _kind(item) in ("list", "dict") or item.metadata.get("listed"):
            return key, parse_yaml(value, where=f"{COMMAND_LINE}, {key}")
    return key, value


def _make_paths_absolute(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Resolves the paths in `values`, and a `concepts` that names a file, against `folder`."""
    resolved = dict(values)
    for key in PATHS & values.keys():
        resolved[key] = _absolute(values[key], folder)
    concepts = values.get("concepts")
    if isinstance(concepts, str):
        resolved["concepts"] = _absolute(concepts, folder)
    elif concepts:
        resolved["concepts"] = [
            {key: _absolute(item, folder) if key in CONCEPT_PATHS else item for key, item in concept.items()}
            if isinstance(concept, dict) else concept
            for concept in ([concepts] if isinstance(concepts, dict) else concepts)
        ]  # fmt: skip
    return resolved


def _absolute(value: Any, folder: Path) -> Any:
    if not isinstance(value, str):
        return value
    if value in _EMPTY:
        return ""
    if is_from_windows(value):  # so that the message about it names what the user wrote
        return value
    path = Path(value)
    with contextlib.suppress(RuntimeError):  # `~nobody`: no user, so a name like any other
        path = path.expanduser()
    return _tidy((folder / path).absolute())


def _tidy(path: Path) -> str:
    """The path without `..`, unless a link makes that another place."""
    plain = os.path.normpath(path)
    with contextlib.suppress(
        OSError, ValueError
    ):  # a loop of links, a NUL in the name: said where it is used
        if os.path.realpath(plain) == os.path.realpath(path):
            return plain
    return str(path)


def settings_from(values: Mapping[str, Any], *, where: str) -> Settings:
    """`Settings` from flat names and text values (None: not given). Raises InputError that names the key."""
    known = setting_fields()
    for key, value in values.items():
        if key not in known and not (key in NOTES and isinstance(value, dict)):
            raise _unknown(key, known, where)
    made: dict[str, Any] = {}
    for group, cls in groups().items():
        own = {item.name: values[item.name] for item in dataclasses.fields(cls) if item.name in values}
        if group == "concepts":
            with concerning("concepts"):
                read = _concepts(own.get("concepts"), where)
            made[group], made["not_taken"] = cls(concepts=read.concepts), tuple(read.not_taken)
        else:
            made[group] = build(cls, own, where)
    return Settings(**made)


def _unknown(key: str, known: Iterable[str], where: str) -> InputError:
    near = _nearest(key[:80], list(known))
    hint = f"did you mean `{near}`?" if near else "the README lists all settings"
    if key in GROUPS:
        hint = f"write the names of the group `{key}` at the top level, not under it"
    return InputError(f"there is no setting `{_cut(key)}`", where=where, remedy=hint)


def _nearest(key: str, known: list[str]) -> str:
    """The name that was meant, "" if none is like it: one that is nearly the same, else one of which each word is there
    (`lora_rank` is `rank`), else one that is somewhat like it."""
    words = {word.lower() for word in key.replace("-", "_").split("_")}
    within = [name for name in known if words.issuperset(name.split("_"))]
    alike = [difflib.get_close_matches(key, known, n=1, cutoff=cutoff) for cutoff in (0.8, 0.5)]
    return next(iter((*alike[0], *sorted(within, key=len, reverse=True), *alike[1])), "")


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"


def build(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    """One settings dataclass from text values, checked against choices and range.

    OmegaConf types the numbers and truth values. Text never goes through it: it takes `${x}` and `???` for more
    than text.
    """
    texts: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    for item in dataclasses.fields(cls):
        value, name = values.get(item.name), f"{prefix}{item.name}"
        if value is None:
            continue
        with concerning(name):
            if _kind(item) == "dict":
                texts[item.name] = _names(value, name, where)
            elif isinstance(value, list) and item.metadata.get("listed") and all(map(_is_text, value)):
                texts[item.name] = _text(", ".join(value), name, where)
            elif isinstance(value, dict):
                wrong = f"`{name}` takes one value, not names with values"
                raise InputError(wrong, where=where, remedy=_expected(item))
            elif isinstance(value, list):
                raise InputError(f"`{name}` takes one value, not a list", where=where, remedy=_expected(item))
            elif _kind(item) == "str":
                texts[item.name] = _text(_choice(str(value), item.metadata.get("choices") or ()), name, where)
            else:
                numbers[item.name] = value
    made = cls(**texts, **_typed(cls, numbers, where, prefix))
    for item in dataclasses.fields(cls):
        with concerning(f"{prefix}{item.name}"):
            check_value(item, getattr(made, item.name), where, prefix)
    return made


def _typed(cls: type, numbers: dict[str, Any], where: str, prefix: str) -> dict[str, Any]:
    """Numbers and truth values in the types that their settings have. Raises InputError."""
    if not numbers:
        return {}
    node = OmegaConf.structured(cls)
    for item in dataclasses.fields(cls):
        if item.name in numbers:
            with concerning(f"{prefix}{item.name}"):
                _assign(node, item, numbers[item.name], where, f"{prefix}{item.name}")
    return {name: node[name] for name in numbers}


def _kind(item: dataclasses.Field[Any]) -> str:
    """int, float, bool, str, dict or list."""
    return str(item.type).split("[")[0].split(" ")[0]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _names(value: Any, name: str, where: str) -> dict[str, str]:
    if isinstance(value, str) and value in _EMPTY:
        return {}
    if not isinstance(value, dict) or any(isinstance(item, (dict, list)) for item in value.values()):
        raise InputError(
            f"`{name}` needs names, each with one value", where=where, remedy=f"write {name}: {{name: value}}"
        )
    return {key: _text("" if item is None else str(item), name, where) for key, item in value.items()}


def _text(text: str, name: str, where: str) -> str:
    if "\0" in text:
        raise InputError(f"`{name}` has a NUL character", where=where, remedy="remove it")
    return text


def _choice(text: str, choices: tuple[str, ...]) -> str:
    """A choice in any case: `AdamW8bit` is `adamw8bit`; between yes and no also what a truth value is written as."""
    if {"yes", "no"} <= {*choices}:
        text = _TRUTH.get(text.strip().lower(), text)
    return next((choice for choice in choices if choice.lower() == text.strip().lower()), text)


def _assign(node: DictConfig, item: dataclasses.Field[Any], value: Any, where: str, name: str) -> None:
    """Gives `node` a number or a truth value; `null` leaves the default. Raises InputError, also for empty text,
    which may as well be a value that got lost."""
    text = str(value).strip()
    if not text:
        wrong = f"`{name}` is empty"
        raise InputError(wrong, where=where, remedy=f"{_expected(item)}, or null for the default")
    if text in _EMPTY:
        return
    if _kind(item) != "bool" and _is_too_large(text, _kind(item)):
        raise _too_large(item, where, name)
    try:
        if _kind(item) == "bool" and text.lower() not in _YES_OR_NO:
            raise ValueError(text)
        OmegaConf.update(node, item.name, text if _kind(item) == "bool" else _number(text, _kind(item)))
    except (ValueError, OmegaConfBaseException) as error:
        wrong = f"`{name}` cannot be {quoted(value)}"
        raise InputError(wrong, where=where, remedy=_expected(item)) from error


def _is_too_large(text: str, kind: str) -> bool:
    """Whether text is a number beyond all that can be kept; `inf` is none."""
    with contextlib.suppress(ValueError):
        number = abs(float(text))
        return (
            number > _LARGEST
            if kind == "int" and number < math.inf
            else number == math.inf and "n" not in text
        )
    return False


def _too_large(item: dataclasses.Field[Any], where: str, name: str) -> InputError:
    return InputError(f"`{name}` is too large", where=where, remedy=_expected(item, largest=_LARGEST))


def _number(text: str, kind: str) -> str | int:
    """What OmegaConf is to read: text that is a number for sure, since it takes `${x}` for something else.
    `1e3` and `100.0` are whole numbers to people. Raises ValueError."""
    number = float(text)
    if kind == "float":
        return text
    if not math.isfinite(number):
        raise ValueError(text)
    plain = text.lstrip("+-").isdigit()  # read exactly, however long
    return int(number) if not plain and number.is_integer() else text


def _expected(item: dataclasses.Field[Any], largest: int | None = None) -> str:
    """What a setting takes; `largest` is where whole numbers end that have no maximum of their own."""
    if item.metadata.get("choices"):
        return f"choose one of {', '.join(item.metadata['choices'])}{other_text(item.metadata)}"
    about = dict(item.metadata)
    if about.get("maximum") is None and _kind(item) == "int":
        about["maximum"] = largest
    return f"give {_TYPE_NAMES[_kind(item)]}{range_text(about)}"


def other_text(about: Mapping[str, Any]) -> str:
    """`" or a class's import path"`, or nothing."""
    name = (about.get("other") or ("", ""))[1]
    return f" or {name}" if name else ""


def range_text(about: Mapping[str, Any]) -> str:
    """`" from 1 to 12"`, `" of at least 0"`, or nothing."""
    low, high = about.get("minimum"), about.get("maximum")
    if low is not None and high is not None:
        return f" from {number_text(low)} to {number_text(high)}"
    return f" of at least {number_text(low)}" if low is not None else ""


def number_text(number: float) -> str:
    """A number as people write it; large whole ones with every digit."""
    return str(int(number)) if abs(number) >= 1e6 and float(number).is_integer() else f"{number:g}"


def check_value(item: dataclasses.Field[Any], value: Any, where: str, prefix: str = "") -> None:
    """Raises InputError if a value is outside its setting's choices or range."""
    about, name = item.metadata, f"{prefix}{item.name}"
    choices = about.get("choices") or ()
    if choices:
        pattern = (about.get("other") or ("",))[0]
        fits = value in choices or bool(pattern and re.fullmatch(pattern, value))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = about.get("minimum"), about.get("maximum")
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise _too_large(item, where, name)
        fits = (low is None or value >= low) and (high is None or value <= high)
        fits = fits and (isinstance(value, int) or math.isfinite(value))
    else:
        return
    if not fits:
        wrong = f"`{name}` cannot be {quoted(value)}"
        raise InputError(wrong, where=where, remedy=_expected(item))


def _concepts(value: Any, where: str) -> ConceptsFile:
    """Concepts from a list, from one mapping, or from the file that a text names. None and [] are none."""
    if value is None or value == [] or (isinstance(value, str) and value in _EMPTY):
        return ConceptsFile([], [])
    if isinstance(value, str):
        return _checked_texts(read_concepts(Path(value)), value)
    if isinstance(value, list):
        value = [_without_empty(entry) if isinstance(entry, dict) else entry for entry in value]
    return _checked_texts(concepts_from(value, where=where), where)


def _without_empty(concept: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in concept.items() if item not in ("", None)}


def _checked_texts(read: ConceptsFile, where: str) -> ConceptsFile:
    for number, concept in enumerate(read.concepts, 1):
        for name, value in dataclasses.asdict(concept).items():
            with concerning(f"concepts[{number - 1}].{name}"):
                _text(str(value), name, f"{where}, concept {number}")
    return read


def to_mapping(settings: Settings) -> dict[str, Any]:
    """Settings as flat names and plain values, in the page's order."""
    flat: dict[str, Any] = {}
    for group in GROUPS:
        flat.update(dataclasses.asdict(getattr(settings, group)))
    return flat


def dump_settings(settings: Settings, notes: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """The settings as YAML that `load_settings` reads back to the same settings, with notes (see NOTES)."""
    flat: dict[str, Any] = to_mapping(settings)
    for name, note in (notes or {}).items():
        if name not in NOTES:
            raise ValueError(f"{name!r} is no note")
        flat[name] = dict(note)
    text: str = yaml.safe_dump(flat, sort_keys=False, allow_unicode=True, width=1000)
    return text


def read_notes(path: Path, name: str) -> dict[str, str]:
    """What `dump_settings` noted under `name`; {} if there is none. Raises InputError if the file is none."""
    note = read_mapping(path).get(name)
    return {key: str(value) for key, value in note.items()} if isinstance(note, dict) else {}
