"""Text files of users, in whatever encoding their editor saved them."""

from __future__ import annotations

import codecs
import locale
import re
from pathlib import Path

from .errors import InputError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NOT_TEXT = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def decode_text(data: bytes) -> str:
    """Text from bytes: by their byte order mark, or as UTF-8, this computer's own encoding or Windows-1252.

    Raises `ValueError` if the bytes are no text in any of them.
    """
    marked = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)
    for encoding in [marked] if marked else ["utf-8", locale.getpreferredencoding(False), "cp1252"]:
        try:
            text = data.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
        if not _NOT_TEXT.search(text):
            return text.replace("\r\n", "\n").replace("\r", "\n")
    raise ValueError("the bytes are no text")


def read_text(path: Path) -> str:
    """The text of a file, with `\\n` line ends. Raises `InputError` naming the file."""
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise InputError(f"the file cannot be read ({error.strerror})", where=str(path)) from error
    except ValueError as error:
        raise InputError(
            "this is not a text file", where=str(path), remedy="Save it as UTF-8 text, or remove it."
        ) from error
