"""Reads a YAML or JSON file as nested dicts and lists whose scalars are all text, as they stand in the file.

What a file leaves empty is None: `key:`, `null` and `~` without quotes, JSON's null. Nothing in a file can make
anything but dicts, lists and text; a name that stands twice, a tag and a file that unfolds without end are errors.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from . import tolerant_json
from .errors import InputError

MAX_BYTES = (
    2**20
)  # PyYAML reads about 100 kB a second: more than this is a mistake, most often a model's path
MAX_VALUES = 50_000  # counted with aliases unfolded, so that a few lines of them cannot fill the memory
MAX_DEPTH = 20

_EMPTY = frozenset({"", "~", "null", "Null", "NULL"})
_YAML = "tag:yaml.org,2002:"
_KINDS = ("str", "int", "float", "bool", "null", "map", "seq")
_HARMLESS_TAGS = frozenset({"!", *(_YAML + kind for kind in _KINDS)})


def read_file(path: Path, *, path_keys: Collection[str] = ()) -> dict[str, Any]:
    """The names and values of a file; an empty YAML file has none. JSON strings under `path_keys` keep their
    single backslashes. Raises InputError naming the file, and the line and column where there is one."""
    text = _decoded(_content(path), path)
    if path.suffix.lower() == ".json":
        content = _parse_json(text, str(path), path_keys)
    else:
        content = parse_yaml(text, where=str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(
            "it does not hold settings (names and values)", where=str(path),
            remedy="write one `name: value` a line; a list of concepts belongs under `concepts:`",
        )  # fmt: skip
    return content


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=str(path), remedy="check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"it cannot be read ({reason})", where=str(path), remedy="name a YAML or JSON file"
        ) from error
    if len(content) > MAX_BYTES:
        raise InputError(
            f"it is too large to hold settings (more than {MAX_BYTES // 2**20} MiB)", where=str(path),
            remedy="name a YAML or JSON file; the checkpoint to train is named in it, under `model:`",
        )  # fmt: skip
    return content


def _decoded(content: bytes, path: Path) -> str:
    """UTF-8, with or without a mark, or what Windows' tools mark as UTF-16. Nothing is guessed: a path or a
    prompt that is read wrongly would be found much later."""
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"it is not UTF-8 text (line {line})", where=str(path), remedy="save it as UTF-8"
        ) from error


def _parse_json(text: str, where: str, path_keys: Collection[str]) -> Any:
    try:
        return _as_text(tolerant_json.loads(text, path_keys=path_keys))
    except tolerant_json.BrokenJSON as error:
        raise InputError(
            f"it is no JSON at line {error.line}, column {error.column}: {error.what}", where=where,
            remedy="look at that place: a missing comma, a quote or a bracket that is not closed",
        ) from error  # fmt: skip


def _as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if value is None or isinstance(value, str) else repr(value)


def parse_yaml(text: str, *, where: str) -> Any:
    """YAML as dicts, lists and text. Raises InputError with line and column; `where` names the source."""
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
        return None if root is None else _value(root, iter(range(MAX_VALUES)), 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(
            f"it cannot be read{place}: {error.problem}", where=where,
            remedy=error.note or "look at that line: indentation, a colon without a space, a quote that is not "
            "closed, a tab, a value that begins with a special sign (put it in quotes)",
        ) from error  # fmt: skip
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(
            f"it has a character at line {line} that text may not have (U+{error.character:04X})", where=where,
            remedy="remove it, or save the file as plain text",
        ) from error  # fmt: skip
    except RecursionError as error:
        raise InputError(
            "it is nested too deep", where=where, remedy="look for brackets not closed"
        ) from error


def _wrong(problem: str, node: yaml.Node, remedy: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark, note=remedy)


def _value(node: yaml.Node, room: Iterator[int], depth: int) -> Any:
    if next(room, None) is None or depth > MAX_DEPTH:
        raise _wrong(
            "too many or too deeply nested values", node, "write it without so many aliases (`*name`)"
        )
    if node.tag not in _HARMLESS_TAGS:
        tag = node.tag.replace(_YAML, "!!")
        raise _wrong(f"the tag `{tag}` means nothing here", node, "remove it, or put the text in quotes")
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, room, depth + 1) for item in node.value]
    found: dict[str, Any] = {}
    for name, item in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise _wrong(
                "a name is expected here", name, "write `name: value`; put text with brackets in quotes"
            )
        if name.value in found:
            raise _wrong(f"`{name.value}` is there twice", name, "keep one of the two")
        found[name.value] = _value(item, room, depth + 1)
    return found


def _scalar(node: yaml.ScalarNode) -> str | None:
    if node.tag == f"{_YAML}null" or (node.style is None and node.value in _EMPTY):
        return None
    # programs that write JSON's `\ud83d\ude00` into YAML mean one character
    both_halves = node.value.encode("utf-16", "surrogatepass")
    return str(both_halves.decode("utf-16", "surrogatepass"))
