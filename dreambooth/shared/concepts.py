"""Concepts: what a run teaches, and the `concepts_list.json` files that users already have.

Two forms are known. ShivamShrirao's has four keys: instance_prompt, class_prompt, instance_data_dir and
class_data_dir. sd_dreambooth_extension's has more; those that mean nothing here are listed by name, so that
nothing is dropped in silence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InputError, concerning, quoted
from .paths import is_from_windows
from .text_files import read_text
from .tolerant_json import BrokenJSON, loads


def _field(
    default: Any,
    label: str,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    common: bool = False,
) -> Any:
    about = {"label": label, "help": help, "minimum": minimum, "maximum": maximum, "common": common}
    return field(default=default, metadata=about)


@dataclass
class Concept:
    """One thing to learn. A value that is None means that the run's own setting holds."""

    instance_prompt: str = _field(
        "",
        "Instance prompt",
        "What the photos show, with a rare word for the subject. [filewords] stands for a photo's caption.",
        common=True,
    )
    class_prompt: str = _field(
        "", "Class prompt", "The same without the rare word: what must not be forgotten.", common=True
    )
    class_negative_prompt: str = _field("", "Negative class prompt", "What class images must not show.")
    instance_data_dir: str = _field(
        "",
        "Folder of the photos",
        "Subfolders are read too; a .txt beside a photo is its caption.",
        common=True,
    )
    class_data_dir: str = _field(
        "", "Folder of the class images", "Empty: a folder of the trainer's own, used again by later runs."
    )
    num_class_images: int | None = _field(
        None,
        "Class images of this concept",
        "Empty: the number for all concepts.",
        minimum=0,
        maximum=100_000,
    )
    # class images for each instance image, where num_class_images is None
    num_class_images_per: int | None = _field(
        None,
        "Class images for each photo",
        "Used where their number in all is empty.",
        minimum=0,
        maximum=10_000,
    )
    class_guidance_scale: float | None = _field(
        None, "Guidance of its class images", "Empty: the value for all concepts.", minimum=0
    )
    class_infer_steps: int | None = _field(
        None, "Sampling steps of its class images", "Empty: the value for all concepts.", minimum=1
    )
    instance_token: str = _field(
        "", "Rare word, for captions", "Put before the class word in every caption that has it."
    )
    class_token: str = _field(
        "", "Class word, for captions", "The word of the captions that names the class."
    )
    repeats: int = _field(
        1, "Repeats", "How often each photo counts in an epoch, against other concepts.", minimum=1
    )


@dataclass(frozen=True)
class ConceptsFile:
    """The concepts of a file, and the names in it that have no meaning here."""

    concepts: list[Concept]
    not_taken: list[str]


PATH_KEYS = ("instance_data_dir", "class_data_dir")
NOT_TAKEN = frozenset(
    {
        "is_valid",
        "n_save_sample",
        "sample_seed",
        "save_guidance_scale",
        "save_infer_steps",
        "save_sample_negative_prompt",
        "save_sample_prompt",
        "save_sample_template",
        "max_steps",
        "file_prompt_contents",
    }
)
_KINDS: dict[str, type] = {
    "num_class_images": int,
    "num_class_images_per": int,
    "class_infer_steps": int,
    "repeats": int,
    "class_guidance_scale": float,
}
_LOWEST = {"repeats": 1, "class_infer_steps": 1}
_AN_EXAMPLE = (
    "A concept has an instance_prompt (photo of sks dog), a class_prompt (photo of dog) and an instance_data_dir "
    "(the folder of the photos)."
)
_FIELDS = tuple(field.name for field in dataclasses.fields(Concept))


