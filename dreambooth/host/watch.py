"""The live view of a run: its events read as they come, kept as the little that a page shows."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..shared.events import Event, parse_event
from ..shared.runfolder import LastWord, RunFolder, last_word, read_result
from .chart import Chart
from .endings import Ending, tail

BUDGET = 0.003  # seconds that a look may spend on reading; the rest is read at the next
BLOCK = 16 * 1024
ALL = 60.0
LARGEST = 48_000  # bytes of an answer to a poll
LOG_LINES = 20
_KEPT_RUNS = 16


@dataclass
class View:
    """What a run's events say so far."""

    run: RunFolder
    offset: int = 0
    torn: bytes = b""
    plan: dict[str, Any] = field(default_factory=dict)
    phase: dict[str, Any] = field(default_factory=lambda: {"name": "", "of": 0, "done": 0})
    phases: list[dict[str, Any]] = field(default_factory=list)
    pace: tuple[str, float, int] = ("", 0.0, 0)  # a phase, and what its pace is counted from
    now: dict[str, Any] = field(default_factory=dict)
    chart: Chart = field(default_factory=Chart)
    samples: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    exports: dict[str, dict[str, Any]] = field(default_factory=dict)
    saved: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)
    error: dict[str, str] | None = None
    acks: list[str] = field(default_factory=list)
    orders: dict[str, str] = field(default_factory=dict)  # id → what this life of the run was told to do
    ended: str = ""
    changed: float = 0.0
    size: int = 0  # of the file, when it was last read from
    last: tuple[int, LastWord] | None = None  # how a file of that size ends
    lock: threading.Lock = field(default_factory=threading.Lock)

    def absorb(self, event: Event) -> None:
        """One event more. Those that are not known change nothing."""
        self.changed = event.time
        known = getattr(self, f"_on_{event.name}", None)
        if known is not None:
            known(dict(event.fields))

    def _on_plan(self, fields: dict[str, Any]) -> None:
        self.plan, self.error, self.ended, self.now = fields, None, "", {}
        self.warnings.clear()
        self.orders.clear()
        self.phase = {"name": "", "of": 0, "done": 0}

    def _on_phase(self, fields: dict[str, Any]) -> None:
        name = str(fields.get("name", ""))
        if name == "stopped":
            self.ended = "stopped"
        self.phase = {"name": name, "of": _count(fields.get("of")), "done": 0}
        self.phases.append({**self.phase, "time": self.changed})
        self.pace = (name, self.changed, 0)

    def _on_progress(self, fields: dict[str, Any]) -> None:
        self.phase = {
            "name": str(fields.get("name", "")),
            "of": _count(fields.get("of")),
            "done": _count(fields.get("done")),
        }
        if self.phase["name"] != self.pace[0] or not self.phase["done"]:
            self.pace = (self.phase["name"], self.changed, self.phase["done"])

    def phase_eta(self) -> float | None:
        """Seconds that the phase still took when it last said something, as fast as it went so far."""
        (_, began, before), made, of = self.pace, int(self.phase["done"]), int(self.phase["of"])
        if made <= before or self.phase["name"] in ("training", "samples"):
            return None
        return round((self.changed - began) / (made - before) * (of - made), 1)

    def _on_step(self, fields: dict[str, Any]) -> None:
        step = _count(fields.get("step"))
        self.now = {**fields, "step": step, "of": _count(fields.get("of"))}
        if self.phase["name"] in (
            "training",
            "samples",
        ):  # pictures between two steps are no phase of their own
            self.phase = {"name": "training", "of": self.now["of"], "done": step}
        self.chart.add(step, fields.get("loss"), fields.get("instance_loss"), fields.get("prior_loss"))

    def _on_sample(self, fields: dict[str, Any]) -> None:
        step, number = _count(fields.get("step")), _count(fields.get("number"))
        self.samples[step, number] = {
            "step": step, "index": number, "prompt": str(fields.get("prompt", "")), "seed": fields.get("seed"),
            "file": Path(str(fields.get("path", "")).replace("\\", "/")).name,
        }  # fmt: skip

    def _on_checkpoint(self, fields: dict[str, Any]) -> None:
        self.saved = {"step": _count(fields.get("step")), "time": self.changed}

    def _on_exported(self, fields: dict[str, Any]) -> None:
        path = str(fields.get("path", ""))
        self.exports.pop(path, None)
        self.exports[path] = {
            "step": _count(fields.get("step")), "path": path, "name": _name(path), "sha256": fields.get("sha256")
        }  # fmt: skip

    def _on_warning(self, fields: dict[str, Any]) -> None:
        text = str(fields.get("text", ""))
        if text not in self.warnings:
            self.warnings.append(text)

    def _on_error(self, fields: dict[str, Any]) -> None:
        self.ended = "failed"
        self.error = {"text": str(fields.get("text", "")), "remedy": str(fields.get("remedy") or "")}

    def _on_ack(self, fields: dict[str, Any]) -> None:
        self.acks = [*self.acks[-19:], str(fields.get("id", ""))]

    def _on_done(self, fields: dict[str, Any]) -> None:
        self.ended, self.error = "finished", None

    def read(self, *, budget: float = BUDGET) -> bool:
        """Reads what is new, for `budget` seconds. Whether all of it was read. A file that became shorter is another
        one, and read from its beginning."""
        deadline = time.perf_counter() + budget
        try:
            with self.run.events.open("rb") as file:
                size = file.seek(0, 2)
                if size < self.offset + len(self.torn):
                    self.__dict__.update(View(self.run, lock=self.lock).__dict__)
                self.size = size
                file.seek(self.offset + len(self.torn))
                while block := file.read(BLOCK):
                    self._take(self.torn + block)
                    if time.perf_counter() > deadline:
                        return file.read(1) == b""
        except FileNotFoundError:
            pass
        return True

    def _take(self, content: bytes) -> None:
        end = content.rfind(b"\n") + 1
        for line in content[:end].split(b"\n"):
            event = parse_event(line)
            if event is not None:
                self.absorb(event)
        self.offset += end
        self.torn = content[end:]


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _step(view: View, starting: bool = False) -> int:
    """The last step that was said, or else that of the last state, from which a run that is `starting` goes on."""
    return (0 if starting else _count(view.now.get("step"))) or _count((view.saved or {}).get("step"))


