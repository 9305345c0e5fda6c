"""Starts trainers as processes of their own, and finds them again: after "Reload UI", and after the WebUI's death.

A job is a folder: what was asked (config.yaml), what the trainer printed (log.txt), which run it became
(note.json, written by the trainer), and what is known of its process (job.json). Whether a run lives is told by
its own lock; a job's process counts only until it has that lock.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import detached
from ..shared import lock
from ..shared.errors import DreamboothError
from ..shared.paths import write_json, write_whole
from ..shared.runfolder import RunFolder, is_run
from . import endings
from .answers import Conflict

KEPT = 30
PATIENCE = 300.0  # seconds for a trainer to look at everything and make its run folder
_LOOK_EVERY = 0.05
_SCAN_EVERY = 2.0
_BUSY = "A DreamBooth training has the card. Wait until it is done, or stop it in the DreamBooth tab."


@dataclass(frozen=True)
class Trainer:
    """How a trainer is started."""

    command: list[str]
    environ: Mapping[str, str]
    cwd: Path


@dataclass(frozen=True)
class Card:
    """The card's free memory in GB before and after the WebUI's model left it; None where it is not known."""

    before_gb: float | None
    after_gb: float | None


@dataclass(frozen=True)
class Job:
    """One start of a trainer. `run` is the run's folder, "" while there is none yet."""

    folder: Path
    what: str
    pid: int
    started: float
    card: Card | None = None
    resumed: str = ""

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def stopped(self) -> Path:
        """Is there if the user ended the trainer before it heard commands."""
        return self.folder / "stopped"

    @property
    def was_stopped(self) -> bool:
        return self.stopped.exists()

    @property
    def run(self) -> str:
        try:
            return str(json.loads((self.folder / "note.json").read_bytes())["run"])
        except (OSError, ValueError, KeyError, TypeError):
            return self.resumed


@dataclass(frozen=True)
class Active:
    """What has the card: a run, or a job that has no run yet. Both None: the card is just being freed."""

    run: RunFolder | None = None
    job: Job | None = None


TakeCard = Callable[[Callable[[], None]], Card | None]