def read_concepts(path: str | Path) -> ConceptsFile:
    """The concepts of a `concepts_list.json`; a relative folder in it is relative to the file's own folder.

    Raises `InputError` naming the file with line and column, or the concept's number and the key.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(
            "there is no such concepts file", where=str(path), remedy="Check the path in `concepts`."
        )
    try:
        value = loads(read_text(path), path_keys=PATH_KEYS)
    except BrokenJSON as error:
        raise InputError(
            error.what,
            where=f"{path}, line {error.line}, column {error.column}",
            remedy='Mend the JSON at this place: a list [ ] of objects { } with "name": "value" pairs.',
        ) from error
    return concepts_from(value, where=str(path), folder=path.absolute().parent)


def concepts_from(value: object, *, where: str, folder: Path | None = None) -> ConceptsFile:
    """Concepts from a plain value: a list of mappings, or one mapping.

    `where` names the source in errors; `folder` is what relative folders are relative to (None: they stay as
    they are). An entry without folder and prompt, such as an unused form of the old extension, is passed over.
    Raises `InputError` naming the concept's number, counted from 1, and the key.
    """
    entries = [value] if isinstance(value, Mapping) else value
    if not isinstance(entries, list) or not entries:
        raise InputError(
            "there are no concepts: expected a list with at least one", where=where, remedy=_AN_EXAMPLE
        )
    concepts, not_taken = [], dict[str, None]()
    for number, entry in enumerate(entries, 1):
        place = f"{where}, concept {number}"
        if not isinstance(entry, Mapping):
            raise InputError(
                f"expected an object with names and values, found {quoted(entry)}",
                where=place,
                remedy=_AN_EXAMPLE,
            )
        not_taken.update(dict.fromkeys(key for key in entry if key in NOT_TAKEN))
        concept = _concept(entry, place, folder, number - 1)
        if concept.instance_data_dir or concept.instance_prompt or concept.class_prompt:
            concepts.append(concept)
        else:
            not_taken[f"concept {number}, which is empty"] = None
    if not concepts:
        raise InputError("there are no concepts: all entries are empty", where=where, remedy=_AN_EXAMPLE)
    return ConceptsFile(concepts, list(not_taken))


def class_image_count(concept: Concept, instance_images: int, default: int) -> int:
    """How many class images a concept asks for: its own total, or its number per instance image, or default.

    `instance_images` counts the images in the concept's folder, without repeats.
    """
    if concept.num_class_images is not None:
        return concept.num_class_images
    if concept.num_class_images_per is not None:
        return concept.num_class_images_per * instance_images
    return default


def _concept(entry: Mapping[str, object], place: str, folder: Path | None, index: int) -> Concept:
    values: dict[str, object] = {}
    for key, given in entry.items():
        if key in NOT_TAKEN:
            continue
        if key not in _FIELDS:
            nearest = difflib.get_close_matches(str(key), [*_FIELDS, *NOT_TAKEN], n=1)
            remedy = f"Did you mean {nearest[0]}?" if nearest else f"A concept has {', '.join(_FIELDS)}."
            raise InputError(f"unknown name {quoted(key)}", where=place, remedy=remedy)
        if given is not None:
            with concerning(f"concepts[{index}].{key}"):
                values[key] = _checked(key, given, place)
    if folder is not None:
        values.update({key: _against(folder, str(values[key])) for key in PATH_KEYS if values.get(key)})
    return Concept(**values)  # type: ignore[arg-type]


def _checked(key: str, given: object, place: str) -> object:
    kind = _KINDS.get(key, str)
    wrong = InputError(
        f"{quoted(given)} is not {_A[kind]}",
        where=f"{place}, {key}",
        remedy=f"Write {_A[kind]}, or leave {key} out.",
    )
    if kind is str:
        if not isinstance(given, str):
            raise wrong
        return given.strip()
    if isinstance(given, bool) or not isinstance(given, (int, float, str)):
        raise wrong
    try:
        number = float(given)
    except ValueError:
        raise wrong from None
    lowest = _LOWEST.get(key, 0)
    if not lowest <= number < 1e9 or (kind is int and number != int(number)):
        raise InputError(
            f"{quoted(given)} is not {_A[kind]} of at least {lowest}",
            where=f"{place}, {key}",
            remedy=f"Write {_A[kind]} of at least {lowest}, or leave {key} out.",
        )
    return kind(number)


_A = {str: "text", int: "a whole number", float: "a number"}


def _against(folder: Path, given: str) -> str:
    path = Path(given)
    with contextlib.suppress(RuntimeError):  # `~nobody`: no user, so a name like any other
        path = path.expanduser()
    # a Windows path read elsewhere is kept as it is, so that the message about it names what the user wrote
    return str(path) if path.is_absolute() or is_from_windows(given) else str(folder / path)