def _written(path: Path) -> float:
    """When a file was written last, 0.0 for none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _name(path: str) -> str:
    return Path(path.replace("\\", "/")).name


@dataclass(frozen=True)
class Look:
    """How a run stands: running, finished, stopped, failed or interrupted; what went wrong; and whether all that it
    has said was read."""

    state: str
    error: dict[str, str] | None
    step: int
    steps: int
    whole: bool
    ending: str = ""  # of one that runs: what it does before it is gone
    starting: bool = False  # its trainer is on its way, and all that was said is of the life before


class Watcher:
    """Views of the runs that were looked at last. `ending_of` says why a run died that has no word of it in its
    events, `is_starting` whether a trainer for it is on its way, `failed_resume` why the last one that was to go on
    with it never began, `began` when the last one that was to do so was started (0.0 if none was)."""

    def __init__(
        self,
        ending_of: Callable[[RunFolder], Ending],
        is_starting: Callable[[RunFolder], bool],
        failed_resume: Callable[[RunFolder, float], Ending | None] = lambda run, changed: None,
        began: Callable[[RunFolder], float] = lambda run: 0.0,
    ) -> None:
        self._ending_of = ending_of
        self._is_starting = is_starting
        self._failed_resume = failed_resume
        self._began = began
        self._views: OrderedDict[Path, View] = OrderedDict()
        self._lock = threading.Lock()
        self._endings: dict[tuple[Path, float], dict[str, str]] = {}

    def live(self, run: RunFolder, *, since: int | None = None, url: Callable[[str], str]) -> dict[str, Any]:
        """What a poll is answered with, never more than LARGEST bytes of JSON. `url` gives a sample's address.
        `chart` is None if nothing came since the offset `since`."""
        view = self._view(run)
        with view.lock:
            look = self._look(view)
            now = view.now
            answer: dict[str, Any] = {
                "offset": view.offset,
                "behind": not look.whole,
                "state": look.state,
                "starting": look.starting,
                "ending": look.ending,
                "phase": dict(view.phase),
                "phase_eta_s": view.phase_eta(),
                "step": look.step,
                "of": look.steps,
                **{name: now.get(name) for name in ("loss", "eta_s", "it_s", "memory_gb", "lr")},
                "chart": None if since is not None and since == view.offset else view.chart.as_json(),
                "saved": view.saved,
                "samples": _samples(view, url, most=48, width=160),
                "exports": list(view.exports.values())[-16:],
                "adapter": bool(view.plan.get("adapter")),
                "warnings": [_cut(text, 400) for text in view.warnings[-10:]],
                "error": look.error and {name: _cut(text, 1000) for name, text in look.error.items()},
                "acks": list(view.acks),
                "changed": view.changed,
                "log": tail(run.log, LOG_LINES),
                "result": read_result(run) if look.state == "finished" else None,
            }
        return _fitted(answer)

    def summary(self, run: RunFolder, *, url: Callable[[str], str]) -> dict[str, Any]:
        """Everything about a run but its chart."""
        view = self._view(run)
        with view.lock:
            look = self._look(view, budget=ALL)
            return {
                "name": run.name,
                "path": str(run.path),
                "state": look.state,
                "step": look.step,
                "steps": _count(view.plan.get("steps")),
                "changed": view.changed,
                "plan": view.plan,
                "phases": list(view.phases[-200:]),
                "saved": view.saved,
                "samples": _samples(view, url, most=2000, width=2000),
                "exports": list(view.exports.values()),
                "warnings": list(view.warnings),
                "error": look.error,
                "result": read_result(run) or None,
            }

    def exports(self, run: RunFolder) -> list[dict[str, Any]]:
        """The checkpoints that a run has written so far, in the order of writing."""
        view = self._view(run)
        with view.lock:
            view.read(budget=ALL)
            return list(view.exports.values())

    def progress(self, run: RunFolder) -> tuple[int, int, float]:
        """A run's step, its steps, and when it last said something."""
        view = self._view(run)
        with view.lock:
            look = self._look(view)
            return look.step, _count(view.plan.get("steps")), view.changed

    def ordered(self, run: RunFolder, identifier: str, do: str) -> None:
        """Hears what a run was told to do; the trainer's answer has no more than the order's id."""
        view = self._view(run)
        with view.lock:
            view.orders[identifier] = do

    def forget(self, run: RunFolder) -> None:
        """Lets go of a run that was deleted."""
        with self._lock:
            self._views.pop(run.path, None)

    def _view(self, run: RunFolder) -> View:
        with self._lock:
            view = self._views.setdefault(run.path, View(run))
            self._views.move_to_end(run.path)
            while len(self._views) > _KEPT_RUNS:
                self._views.popitem(last=False)
            return view

    def _look(self, view: View, *, budget: float = BUDGET) -> Look:
        """Reads what is new. A run that is over and not wholly read yet is told by its last word: what was read of it
        would say that it still runs."""
        held = view.run.is_alive()
        alive = held or self._is_starting(view.run)
        whole = view.read(budget=budget)
        step, steps = _step(view), _count(view.now.get("of")) or _count(view.plan.get("steps"))
        if alive:
            since = _written(view.run.lock) if held else self._began(view.run)
            starting = whole and since > view.changed
            ending = self._what_ends_it(view, held, since) if whole and not starting else ""
            return Look("running", None, _step(view, starting), steps, whole, ending, starting)
        ended, error, changed = view.ended, view.error, view.changed
        if not whole:
            last = self._last_word(view)
            ended, error, changed, step, steps = last.state, last.error, last.changed, last.step, last.steps
        failed = None if ended == "finished" else self._failed_resume(view.run, changed)
        if failed is not None:
            ended, error = "failed", {"text": failed.text, "remedy": failed.remedy}
        elif not ended:
            ended, error = "interrupted", self._ending(view.run, changed)
        return Look(ended, error, step, steps, whole)

    def _what_ends_it(self, view: View, held: bool, since: float) -> str:
        """`stop` or `stop_now` of a run that was told so after `since`, when its trainer began, `done` of one that has
        nothing more to do though its process is not gone yet, else empty."""
        if view.ended:
            return "done"
        if held:
            for command in view.run.waiting_commands():
                if _written(command.path) >= since:  # else meant for the trainer before
                    view.orders[command.id] = command.do
        told = {do for do in view.orders.values() if do.startswith("stop")}
        return max(told, default="")  # stop_now is more than stop

    def _last_word(self, view: View) -> LastWord:
        """Wanted at every look until all is read, and sought once while the file is as long as it was."""
        if view.last is None or view.last[0] != view.size:
            view.last = view.size, last_word(view.run)
        return view.last[1]

    def _ending(self, run: RunFolder, changed: float) -> dict[str, str]:
        """Why a run ended without a word after what it said at `changed`; its log is read once for that."""
        key = (run.path, changed)
        if key not in self._endings:
            ending = self._ending_of(run)
            self._endings[key] = {"text": ending.text, "remedy": ending.remedy}
        return self._endings[key]


