"""The run folder: the border between the processes. Everything that outlives a process is in it.

config.yaml · log.txt · events.jsonl · commands/ · lock · state/step-N/ · samples/ · result.json
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dreambooth.shared import lock
from dreambooth.shared.errors import InputError
from dreambooth.shared.events import read_events
from dreambooth.shared.paths import default_runs_dir, fsync_folder, write_json, write_whole

CommandName = Literal["stop", "stop_now", "save", "export", "sample"]
COMMANDS: tuple[CommandName, ...] = ("stop", "stop_now", "save", "export", "sample")


@dataclass(frozen=True)
class Command:
    """One order from outside: answered by an `ack` event with its id, then its file is removed."""

    id: str
    do: CommandName
    path: Path


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def commands(self) -> Path:
        return self.path / "commands"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def states(self) -> Path:
        return self.path / "state"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def is_alive(self) -> bool:
        """Whether a trainer holds this run's lock at this moment."""
        return lock.is_held(self.lock)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Holds the run for a trainer. Raises InputError if another trainer has it."""
        try:
            with lock.hold(self.lock):
                yield
        except lock.HeldElsewhere as error:
            raise InputError(
                f"another trainer (process {error.pid or 'unknown'}) is working on this run",
                where=str(self.path),
                remedy="wait until it ends, or stop it with `stop`",
            ) from error

    def order(self, do: CommandName) -> str:
        """Leaves a command for the trainer; returns the id by which its `ack` is known."""
        identifier = uuid.uuid4().hex
        self.commands.mkdir(exist_ok=True)
        write_json(self.commands / f"{identifier}.json", {"id": identifier, "do": do})
        return identifier

    def waiting_commands(self) -> list[Command]:
        """The commands that nobody has answered yet, oldest first. A file that is no command is removed."""
        try:
            files = [entry for entry in os.scandir(self.commands) if entry.name.endswith(".json")]
        except FileNotFoundError:
            return []
        files.sort(key=lambda entry: (entry.stat().st_mtime_ns, entry.name))
        commands = [(Path(entry.path), _read_command(Path(entry.path))) for entry in files]
        for path, command in commands:
            if command is None:
                path.unlink(missing_ok=True)
        return [command for _, command in commands if command is not None]


def _read_command(path: Path) -> Command | None:
    try:
        content = json.loads(path.read_bytes())
        return Command(str(content["id"]), content["do"], path) if content["do"] in COMMANDS else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def create_run(runs_dir: Path, name: str, config: str) -> RunFolder:
    """Makes `<runs_dir>/<name>` with its config.yaml inside, or `<name>-2`, … when that is taken.

    The folder is made aside and renamed into place, so that no reader ever sees one without its config.
    """
    runs_dir.mkdir(parents=True, exist_ok=True)
    aside = runs_dir / f"{name}.{uuid.uuid4().hex[:8]}.partial"
    (aside / "commands").mkdir(parents=True)
    (aside / "samples").mkdir()
    write_whole(aside / "config.yaml", config.encode())
    number = 1
    while True:
        final = runs_dir / (name if number == 1 else f"{name}-{number}")
        try:
            if final.exists():
                raise FileExistsError(final)
            aside.rename(final)
        except OSError:
            if not final.exists():
                shutil.rmtree(aside, ignore_errors=True)
                raise
            number += 1
        else:
            fsync_folder(runs_dir)
            return RunFolder(final)


def is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and not path.name.endswith(".partial")


def find_run(run: str, runs_dir: Path | None = None) -> RunFolder:
    """The run that `run` names: a run folder's path, or its name below `runs_dir`. Raises InputError."""
    places = [Path(run), (runs_dir or default_runs_dir()) / run]
    for place in places:
        if is_run(place):
            return RunFolder(place.absolute())
    raise InputError(
        "there is no such run",
        where=run,
        remedy=f"name a run folder, or a run in {runs_dir or default_runs_dir()} (`runs` lists them)",
    )


@dataclass(frozen=True)
class RunSummary:
    """What a list of runs shows. `state` is running, finished, stopped, failed or interrupted."""

    name: str
    path: Path
    state: str
    step: int
    steps: int
    error: str
    result: dict[str, Any]
    changed: float


def summarize(run: RunFolder) -> RunSummary:
    """Reads a run's events once; cheap enough for a list, not for a poll."""
    events, _ = read_events(run.events)
    step = steps = 0
    state, error = "interrupted", ""
    for event in events:
        fields = event.fields
        if event.name == "plan":
            steps, state, error = int(fields.get("steps") or 0), "interrupted", ""
        elif event.name in ("step", "checkpoint"):
            step = int(fields.get("step") or step)
        elif event.name == "error":
            state, error = "failed", str(fields.get("text", ""))
        elif event.name == "phase" and fields.get("name") == "stopped":
            state = "stopped"
        elif event.name == "done":
            state = "finished"
    if run.is_alive():
        state = "running"
    changed = events[-1].time if events else run.config.stat().st_mtime
    return RunSummary(run.name, run.path, state, step, steps, error, read_result(run), changed)


def read_result(run: RunFolder) -> dict[str, Any]:
    """What result.json says (files, their sha256, weight change); {} while there is none."""
    try:
        content = json.loads(run.result.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def list_runs(runs_dir: Path) -> list[RunSummary]:
    """All runs below `runs_dir`, the newest first. A folder that is not there has none."""
    if not runs_dir.is_dir():
        return []
    runs = [summarize(RunFolder(path)) for path in runs_dir.iterdir() if is_run(path)]
    return sorted(runs, key=lambda run: run.changed, reverse=True)
