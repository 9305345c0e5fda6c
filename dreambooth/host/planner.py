"""Asks the trainer for what only it can do: the plan of a form, what a model file is, the small base in its place.

Each question is a short process of the trainer's. Of a page's plans only the newest matters: an older one that is still
being made is ended. Another page's is none of its business. Nor is one made on for a page that was closed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import detached
from ..environment import RETURNED_VARIABLE
from ..shared.errors import DreamboothError, InputError
from . import endings
from .answers import Conflict
from .jobs import Trainer

PATIENCE = 180.0
MOST_AT_ONCE = 2  # plans that are made at one moment: each takes a trainer's memory
_LOOK_EVERY = 0.25
_NEWER = "a newer form is being planned"


@dataclass
class _Question:
    """A plan that is being made for a page. `is_old` once the page has asked anew, `is_gone` says whether nobody waits for
    it any more: the tab was closed."""

    is_old: bool = False
    is_gone: Callable[[], bool] = lambda: False
    process: subprocess.Popen[bytes] | None = None


class Planner:
    """`trainer` says how a trainer is started; it raises DreamboothError while that cannot be. `closing` is true once
    the page's server waits for our answers, see `webui.is_closing`; `returned` are bytes of the card that will be given
    back before a run, so that a plan may count on them."""

    def __init__(
        self,
        trainer: Callable[[], Trainer],
        closing: Callable[[], bool] = lambda: False,
        returned: Callable[[], int] = lambda: 0,
    ) -> None:
        self._trainer = trainer
        self._closing = closing
        self._returned = returned
        self._lock = threading.Lock()
        self._places = threading.Semaphore(MOST_AT_ONCE)
        self._asked: dict[str, _Question] = {}  # page → its newest question
        self._inspected: dict[tuple[str, int, int], dict[str, Any]] = {}

    def plan(
        self, config: str, page: str = "", is_gone: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """The plan of a config (YAML). Raises InputError with what is wrong in it, Conflict if `page` has asked for a
        newer one meanwhile or whoever asked `is_gone`, DreamboothError where there is no trainer to ask. Without a page
        no older one is ended."""
        trainer = self._trainer()
        told = {RETURNED_VARIABLE: str(self._returned())}
        trainer = dataclasses.replace(trainer, environ={**trainer.environ, **told})
        with (
            self._question(page or uuid.uuid4().hex, is_gone) as question,
            self._place(question),
            tempfile.TemporaryDirectory(prefix="dreambooth-plan-", ignore_cleanup_errors=True) as folder,
        ):
            path = Path(folder) / "form.yaml"
            path.write_text(config, encoding="utf-8")
            return self._ask(trainer, ["plan", str(path), "--json"], question, form=str(path))

    @contextlib.contextmanager
    def _question(self, page: str, is_gone: Callable[[], bool]) -> Iterator[_Question]:
        """The page's newest question; what it asked before is ended."""
        own = _Question(is_gone=is_gone)
        with self._lock:
            older = self._asked.get(page)
            self._asked[page] = own
            if older is not None:
                older.is_old = True
                if older.process is not None:
                    _end(older.process)
        try:
            yield own
        finally:
            with self._lock:
                if self._asked.get(page) is own:
                    del self._asked[page]

    @contextlib.contextmanager
    def _place(self, question: _Question) -> Iterator[None]:
        """One of the places, waited for."""
        deadline = time.monotonic() + PATIENCE
        while not self._places.acquire(timeout=_LOOK_EVERY):
            self._check_patience(question, deadline)
        try:
            yield
        finally:
            self._places.release()

    def inspect(self, path: Path) -> dict[str, Any]:
        """What a model file is, remembered while the file is the same. Raises like `plan`."""
        try:
            about = path.stat()
        except OSError as error:
            raise InputError(
                "there is no such file", where=str(path), remedy="list the models again"
            ) from error
        key = (str(path), about.st_size, about.st_mtime_ns)
        if key not in self._inspected:
            self._inspected[key] = self._ask(
                self._trainer(), ["inspect", str(path), "--json", "--no-hash"], _Question()
            )
        return self._inspected[key]

    def place_base(self, folder: Path) -> Path:
        """Has the small base put into a folder of checkpoints; its file. Raises like `plan`."""
        return Path(self._ask(self._trainer(), ["base", str(folder), "--json"], _Question())["path"])

    def _ask(
        self, trainer: Trainer, arguments: list[str], question: _Question, *, form: str = ""
    ) -> dict[str, Any]:
        try:
            process = _start(trainer, arguments)
        except OSError as error:
            raise DreamboothError(
                f"the trainer cannot be started ({error.strerror or error})", where=trainer.command[0],
                remedy="make the environment again",
            ) from error  # fmt: skip
        with self._lock:
            question.process = process
        try:
            printed, told = self._answer_of(process, question)
        except BaseException:
            _end(process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=5.0)  # its pipes are closed, and it is nobody's zombie
            raise
        if question.is_old:
            raise Conflict(_NEWER, remedy="wait for its plan")
        return _answer(printed, told.decode("utf-8", "replace"), process.returncode, form)

    def _answer_of(self, process: subprocess.Popen[bytes], question: _Question) -> tuple[bytes, bytes]:
        """What a process prints and tells."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=_LOOK_EVERY)
            self._check_patience(question, deadline)

    def _check_patience(self, question: _Question, deadline: float) -> None:
        """Raises why an answer is not waited for any longer. "Reload UI" hangs on every one that is owed."""
        if question.is_old:
            raise Conflict(_NEWER, remedy="wait for its plan")
        if question.is_gone():
            raise Conflict("nobody waits for this plan any more", remedy="ask again")
        if self._closing():
            raise DreamboothError("the WebUI makes its page anew", remedy="it asks again by itself")
        if time.monotonic() > deadline:
            raise DreamboothError(
                f"no answer in {PATIENCE:.0f} seconds",
                remedy="is the photos' folder on a slow or sleeping disk?",
            )


def _start(trainer: Trainer, arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*trainer.command, *arguments], env=dict(trainer.environ), cwd=trainer.cwd, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **detached.options(),
    )  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process of ours with all that it started; one that has ended is left alone."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()


def _answer(printed: bytes, told: str, code: int, form: str) -> dict[str, Any]:
    try:
        answer = json.loads(printed)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise _unreadable(told, code, form)
    if "error" in answer:
        about = _about(answer["error"], form)
        more = {name: value for name, value in answer.items() if name != "error"}
        if "problems" in more:
            more["problems"] = [_about(one, form) for one in more["problems"]]
        where = about["where"]
        raise InputError(about["text"], where=where, remedy=about["remedy"], setting=where, more=more)
    return answer


def _about(error: Mapping[str, Any], form: str) -> dict[str, str]:
    """A problem as the trainer tells it; of the form itself it need not say where."""
    about = {name: str(error.get(name) or "") for name in ("text", "where", "remedy")}
    return {**about, "where": "" if about["where"] == form else about["where"]}


def _unreadable(told: str, code: int, form: str) -> DreamboothError:
    """No JSON: the trainer's own message, or the last words of what went wrong in it."""
    with tempfile.TemporaryDirectory(prefix="dreambooth-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log.txt"
        log.write_text(told, encoding="utf-8")
        ending = endings.ending_of(log, code=code)
    text = ending.text.removeprefix(f"{form}: ") if form else ending.text
    return endings.as_error(endings.Ending(text, ending.remedy, ending.where), code=code)
