"""Orders from outside: command files, Ctrl-C and its kin. Looked at between steps, never in the middle of one."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType

from dreambooth.shared.events import Emit
from dreambooth.shared.runfolder import Command, RunFolder

# SIGBREAK is Windows' Ctrl-Break, which is how another process can interrupt a console program there
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGBREAK")


class StopNow(BaseException):
    """Stop at once, without saving: a second Ctrl-C, or the command stop_now."""


class Signals:
    """Counts stop signals: one asks for a stop after saving, a second one ends the process's work at once."""

    def __init__(self) -> None:
        self.count = 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise StopNow

    @contextlib.contextmanager
    def caught(self) -> Iterator[Signals]:
        """Catches the signals while the block runs, and puts the handlers back that were there."""
        known = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
        before = {number: signal.signal(number, self._receive) for number in known}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Inbox:
    """What the outside wants of a run. A stop is seen in every phase; other commands wait for the training."""

    def __init__(self, run: RunFolder, signals: Signals, emit: Emit, *, every: float = 0.2) -> None:
        self._run = run
        self._signals = signals
        self._emit = emit
        self._every = every
        self._looked = 0.0
        self._waiting: list[Command] = []

    def _look(self) -> None:
        """Reads the folder, but not more often than `every` seconds: steps may take milliseconds."""
        now = time.monotonic()
        if now - self._looked >= self._every or not self._looked:
            self._waiting = self._run.waiting_commands()
            self._looked = now

    def should_stop(self) -> bool:
        """Whether to stop after what is being done is saved. Raises StopNow for the command stop_now."""
        self._look()
        for command in self._waiting:
            if command.do == "stop_now":
                self.answer(command)
                raise StopNow
        stops = [command for command in self._waiting if command.do == "stop"]
        for command in stops:
            self.answer(command)
            self._signals.count = max(1, self._signals.count)
        return self._signals.count > 0

    def commands(self) -> list[Command]:
        """The waiting commands other than stops, oldest first; each is to be answered with `answer`."""
        self._look()
        return [command for command in self._waiting if command.do not in ("stop", "stop_now")]

    def answer(self, command: Command) -> None:
        """Says that a command was taken, and forgets it."""
        self._emit("ack", id=command.id)
        command.path.unlink(missing_ok=True)
        self._waiting = [other for other in self._waiting if other.id != command.id]

    def clear(self) -> None:
        """Drops the commands that an earlier trainer left unanswered: they were meant for it."""
        for command in self._run.waiting_commands():
            command.path.unlink(missing_ok=True)