def _samples(view: View, url: Callable[[str], str], *, most: int, width: int) -> list[dict[str, Any]]:
    """Sample pictures by step; where there are too many, those of the untrained model, the newest, and some of those
    between, evenly."""
    steps = sorted({step for step, _ in view.samples})
    each = max(1, max((sum(1 for one, _ in view.samples if one == step) for step in steps[:3]), default=1))
    room = max(2, most // each)
    if len(steps) > room:
        last = len(steps) - 1
        steps = sorted({steps[round(index * last / (room - 1))] for index in range(room)})
    chosen = set(steps)
    found = [sample for key, sample in sorted(view.samples.items()) if key[0] in chosen]
    return [
        {**{name: value for name, value in one.items() if name != "file"},
         "prompt": _cut(one["prompt"], width), "url": url(one["file"])}
        for one in found[-max(most, each):]
    ]  # fmt: skip


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[:width]}…"


def _fitted(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer within LARGEST bytes: what is long gives way, the oldest first."""
    for name in ("log", "warnings", "samples", "exports", "samples"):
        if _size(answer) <= LARGEST:
            break
        answer[name] = answer[name][-max(1, len(answer[name]) // 4) :]
    return answer


def _size(answer: dict[str, Any]) -> int:
    return len(json.dumps(answer, ensure_ascii=False, default=str).encode(errors="replace"))


def read_page(run: RunFolder, offset: int, limit: int) -> dict[str, Any]:
    """Raw events from byte `offset` on, at most `limit` and at most some hundred kilobytes: `{events, offset, more}`."""
    try:
        with run.events.open("rb") as file:
            size = file.seek(0, 2)
            offset = offset if offset <= size else 0
            file.seek(offset)
            content = file.read(BLOCK * 8)
    except FileNotFoundError:
        return {"events": [], "offset": offset, "more": False}
    lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1][:limit]
    after = offset + sum(len(line) + 1 for line in lines)
    events = [event for line in lines if (event := parse_event(line)) is not None]
    plain = [{**event.fields, "time": event.time, "event": event.name} for event in events]
    return {"events": plain, "offset": after, "more": after < size and bool(lines)}
