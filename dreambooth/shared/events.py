"""The run's news: one JSON object a line, appended by the trainer, read by anybody.

A line is written with one system call and ends with a newline, so a reader that meets a torn last line
(a killed trainer, a full disk) knows it by the missing newline and ignores it.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .paths import disk_full_is_said

# event → the fields that it carries; readers ignore fields that they do not know
SCHEMA: dict[str, tuple[str, ...]] = {
    "plan": (
        "images", "class_images", "class_images_to_make", "buckets", "steps", "epochs", "trained", "files",
        "disk_needed", "disk_free", "memory",
    ),
    "phase": ("name", "of"),
    "progress": ("name", "done", "of"),
    "step": (
        "step", "of", "loss", "instance_loss", "prior_loss", "lr", "it_s", "eta_s", "memory_gb",
    ),
    "sample": ("step", "prompt", "path", "number", "seed"),
    "checkpoint": ("step", "path"),
    "exported": ("step", "path", "sha256"),
    "warning": ("text",),
    "error": ("text", "remedy"),
    "ack": ("id",),
    "done": ("path", "weight_change"),
}  # fmt: skip

Emit = Callable[..., None]
_BLOCK = 64 * 1024


@dataclass(frozen=True)
class Event:
    """One line of the log. `time` is seconds since the epoch, `fields` all else but the name."""

    time: float
    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        return self.fields[key]


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity, and other languages' readers refuse them: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


class EventLog:
    """Appends events to a file. Only the holder of the run's lock may have one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        if self._is_torn():
            with disk_full_is_said(path):
                os.write(self._file, b"\n")

    def _is_torn(self) -> bool:
        """Whether the file ends in the middle of a line."""
        size = os.fstat(self._file).st_size
        if not size:
            return False
        os.lseek(self._file, size - 1, os.SEEK_SET)
        return os.read(self._file, 1) != b"\n"

    def emit(self, event: str, **fields: Any) -> None:
        """Appends one event. Raises ValueError for an event that the schema does not know."""
        if event not in SCHEMA:
            raise ValueError(f"{event!r} is no event of the schema")
        line = json.dumps({"time": time.time(), "event": event, **_plain(fields)}, ensure_ascii=False) + "\n"
        # half a surrogate pair (how Python spells a file name that is no UTF-8) becomes JSON's own \udcff
        with disk_full_is_said(self.path):
            self._append(line.encode(errors="backslashreplace"))

    def _append(self, line: bytes) -> None:
        """All of the line or nothing: a full disk may take a part of it, which is cut off again."""
        begin = os.fstat(self._file).st_size
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except BaseException:  # a second Ctrl-C may come here too
            if self._is_torn():
                os.ftruncate(self._file, begin)
            raise

    def sync(self) -> None:
        """Makes all that was emitted last through a power cut: before something rests on it."""
        with disk_full_is_said(self.path):
            os.fsync(self._file)

    def close(self) -> None:
        """Closes the file; once is enough, twice is harmless."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read_events(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """The whole lines from byte `offset` on, and the offset to go on from. A file that is not there has none.

    Lines that are no event (a torn one that was ended later) are left out. An offset behind the file's end is
    of another file that was there before: then all is read.
    """
    try:
        with path.open("rb") as file:
            offset = offset if offset <= file.seek(0, os.SEEK_END) else 0
            file.seek(offset)
            content = file.read()
    except FileNotFoundError:
        return [], offset
    whole = content[: content.rfind(b"\n") + 1]
    events = [event for line in whole.split(b"\n") if (event := parse_event(line)) is not None]
    return events, offset + len(whole)


def newest_first(path: Path, *names: str) -> Iterator[Event]:
    """The events of these names, as EventLog writes them, read from the file's end: what was said last is found without
    a look at all the rest, and no other line is parsed. A file that is not there has no events."""
    wanted = re.compile(rb'"event": ?"(?:%s)"' % "|".join(names).encode())
    for lines in _blocks_from_the_end(path):
        if wanted.search(lines):
            for line in reversed(lines.split(b"\n")):
                event = parse_event(line) if wanted.search(line) else None
                if event is not None and event.name in names:
                    yield event


def _blocks_from_the_end(path: Path) -> Iterator[bytes]:
    """The whole lines of a file, some at once, the last ones first."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        begin = file.seek(0, os.SEEK_END)
        rest = None  # of a line that begins in an earlier block; None while no line has ended yet
        while begin > 0:
            size = min(_BLOCK, begin)
            begin -= size
            file.seek(begin)
            block = file.read(size)
            first, last = block.find(b"\n"), block.rfind(b"\n")
            if first < 0:
                rest = None if rest is None else block + rest
                continue
            if rest is not None:
                yield block[last + 1 :] + rest
            yield block[first + 1 : last]
            rest = block[:first]
        if rest is not None:
            yield rest


def parse_event(line: bytes) -> Event | None:
    """One line as an event, None if it is none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("event"), str):
        return None
    return Event(_seconds(content.pop("time", 0.0)), content.pop("event"), content)


def _seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0
