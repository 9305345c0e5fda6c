"""Shows a run's events to whoever started it: a progress bar on a terminal, plain lines in a pipe and in log.txt."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

PHASES = {
    "class images": "Making class images",
    "caching": "Encoding images",
    "training": "Training",
    "export": "Writing the checkpoint",
    "samples": "Making sample pictures",
}
# Seconds between two plain lines of progress: enough to see that it lives, not so many that a log drowns.
PLAIN_EVERY = 10.0


def duration(seconds: float) -> str:
    """`75` is "1:15", `3700` is "1:01:40"."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _width(out: IO[str] | io.TextIOBase) -> dict[str, Any]:
    """As wide as the terminal, also when that changes; some (of containers) say that they have no columns at all."""
    try:
        return {"dynamic_ncols": True} if os.get_terminal_size(out.fileno()).columns else {"ncols": 100}
    except (OSError, ValueError):
        return {"ncols": 100}


class _Nowhere(io.TextIOBase):
    """A console that is not there."""

    def write(self, text: str) -> int:
        return len(text)


class Reporter:
    """Turns events into lines; `log` gets every line, the console a bar where it is a terminal.

    Neither a console that has gone (a closed window, `| head`) nor a full disk ends a training: what cannot be
    written is not shown.
    """

    def __init__(self, log: Path | None = None, out: IO[str] | None = None) -> None:
        self._out: IO[str] | io.TextIOBase = (
            out or sys.stderr or _Nowhere()
        )  # None: a process without a console, as on Windows
        self._log = log.open("a", encoding="utf-8") if log is not None else None
        self._terminal = self._out.isatty()
        self._bar: tqdm[Any] | None = None
        self._shown = 0.0
        self._phase = self._what = ""
        self._sampled: int | None = None

    def close(self) -> None:
        """Ends the bar and the log."""
        self._end_bar()
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.close()

    def write(self, text: str) -> None:
        """A line for both console and log."""
        with self._console():
            if self._bar is not None:
                self._bar.clear()
            self._out.write(f"{text}\n")
            self._out.flush()
            if self._bar is not None:
                self._bar.refresh()
        self.log(text)

    def log(self, text: str) -> None:
        """A line for the log alone."""
        if self._log is not None:
            with contextlib.suppress(OSError, ValueError):
                self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
                self._log.flush()

    @contextlib.contextmanager
    def _console(self) -> Iterator[None]:
        """What is written to the console in the block is lost where there is none any more."""
        try:
            yield
        except (OSError, ValueError):  # ValueError: it was closed
            self._out, self._bar, self._terminal = _Nowhere(), None, False

    def show(self, event: str, fields: dict[str, Any]) -> None:
        """One event, as it was emitted."""
        shower = getattr(self, f"_show_{event}", None)
        if shower is not None:
            shower(fields)

    def _show_phase(self, fields: dict[str, Any]) -> None:
        self._end_bar()
        self._phase = str(fields["name"])
        self._what = ""
        if self._phase in PHASES:
            self.write(PHASES[self._phase])
        else:
            self.log(self._phase)

    def _show_progress(self, fields: dict[str, Any]) -> None:
        if fields["name"] == "samples":  # between two steps: the bar of the training stays
            if fields["done"] == 0:
                self.log(f"{PHASES['samples']} ({fields['of']})")
            return
        self._advance(str(fields["name"]), int(fields["done"]), int(fields["of"]), "", "")

    def _show_step(self, fields: dict[str, Any]) -> None:
        loss = f"loss {fields['loss']:.4f}" if fields["loss"] is not None else "loss nan"
        memory = f"{fields['memory_gb']:.1f} GB"
        parts = [loss]
        if fields["prior_loss"]:
            parts[0] += f" (instance {fields['instance_loss']:.4f}, prior {fields['prior_loss']:.4f})"
        parts.append(memory)
        if fields["eta_s"] is not None:
            parts += [f"{fields['it_s']:.2f} steps/s", f"{duration(fields['eta_s'])} left"]
        # the bar says rate and time itself, and has little room
        self._advance(
            "training", int(fields["step"]), int(fields["of"]), " · ".join(parts), f"{loss}, {memory}"
        )

    def _advance(self, what: str, done: int, of: int, text: str, short: str) -> None:
        if what != self._what:  # a phase may have several parts, such as images and captions
            self._end_bar()
            self._what, self._shown = what, 0.0
        if self._terminal:
            with self._console():
                self._move_bar(done, of, short)
        now = time.monotonic()
        if now - self._shown >= PLAIN_EVERY or done == of:
            self._shown = now
            line = f"{what} {done}/{of} {text}".rstrip()
            self.log(line) if self._terminal else self.write(line)

    def _move_bar(self, done: int, of: int, text: str) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=of, file=self._out, desc=self._what, initial=max(0, done - 1), **_width(self._out)
            )
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(done - self._bar.n)

    def _end_bar(self) -> None:
        if self._bar is not None:
            bar, self._bar = self._bar, None
            with self._console():
                bar.close()

    def _show_sample(self, fields: dict[str, Any]) -> None:
        self.log(f"sample of step {fields['step']}: {fields['path']}")
        if fields["step"] != self._sampled:  # one line for all pictures of a step
            self._sampled = fields["step"]
            self.write(f"Sample pictures of step {fields['step']}: {Path(fields['path']).parent}")

    def _show_checkpoint(self, fields: dict[str, Any]) -> None:
        self.log(f"state of step {fields['step']} saved: {fields['path']}")

    def _show_exported(self, fields: dict[str, Any]) -> None:
        self.write(f"Written: {fields['path']}")

    def _show_warning(self, fields: dict[str, Any]) -> None:
        self.write(f"Note: {fields['text']}")

    def _show_error(self, fields: dict[str, Any]) -> None:
        self._end_bar()
        advice = f" What to do: {fields['remedy']}" if fields.get("remedy") else ""
        self.log(f"error: {fields['text']}{advice}")

    def _show_done(self, fields: dict[str, Any]) -> None:
        self._end_bar()
        changes = ", ".join(
            f"{name} {change['relative']:.2e}" for name, change in (fields.get("weight_change") or {}).items()
        )
        self.write(
            f"Done: {fields['path']}" + (f"  (relative change of the weights: {changes})" if changes else "")
        )
