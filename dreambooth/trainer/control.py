"""Orders from outside: command files, Ctrl-C and its kin. Looked at between steps, never in the middle of one."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from dreambooth.shared.events import Emit
from dreambooth.shared.runfolder import Command, RunFolder

# SIGBREAK is Windows' Ctrl-Break, which is how another process can interrupt a console program there
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGBREAK")


class StopNow(KeyboardInterrupt):
    """Stop at once, without saving: a second Ctrl-C, or the command stop_now."""


def _stop_signals() -> list[signal.Signals]:
    return [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]


def ignore_stop_signals() -> None:
    """From here on the work is over, and only its end is noted: one Ctrl-C more must not tear that."""
    for number in _stop_signals():
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that nothing half written is left. Windows never sends it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


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
        before = {number: signal.signal(number, self._receive) for number in _stop_signals()}
        try:
            yield self
        finally:
            for number, handler in before.items():  # None: one that Python did not set, and cannot set again
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Inbox:
    """What the outside wants of a run. A stop is seen in every phase; other commands wait for the training."""

    def __init__(self, run: RunFolder, signals: Signals, emit: Emit, *, every: float = 0.2) -> None:
        self._run = run
        self._signals = signals
        self._emit = emit
        self._every = every
        self._next_look = -math.inf
        self._seen = -1
        self._waiting: list[Command] = []
        self._stuck: set[Path] = set()
        self._stops = False

    def _look(self) -> None:
        """Reads the folder when it has changed, which costs next to nothing to ask; where that cannot be seen, every so many
        seconds: steps may take milliseconds."""
        now, changed = time.monotonic(), self._changed()
        if now >= self._next_look or changed != self._seen:
            self._seen = changed
            waiting = self._run.waiting_commands()
            self._waiting = [command for command in waiting if command.path not in self._stuck]
            self._next_look = now + self._every

    def _changed(self) -> int:
        """When a file came into the folder last, or left it; 0 while there is none."""
        try:
            return self._run.commands.stat().st_mtime_ns
        except OSError:
            return 0

    def should_stop(self) -> bool:
        """Whether to stop after what is being done is saved. Raises StopNow for the command stop_now."""
        self._look()
        for command in self._waiting:
            if command.do == "stop_now":
                self.answer(command)
                raise StopNow
        for command in self._waiting:
            if command.do == "stop":
                self.answer(command)
                self._stops = True
        return self._stops or self._signals.count > 0

    def commands(self) -> list[Command]:
        """The waiting commands other than stops, oldest first; each is to be answered with `answer`."""
        self._look()
        return [command for command in self._waiting if command.do not in ("stop", "stop_now")]

    def answer(self, command: Command) -> None:
        """Says that a command was taken, and forgets it."""
        self._emit("ack", id=command.id)
        self._waiting = [other for other in self._waiting if other.path != command.path]
        self._remove(command)

    def clear(self) -> None:
        """Drops the commands that an earlier trainer left unanswered: they were meant for it.

        Those that are younger than this trainer's lock are for this one.
        """
        began = self._run.lock.stat().st_mtime_ns if self._run.lock.exists() else math.inf
        for command in self._run.waiting_commands():
            with contextlib.suppress(OSError):
                if command.path.stat().st_mtime_ns < began:
                    self._remove(command)

    def _remove(self, command: Command) -> None:
        try:
            command.path.unlink(missing_ok=True)
        except OSError:  # Windows, while somebody has it open: it stays, and is not obeyed again
            self._stuck.add(command.path)
