"""The trainer's environment of a WebUI: what state it is in, and the detached start of its making.

Standard library only, since install.py asks at every start of the WebUI, before anything is loaded. The making is a
process of its own (`main`), which outlives the WebUI; what it prints and how it ended are two files beside the
environment, so that any later process can tell.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from . import detached, environment, overlay
from .shared import lock
from .shared.errors import DreamboothError

Name = Literal["ready", "making", "missing", "failed", "broken"]
_LOG_BYTES = 48_000
_LOG_LINES = 200
# How long after its start a making that holds no lock yet is taken to be on its way.
_ON_ITS_WAY = 15.0
_AGAIN = 'press "Try again" in the DreamBooth tab, or restart the WebUI'


@dataclass(frozen=True)
class State:
    """What is the matter with the environment, what to do, the last lines that its making printed; and, where it is
    ready, the Python that trains and the variables to start it with."""

    name: Name
    text: str
    remedy: str = ""
    log: list[str] = field(default_factory=list)
    python: str = ""
    environ: dict[str, str] = field(default_factory=dict)


def look(environ: Mapping[str, str] = os.environ, *, hub: bool = False) -> State:
    """The state as it is now, from files alone: some milliseconds. `hub`: the trainer is to use the model hub."""
    clean = environment.clean_environ(environ, from_host=True, hub=hub)
    try:
        forced = environment.forced()
        if forced:
            text = f"{environment.PYTHON_VARIABLE} is set: {forced} is used as it is."
            return State("ready", text, python=str(forced), environ=clean)
        host = overlay.running_host()
    except DreamboothError as error:
        return State("failed", error.what, error.remedy)
    found = overlay.find(host)
    if found:
        text = f"The environment is whole: {found.folder.name}, torch {found.stamp.get('torch', '')}."
        own = environment.environ_for(found, environ, from_host=True, hub=hub)
        return State("ready", text, python=str(found.python), environ=own)
    if lock.is_held(_files(host).lock):
        return State("making", "The environment is being made.", log=read_log(_files(host).log))
    if not environment.lacking():
        return State(
            "ready", "The WebUI's own Python has every library.", python=sys.executable, environ=clean
        )
    return _unready(host)


@dataclass(frozen=True)
class _Files:
    lock: Path
    log: Path
    note: Path


def _files(host: overlay.Host) -> _Files:
    first = overlay.folder(host)
    return _Files(
        *(first.with_name(first.name + suffix) for suffix in (".lock", ".making.log", ".making.json"))
    )


def _unready(host: overlay.Host) -> State:
    files = _files(host)
    note, log = _read_note(files.note), read_log(files.log)
    if "failed" in note:
        return State("failed", str(note["failed"]), str(note.get("remedy") or _AGAIN), log)
    if "started" in note:
        if 0 <= time.time() - float(note["started"]) < _ON_ITS_WAY:
            return State("making", "The making of the environment begins.", log=log)
        return State(
            "broken",
            "The making of the environment was interrupted. It begins anew when it is tried again.",
            _AGAIN,
            log,
        )
    changed = overlay.changed(host)
    if changed:
        return State("missing", f"The WebUI's packages have changed: {'; '.join(changed)}.", _AGAIN, log)
    return State("missing", "It has not been made yet.", _AGAIN, log)


def start(environ: Mapping[str, str] = os.environ) -> subprocess.Popen[bytes] | None:
    """Starts the making, detached, where there is something to make and nobody makes it; None where there is not.

    Raises DreamboothError where it cannot even be started: nothing can be written, or this Python cannot serve.
    """
    if environment.forced():  # raises where it is wrong: no making would mend that
        return None
    host = overlay.running_host()
    if look(environ).name in ("ready", "making"):
        return None
    files = _files(host)
    own = environment.clean_environ(environ, from_host=True)
    own |= {name: value for name, value in environ.items() if name.upper().startswith("PIP_")}
    try:
        files.log.parent.mkdir(exist_ok=True)
        _write_note(files.note, {"started": time.time()})
        with files.log.open("wb") as output:
            return detached.start(
                [sys.executable, "-u", "-m", "dreambooth.installing"],
                output=output,
                environ=own,
                cwd=environment.ROOT,
                gentle=True,
            )
    except OSError as error:
        raise DreamboothError(
            f"the making of the trainer's environment cannot be started: {error.strerror or error}",
            where=str(error.filename or files.log.parent),
            remedy="see that the extension lies where you may write, on a disk with room (2 GB), and try again",
        ) from error


def read_log(path: Path) -> list[str]:
    """The last lines of a log that may still be written; of a line that overwrote itself its last state."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return [line for line in lines if line.strip()][-_LOG_LINES:]


def _read_note(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        float(note.get("started", 0))
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return dict(note)


def _write_note(path: Path, note: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        temporary.write_text(json.dumps(note), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> int:
    """Makes the environment of the WebUI whose Python this is; notes how it ended."""
    if hasattr(os, "nice"):
        os.nice(10)  # beside a WebUI that starts
    host = overlay.running_host()
    files = _files(host)
    started = {"started": time.time()}
    try:
        overlay.ensure(host, say=environment.tell)
    except DreamboothError as error:
        environment.tell(str(error))
        place = f"{error.where}: " if error.where else ""
        _write_note(files.note, started | {"failed": f"{place}{error.what}", "remedy": error.remedy})
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        _write_note(files.note, started | {"failed": f"{type(error).__name__}: {error}", "remedy": ""})
        raise
    _write_note(files.note, started | {"done": time.time()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
