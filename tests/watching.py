"""For tests of whole runs in this process: something happens at an event, and what a run left is looked at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from dreambooth.shared.events import Event, EventLog, read_events
from dreambooth.shared.runfolder import RunFolder


def at_event(
    monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[RunFolder], None], /, **wanted: Any
) -> None:
    """Calls `act` with the run once, right after the first event `name` whose fields have the values `wanted`."""
    emit = EventLog.emit
    waiting = [act]

    def emitting(self: EventLog, event: str, **fields: Any) -> None:
        emit(self, event, **fields)
        if event == name and waiting and all(fields.get(key) == value for key, value in wanted.items()):
            waiting.pop()(RunFolder(self.path.parent))

    monkeypatch.setattr(EventLog, "emit", emitting)


def run_in(folder: Path, name: str = "sks") -> RunFolder:
    """The run that `tiny.config(folder)` makes."""
    return RunFolder(folder / "runs" / name)


def events(run: RunFolder, name: str = "") -> list[Event]:
    """All events of a run, or those called `name`."""
    return [event for event in read_events(run.events)[0] if name in ("", event.name)]


def raw(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """A .safetensors file's tensors as dtype, shape and bytes, read without any code of ours."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    body = content[8 + size :]
    return {
        name: (row["dtype"], row["shape"], body[row["data_offsets"][0] : row["data_offsets"][1]])
        for name, row in header.items()
    }


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same_tensors(one: Path, other: Path) -> bool:
    """Whether two .safetensors files hold the same bytes under the same names."""
    return raw(one) == raw(other)


def is_finite(path: Path) -> bool:
    with safe_open(path, "pt") as file:
        return all(bool(torch.isfinite(file.get_tensor(name)).all()) for name in file.keys())  # noqa: SIM118
