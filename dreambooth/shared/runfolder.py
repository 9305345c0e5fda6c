"""The run folder: the border between the processes. Everything that outlives a process is in it.

config.yaml · asked.yaml · log.txt · events.jsonl · commands/ · lock · state/step-N/ · samples/ · result.json ·
base.json · stepped_down.json · adapter.json
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import lock
from .errors import InputError
from .events import SCHEMA, newest_first
from .paths import (
    check_file_name,
    check_writable,
    default_runs_dir,
    fsync_folder,
    replace,
    write_json,
    write_whole,
)

CommandName = Literal["stop", "stop_now", "save", "export", "sample"]
_order = itertools.count()
_STATE = re.compile(r"step-(\d+)")
# event → the state of a run whose trainer is gone and whose last event among these it is; a phase only if it is `stopped`
_LAST_WORDS = {"plan": "", "error": "failed", "phase": "stopped", "done": "finished"}
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
    def asked(self) -> Path:
        """The settings as they were asked for, with what was left open: to train so again. Older runs have none."""
        return self.path / "asked.yaml"

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
        """Holds the run for a trainer. Raises InputError if another trainer has it, or nobody can."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(lock.hold(self.lock))
            except lock.HeldElsewhere as error:
                raise InputError(
                    f"another trainer (process {error.pid or 'unknown'}) is working on this run",
                    where=str(self.path),
                    remedy="wait until it ends, or stop it with `stop`",
                ) from error
            except OSError as error:
                raise InputError(
                    f"its lock cannot be taken ({error.strerror})",
                    where=str(self.path),
                    remedy="keep runs on a local disk that may be written (`runs_dir`)",
                ) from error
            yield

    def order(self, do: CommandName) -> str:
        """Leaves a command for the trainer; returns the id by which its `ack` is known.
        Raises InputError if the folder cannot be written."""
        # files of one moment have one time stamp: their names keep the order in which they were given
        identifier = f"{time.time_ns():020d}-{next(_order):06d}-{uuid.uuid4().hex[:8]}"
        try:
            self.commands.mkdir(exist_ok=True)
            write_json(self.commands / f"{identifier}.json", {"id": identifier, "do": do})
        except OSError as error:
            raise InputError(
                f"no command can be left here ({error.strerror})",
                where=str(self.commands),
                remedy="change the folder's permissions, or ask its owner",
            ) from error
        return identifier

    def waiting_commands(self) -> list[Command]:
        """The commands that nobody has answered yet, oldest first. A file that is no command is removed."""
        try:
            names = sorted(name for name in os.listdir(self.commands) if name.endswith(".json"))
        except FileNotFoundError:
            return []
        commands = []
        for name in names:
            # gone meanwhile, or opened by a virus scanner: nothing is known of it yet, so it stays
            with contextlib.suppress(OSError):
                command = _read_command(self.commands / name)
                if command is None:
                    (self.commands / name).unlink()
                else:
                    commands.append(command)
        return commands


def _read_command(path: Path) -> Command | None:
    try:
        content = json.loads(path.read_bytes())
        return Command(str(content["id"]), content["do"], path) if content["do"] in COMMANDS else None
    except (ValueError, KeyError, TypeError):
        return None


def create_run(runs_dir: Path, name: str, config: str, asked: str = "") -> RunFolder:
    """Makes `<runs_dir>/<name>` with its config.yaml inside, or `<name>-2`, … when that is taken. `config` is what the run
    goes by, `asked` (if it is told) what was asked for.

    The folder is made aside and renamed into place, so that no reader ever sees one without its config.
    """
    check_file_name(name, setting="output_name")
    check_writable(runs_dir, setting="runs_dir")
    runs_dir.mkdir(parents=True, exist_ok=True)
    aside = runs_dir / f".{name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        (aside / "commands").mkdir(parents=True)
        (aside / "samples").mkdir()
        write_whole(aside / "config.yaml", config.encode())
        if asked:
            write_whole(aside / "asked.yaml", asked.encode())
        final = _into_place(aside, name)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    fsync_folder(runs_dir)
    return RunFolder(final)


