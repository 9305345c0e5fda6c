"""What the page makes of the trainer's words in another language: the rules of javascript/text.js, in Python."""

from __future__ import annotations

import json
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "localizations"
_NUMBERS = {"n", "m", "h", "s", "all", "step", "steps", "of", "done", "count", "low", "high"}


def table(language: str = "zh_CN") -> dict[str, str]:
    """The texts of a localization, by their own words: what the WebUI has a word for too is kept apart by a prefix."""
    found = json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    return {text.removeprefix("DreamBooth: "): shown for text, shown in found.items()}


def untranslated(text: str, known: dict[str, str]) -> list[str]:
    """The lines of a message that stay as they are."""
    patterns = [_pattern(key) for key in known if re.search(r"\{\w+\}", key) and re.search(r"\w", _bare(key))]

    def is_said(line: str) -> bool:
        if line in known or any(one.fullmatch(line) for one in patterns):
            return True
        # what stands before a colon is a place: a file's path, a setting's name
        return any(is_said(line[found.end() :]) for found in re.finditer(": ", line))

    lines = [line.strip() for line in text.split("\n")]
    return [] if text in known else [line for line in lines if line and not is_said(line)]


def _bare(key: str) -> str:
    return re.sub(r"\{\w+\}", "", key)


def _pattern(key: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", key)
    return re.compile(
        "".join(_value(part) if index % 2 else re.escape(part) for index, part in enumerate(parts)), re.DOTALL
    )


def _value(name: str) -> str:
    if name in _NUMBERS:
        return r"-?[\d.,\u202f\u00a0]+"
    return r"[\d.,]+ photos?" if name == "photos" else ".+?"
