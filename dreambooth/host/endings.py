"""Why a trainer ended, read from what it printed, and what to do about it."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from ..shared.concepts import Concept
from ..shared.config import setting_fields
from ..shared.errors import DreamboothError, InputError

_TAIL = 32_000
_ADVICE = re.compile(r"^\s*What to do: (.*)$")
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
_CONCEPT = re.compile(r"^concept (\d+), (\w+)$")
_CONCEPT_FIELDS = frozenset(field.name for field in dataclasses.fields(Concept))
_LAST_WORD = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt|Exit|Failed))(?:: (.*))?$")
# what a log says → what that means, what to do
_KNOWN = (
    (r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED", "the card has not enough memory for this training",
     "lower the resolution or the batch size, turn gradient checkpointing on, take 8-bit AdamW; then start again"),
    (r"MemoryError|DefaultCPUAllocator|Cannot allocate memory|paging file is too small",
     "the computer has not enough memory for this training",
     "close other programs, or train with fewer parts (text encoder off, EMA off); then resume"),
    (r"No space left on device|Errno 28|no space is left|There is not enough space on the disk", "the disk is full",
     "make room, then resume: what was saved before is intact"),
    (r"ModuleNotFoundError|ImportError|DLL load failed", "the trainer's environment is not whole",
     "press the button that makes the environment again"),
    (r"CUDA error|CUDNN_STATUS|device-side assert|no kernel image",
     "the card or its driver gave up", "restart the computer or update the driver, then resume"),
    (r"Segmentation fault|Fatal Python error|Windows fatal exception|core dumped", "the trainer crashed",
     "resume goes on with it; if it happens again, please report the log"),
)  # fmt: skip
_BY_SYSTEM = (
    "the trainer was ended from outside, without a word of its own (by the system when memory is short, "
    "by somebody, or with the computer)"
)
_RESUME = "resume goes on with it; close other programs if memory is short"


@dataclass(frozen=True)
class Ending:
    """What happened and what to do; `where` is a setting where one was named."""

    text: str
    remedy: str
    where: str = ""


def tail(path: Path, lines: int, *, width: int = 300) -> list[str]:
    """The last lines of a log, each cut to `width`; none if there is no log."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - max(_TAIL // 4, lines * 200)))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    found = [re.split("\r", line.rstrip("\r"))[-1].rstrip() for line in text.split("\n")]
    return [line if len(line) <= width else f"{line[:width]}…" for line in found if line][-lines:]


def ending_of(log: Path, *, code: int | None = None) -> Ending:
    """Why the trainer whose output `log` holds ended, as well as can be told. `code`: its exit code, if known."""
    lines = [_STAMP.sub("", line) for line in tail(log, 200, width=2000)]
    own = _own_message(lines)
    if own is not None:
        return own
    text = "\n".join(lines[-60:])
    known = next(((what, do) for pattern, what, do in _KNOWN if re.search(pattern, text)), None)
    last = _last_word(lines)
    if known is not None:
        return Ending(f"{known[0]}{f' ({last})' if last else ''}", known[1])
    if last:
        return Ending(f"the trainer failed: {last}", "the log has more; resume goes on with it")
    if code in (1, 2) and lines:
        return Ending(lines[-1], "the log has more")
    return Ending(_BY_SYSTEM, _RESUME)


def as_error(ending: Ending, *, code: int | None) -> DreamboothError:
    """An ending as an error: the input's fault for exit code 2."""
    kind = InputError if code == InputError.exit_code else DreamboothError
    return kind(ending.text, where=ending.where, remedy=ending.remedy, setting=ending.where)


def _own_message(lines: list[str]) -> Ending | None:
    """The trainer's own last message: `where: what`, a line further in for each thing that it is about, and then
    `What to do:`."""
    for index in range(len(lines) - 1, max(0, len(lines) - 12), -1):
        advice = _ADVICE.match(lines[index])
        if advice:
            first = max(0, index - 1)
            while first and lines[first].startswith("  "):
                first -= 1
            where, text = _split(lines[first].strip().removeprefix("error: "))
            return Ending("\n".join([text, *lines[first + 1 : index]]), advice[1].strip(), where)
    return None


def _split(text: str) -> tuple[str, str]:
    """`learning_rate: is 0` is about that setting; a concept's is called as a form calls it."""
    place, colon, what = text.partition(": ")
    concept = _CONCEPT.match(place)
    if concept and concept[2] in _CONCEPT_FIELDS:
        return f"concepts[{int(concept[1]) - 1}].{concept[2]}", text
    return (place, what) if colon and place in setting_fields() else ("", text)


def _last_word(lines: list[str]) -> str:
    """The line that ends a traceback, cut to a sentence's length; empty if there is none."""
    if not any(line.startswith("Traceback (most recent call last)") for line in lines):
        return ""
    for line in reversed(lines):
        if _LAST_WORD.match(line):
            return line if len(line) <= 240 else f"{line[:240]}…"
    return ""