def _into_place(aside: Path, name: str) -> Path:
    """Renames `aside` to the first name that is free, also when others look for one at the same moment."""
    for number in itertools.count(1):
        final = aside.with_name(name if number == 1 else f"{name}-{number}")
        if os.path.lexists(final):
            continue
        try:
            replace(aside, final)
        except OSError:
            if not os.path.lexists(final):
                raise
        else:
            return final
    raise AssertionError("numbers do not end")


def free_name(run: RunFolder) -> str:
    """A name like the run's that no run beside it has: `cat-2` for `cat`."""
    name, found = run.name, re.fullmatch(r"(.+)-(\d+)", run.name)
    first, stem = (int(found[2]) + 1, found[1]) if found else (2, name)
    numbers = itertools.count(first)
    return next(
        f"{stem}-{number}"
        for number in numbers
        if not os.path.lexists(run.path.with_name(f"{stem}-{number}"))
    )


def is_run(path: Path) -> bool:
    """Whether `path` is a run's folder, and not one that is just being made."""
    try:
        return (path / "config.yaml").is_file() and not path.name.startswith(".")
    except OSError:  # a name too long, or a folder that we may not look into
        return False


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
    """What a list of runs shows. `state` is running, finished, stopped, failed or interrupted; `saved` is the newest step
    of which there is a state."""

    name: str
    path: Path
    state: str
    step: int
    steps: int
    error: str
    result: dict[str, Any]
    changed: float
    saved: int = 0


@dataclass(frozen=True)
class LastWord:
    """What a run's events end with, told without reading them all. `state` is finished, stopped, failed, or empty
    where the trainer ended without a word; `error` has text and remedy of a failure; `changed` is the last event's time."""

    state: str
    step: int
    steps: int
    error: dict[str, str] | None
    changed: float


def last_word(run: RunFolder) -> LastWord:
    """Reads from the end of the events: soon done, however long the run was."""
    # what an earlier life of the run did after its last save is not there any more
    step = next(newest_first(run.events, "step", "checkpoint", "plan"), None)
    if step is not None and step.name == "plan":
        step = next(newest_first(run.events, "checkpoint"), None)
    newest = next(newest_first(run.events, *SCHEMA), None)
    state, steps, error = None, 0, None
    for event in newest_first(run.events, *_LAST_WORDS):
        if event.name == "phase" and event.fields.get("name") != "stopped":
            continue
        if state is None:
            state = _LAST_WORDS[event.name]
            if state == "failed":
                error = {name: str(event.fields.get(name) or "") for name in ("text", "remedy")}
        if event.name == "plan":  # where a life of the run began
            steps = _count(event.fields.get("steps"))
            break
    reached = _count(step.fields.get("step")) if step else 0
    return LastWord(state or "", reached, steps, error, newest.time if newest else 0.0)


def saved_step(run: RunFolder) -> int:
    """The step of the newest whole state, 0 while there is none."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir(run.states)
    steps = [int(found[1]) for name in names if (found := _STATE.fullmatch(name))]
    return max((step for step in steps if (run.states / f"step-{step}" / "state.json").is_file()), default=0)


def summarize(run: RunFolder) -> RunSummary:
    """A run for a list of runs."""
    last = last_word(run)
    state = "running" if run.is_alive() else last.state or "interrupted"
    return RunSummary(
        run.name, run.path, state, last.step, last.steps, (last.error or {}).get("text", ""), read_result(run),
        last.changed or run.config.stat().st_mtime, saved_step(run),
    )  # fmt: skip


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def read_result(run: RunFolder) -> dict[str, Any]:
    """What result.json says (files, their sha256, weight change); {} while there is none."""
    try:
        content = json.loads(run.result.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def list_runs(runs_dir: Path) -> list[RunSummary]:
    """All runs below `runs_dir`, the newest first. A folder that is not there has none."""
    try:
        paths = [path for path in runs_dir.iterdir() if is_run(path)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    runs = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # deleted while we look
            runs.append(summarize(RunFolder(path)))
    return sorted(runs, key=lambda run: run.changed, reverse=True)