class Jobs:
    """The trainers of one WebUI. `folder` is where jobs are kept, `trainer` says how one is started (and raises
    DreamboothError while that cannot be), `runs_dir` where runs are, `closing` whether the page's server waits for our
    answers (`webui.is_closing`): then a start is not waited for, and goes on by itself."""

    def __init__(
        self,
        folder: Path,
        trainer: Callable[[], Trainer],
        runs_dir: Callable[[], Path],
        closing: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder = folder
        self._closing = closing
        self._trainer = trainer
        self._runs_dir = runs_dir
        self._turn = threading.Lock()
        self._taken = False
        self._processes: dict[Path, subprocess.Popen[bytes]] = {}
        self._living: RunFolder | None = None
        self._by_run: dict[Path, Job] = {}
        self._scanned = -_SCAN_EVERY

    # ---- starting ---------------------------------------------------------------------------------------------

    def start(self, config: str, take_card: TakeCard, *, patience: float = PATIENCE) -> RunFolder | None:
        """Starts a training of `config` (YAML). Its run folder as soon as there is one, None if `patience` seconds
        were not enough for that. Raises Conflict while another runs, else why the trainer would not."""
        return self._start("train", config, take_card, patience)

    def resume(self, run: RunFolder, take_card: TakeCard, *, patience: float = PATIENCE) -> RunFolder | None:
        """Goes on with a run; otherwise like `start`."""
        return self._start("resume", str(run.path), take_card, patience)

    def _start(self, what: str, about: str, take_card: TakeCard, patience: float) -> RunFolder | None:
        trainer = self._trainer()
        with self._alone():
            folder = self._new_folder()
            try:
                if what == "train":
                    write_whole(folder / "config.yaml", about.encode())
                card = take_card(self._take)
                job = self._spawn(folder, what, about, trainer, card)
            except OSError as error:
                shutil.rmtree(folder, ignore_errors=True)
                raise DreamboothError(
                    f"the trainer cannot be started ({error.strerror or error})", where=trainer.command[0],
                    remedy="make the environment again, and look at the room on the disk",
                ) from error  # fmt: skip
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            return self._run_of(job, patience)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else starts a trainer meanwhile: no other call, and no other WebUI on the same data."""
        if not self._turn.acquire(blocking=False):
            raise _conflict(Active())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with lock.hold(self.folder / "starting.lock", patience=0.2):
                active = self.active(scan=True)
                if active is not None:
                    raise _conflict(active)
                yield
        except lock.HeldElsewhere as error:
            raise _conflict(Active()) from error
        finally:
            self._taken = False
            self._turn.release()

    def _take(self) -> None:
        self._taken = True

    def _new_folder(self) -> Path:
        self._sweep()
        folder = self.folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:4]}"
        folder.mkdir(parents=True)
        return folder

    def _sweep(self) -> None:
        """Only the newest jobs are kept."""
        for job in self.jobs()[KEPT - 1 :]:
            if not self._is_alive(job):
                self._processes.pop(job.folder, None)
                shutil.rmtree(job.folder, ignore_errors=True)

    def _spawn(self, folder: Path, what: str, about: str, trainer: Trainer, card: Card | None) -> Job:
        subject = str(folder / "config.yaml") if what == "train" else about
        arguments = [*trainer.command, what, subject, "--note", str(folder / "note.json")]
        with (folder / "log.txt").open("ab") as output:
            process = detached.start(arguments, output=output, environ=trainer.environ, cwd=trainer.cwd)
        self._processes[folder] = process
        try:
            return self._record(
                Job(folder, what, process.pid, time.time(), card, about if what == "resume" else "")
            )
        except BaseException:
            process.kill()  # nobody would ever find it again
            raise

    def _record(self, job: Job) -> Job:
        known = {name: value for name, value in asdict(job).items() if name != "folder"}
        write_json(job.folder / "job.json", known)
        if job.resumed:
            self._by_run[Path(job.resumed)] = job
        return job

    def _run_of(self, job: Job, patience: float) -> RunFolder | None:
        """Waits for the trainer's note. Raises why it ended if it ends before that."""
        note = job.folder / "note.json"
        deadline = time.monotonic() + patience
        while not note.exists():
            process = self._processes[job.folder]
            if process.poll() is not None and not note.exists():
                ending = endings.ending_of(job.log, code=process.returncode)
                write_json(job.folder / "ending.json", asdict(ending))
                raise endings.as_error(ending, code=process.returncode)
            if time.monotonic() > deadline or self._closing():
                return None
            time.sleep(_LOOK_EVERY)
        self._living = RunFolder(Path(job.run))
        self._by_run[self._living.path] = job
        return self._living

    # ---- finding ----------------------------------------------------------------------------------------------

    def jobs(self, most: int | None = None) -> list[Job]:
        """The jobs that are kept, the newest first."""
        try:
            names = sorted((name for name in os.listdir(self.folder) if name[:1].isdigit()), reverse=True)
        except OSError:
            return []
        found = (job for name in names if (job := _read_job(self.folder / name)) is not None)
        return list(itertools.islice(found, most))

    def job_of(self, run: RunFolder) -> Job | None:
        """The newest start of a run, None if this WebUI's data knows of none."""
        if run.path not in self._by_run:
            found = next((job for job in self.jobs() if job.run and Path(job.run) == run.path), None)
            if found is None:
                return None
            self._by_run[run.path] = found
        return self._by_run[run.path]

    def code_of(self, job: Job) -> int | None:
        """The exit code of a job's process, where this WebUI started it and it has ended."""
        process = self._processes.get(job.folder)
        return None if process is None else process.poll()

    def active(self, *, scan: bool = False) -> Active | None:
        """What has the card, or is about to have it; None if nothing. Cheap, but for a look at all runs' locks at
        most every two seconds (or now, with `scan`)."""
        if self._living is not None and self._living.is_alive():
            return Active(self._living, self.job_of(self._living))
        self._living = None
        for job in self.jobs(3):
            if self._is_alive(job):
                run = RunFolder(Path(job.run)) if job.run else None
                self._living = run
                return Active(run, job)
        if self._taken:
            return Active()
        if scan or time.monotonic() - self._scanned > _SCAN_EVERY:
            self._scanned = time.monotonic()
            self._living = next((run for run in self._runs() if run.is_alive()), None)
        return Active(self._living, self.job_of(self._living)) if self._living is not None else None

    def _runs(self) -> Iterator[RunFolder]:
        """The runs of the folder, also those that a command line started."""
        with contextlib.suppress(OSError):
            for path in self._runs_dir().iterdir():
                if is_run(path):
                    yield RunFolder(path)

    def failed_start(self) -> tuple[Job, endings.Ending] | None:
        """The newest job, if it ended before it became a run."""
        newest = next(iter(self.jobs(1)), None)
        if newest is None or newest.run or self._is_alive(newest):
            return None
        with contextlib.suppress(OSError, ValueError, TypeError):
            return newest, endings.Ending(**json.loads((newest.folder / "ending.json").read_bytes()))
        return newest, endings.ending_of(newest.log, code=self.code_of(newest))

    def ending_of(self, run: RunFolder) -> endings.Ending:
        """Why a run that is dead without a word in its events ended."""
        job = self.job_of(run)
        if job is None:
            return endings.ending_of(run.log)
        if job.was_stopped:
            return endings.Ending("it was stopped while it was starting", "resume goes on with it")
        return endings.ending_of(job.log, code=self.code_of(job))

    def failed_resume(self, run: RunFolder, changed: float) -> endings.Ending | None:
        """Why a trainer that was to go on with a run ended without a word in its events, which were last written at
        `changed`; None if there was no such trainer."""
        job = self.job_of(run)
        if (
            job is None
            or not job.resumed
            or job.started < changed
            or self.code_of(job) == 0
            or job.was_stopped
        ):
            return None
        return endings.ending_of(job.log, code=self.code_of(job))

    def resumed_at(self, run: RunFolder) -> float:
        """When the newest trainer that was to go on with a run was started, 0.0 if there was none."""
        job = self.job_of(run)
        return job.started if job is not None and job.resumed else 0.0

    def is_starting(self, run: RunFolder) -> bool:
        """Whether a trainer for this run is on its way, though it has no lock yet."""
        job = self.job_of(run)
        return job is not None and self._is_alive(job)

    def end_start(self, run: RunFolder) -> bool:
        """Ends a trainer that is on its way to this run and hears no commands yet; nothing is lost. Whether there
        was one."""
        job = self.job_of(run)
        if job is None or not self._is_alive(job):
            return False
        with contextlib.suppress(OSError):
            write_whole(job.stopped, b"")
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(job.pid, signal.SIGTERM)
        return True

    def _is_alive(self, job: Job) -> bool:
        """Whether this very process lives: numbers of processes are used again, its note's path is not."""
        process = self._processes.get(job.folder)
        if process is not None:
            return process.poll() is None
        import psutil

        try:
            found = psutil.Process(job.pid)
            own = str(job.folder / "note.json") in found.cmdline()
            return own and found.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def cancel_start(self) -> bool:
        """Ends a trainer that has no run yet. Whether there was one."""
        active = self.active()
        if active is None or active.job is None or active.run is not None:
            return False
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(active.job.pid, signal.SIGTERM)
        return True


def _read_job(folder: Path) -> Job | None:
    try:
        known: dict[str, Any] = json.loads((folder / "job.json").read_bytes())
        card = Card(**known["card"]) if known["card"] else None
        return Job(
            folder,
            str(known["what"]),
            int(known["pid"]),
            float(known["started"]),
            card,
            str(known["resumed"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _conflict(active: Active) -> Conflict:
    name = f" ({active.run.name})" if active.run is not None else ""
    return Conflict(f"a training runs already{name}", remedy="wait until it is done, or stop it")


def busy_reason() -> str:
    """What Generate says while a training has the card or is about to, "" while none does."""
    from .services import services

    return _BUSY if services().jobs.active() is not None else ""
