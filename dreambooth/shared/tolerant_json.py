r"""Reads JSON as people write it by hand, and says where it is broken when it is.

Beyond JSON it accepts: a byte order mark; comments (`#`, `//`, `/* */`); trailing commas; single quotes;
Python's `True`, `False` and `None`; a `name = ` before the value (as in the notebooks that define
`concepts_list`); and single backslashes in Windows paths (`"C:\photos\new"`), which strict JSON reads as
escapes or refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

_BLANK = re.compile(r"(?:[\s\ufeff]+|#[^\n]*|//[^\n]*|/\*.*?\*/)+", re.DOTALL)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.])")
_WORD = re.compile(r"[A-Za-z_]\w*")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*\s*=(?!=)")
_ENDS_HERE = re.compile(r"\s*(?:[,}\]#]|//|/\*|$)", re.MULTILINE)
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\(.)")
_PATH_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|(\\+)(?![/\"'])|\\([/\"'])")
_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_LETTERS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
MAX_DEPTH = 100


class BrokenJSON(ValueError):
    """The text is not JSON even with every tolerance; `line` and `column` count from 1."""

    def __init__(self, what: str, line: int, column: int) -> None:
        super().__init__(f"{what} (line {line}, column {column})")
        self.what = what
        self.line = line
        self.column = column


def loads(text: str, *, path_keys: Collection[str] = ()) -> object:
    """The value that `text` holds; strings under `path_keys` are paths and keep their single backslashes.

    Raises `BrokenJSON`.
    """
    reader = _Reader(text, frozenset(path_keys))
    reader.peek()
    assignment = _ASSIGNMENT.match(text, reader.at)
    if assignment:
        reader.at = assignment.end()
    value = reader.value("")
    if reader.peek():
        raise reader.broken(f"unexpected {reader.peek()!r} after the end of the value")
    return value


@dataclass
class _Reader:
    text: str
    path_keys: frozenset[str]
    at: int = 0
    depth: int = 0

    def broken(self, what: str, at: int | None = None) -> BrokenJSON:
        at = self.at if at is None else at
        before = self.text[:at]
        return BrokenJSON(what, before.count("\n") + 1, at - before.rfind("\n"))

    def peek(self) -> str:
        """The next character after blanks and comments, "" at the end."""
        blank = _BLANK.match(self.text, self.at)
        if blank:
            self.at = blank.end()
        if self.text.startswith("/*", self.at):
            raise self.broken("a comment that begins with /* is never closed")
        return self.text[self.at : self.at + 1]

    def value(self, key: str) -> object:
        first = self.peek()
        if first == "{":
            return self.nested(self.members)
        if first == "[":
            return self.nested(self.elements)
        if first and first in "\"'":
            return self.string(key)
        number = _NUMBER.match(self.text, self.at)
        if number:
            self.at = number.end()
            digits = number.group()
            whole = (
                not set(digits) & set(".eE") and len(digits) < 400
            )  # Python refuses to read very long integers
            return int(digits) if whole else float(digits)
        return self.word(first)

    def word(self, first: str) -> object:
        word = _WORD.match(self.text, self.at)
        if not first:
            raise self.broken("the text ends where a value is expected")
        if word is None:
            raise self.broken(f"expected a value, found {first!r}")
        if word.group() not in _WORDS:
            raise self.broken(f"{word.group()!r} is not a value: text belongs in double quotes")
        self.at = word.end()
        return _WORDS[word.group()]

    def nested(self, read: Callable[[], object]) -> object:
        if self.depth >= MAX_DEPTH:
            raise self.broken(f"nested more than {MAX_DEPTH} deep")
        self.depth += 1
        value = read()
        self.depth -= 1
        return value

    def elements(self) -> list[object]:
        return [self.value("") for _ in self.parts("]")]

    def members(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for first in self.parts("}"):
            if first not in "\"'":
                raise self.broken(f"expected a name in double quotes, found {first!r}")
            begin = self.at
            name = self.string("")
            if name in found:
                raise self.broken(f"{name!r} is there twice", begin)
            if self.peek() != ":":
                raise self.broken(f"expected ':' after {name!r}")
            self.at += 1
            found[name] = self.value(name)
        return found

    def parts(self, close: str) -> Iterator[str]:
        """Stops before each part of a list or an object, yielding its first character; passes the bracket."""
        opened = self.at
        self.at += 1
        first = self.peek()
        while first and first != close:
            yield first
            first = self.peek()
            if first == ",":
                self.at += 1
                first = self.peek()
            elif first and first != close:
                raise self.broken(f"expected ',' or {close!r}, found {first!r}")
        if not first:
            raise self.broken(f"the text ends before this {self.text[opened]!r} is closed", opened)
        self.at += 1

    def string(self, key: str) -> str:
        begin = self.at
        is_path = key in self.path_keys
        raw, self.at = self.raw_string(is_path)
        text = _path_text(raw) if is_path else _ESCAPE.sub(_unescaped, raw)
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise self.broken(r"half of a \u pair is missing in this string", begin) from None

    def raw_string(self, is_path: bool) -> tuple[str, int]:
        """The characters between the quotes as they stand, and the place after the closing quote."""
        quote, begin = self.text[self.at], self.at + 1
        at = begin
        while at < len(self.text) and self.text[at] != "\n":
            if self.text[at] == quote:
                return self.text[begin:at], at + 1
            if self.text[at] == "\\":
                # "C:\photos\" ends at the quote, as its writer meant it
                if is_path and self.text[at + 1 : at + 2] == quote and _ENDS_HERE.match(self.text, at + 2):
                    return self.text[begin : at + 1], at + 2
                at += 1
            at += 1
        raise self.broken("a string is not closed before the end of its line", begin - 1)


def _unescaped(escape: re.Match[str]) -> str:
    code, letter = escape.groups()
    if code:
        return chr(int(code, 16))
    if letter in "\"'\\/":
        return str(letter)
    return _LETTERS.get(letter, "\\" + letter)


def _path_text(raw: str) -> str:
    r"""A path: `\u00e9` is an escape, any other run of backslashes a separator (two where a share begins)."""
    path = _PATH_ESCAPE.sub(_path_part, raw)
    return "\\" + path if raw.startswith("\\\\") else path


def _path_part(part: re.Match[str]) -> str:
    code, _, plain = part.groups()
    if code:
        return chr(int(code, 16))
    return str(plain) if plain else "\\"
