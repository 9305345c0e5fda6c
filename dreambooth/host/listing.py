"""The list of runs: what stands in it of a run is read again only when the run has changed."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..shared.config import read_mapping
from ..shared.definition import ADAPTERS
from ..shared.errors import InputError
from ..shared.runfolder import RunFolder, RunSummary, is_run, saved_step, summarize
from .endings import Ending
from .watch import Watcher

_Stamp = tuple[int, int, int]


class Listing:
    """Summaries of the runs below a folder. A run that is alive is asked of `watcher`, which reads only what is new;
    `ending_of` says why one died that has no word of it."""

    def __init__(self, watcher: Watcher, ending_of: Callable[[RunFolder], Ending]) -> None:
        self._watcher = watcher
        self._ending_of = ending_of
        self._known: dict[Path, tuple[_Stamp, RunSummary]] = {}
        self._kinds: dict[Path, tuple[int, str]] = {}
        self._lock = threading.Lock()

    def rows(self, runs_dir: Path, living: Path | None = None) -> list[dict[str, Any]]:
        """All runs, the newest first, as `{name, kind, state, step, steps, saved, error, changed, result}`; `living` is one
        that counts as running though its trainer may have no lock yet."""
        try:
            paths = [path for path in runs_dir.iterdir() if is_run(path) and not path.is_symlink()]
        except OSError:
            return []
        found = []
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # deleted while we look
                run = RunFolder(path)
                found.append({**self._row(run, path == living), "kind": self._kind(run)})
        with self._lock:
            for gone in self._known.keys() - set(paths):
                del self._known[gone]
            for gone in self._kinds.keys() - set(paths):
                del self._kinds[gone]
        return sorted(found, key=lambda row: row["changed"], reverse=True)

    def _kind(self, run: RunFolder) -> str:
        """What a run makes, as its settings say: an adapter's kind, or that of the whole model; empty if they cannot."""
        stamp = run.config.stat().st_mtime_ns
        with self._lock:
            known = self._kinds.get(run.path)
        if known is None or known[0] != stamp:
            known = stamp, _kind_in(run)
            with self._lock:
                self._kinds[run.path] = known
        return known[1]

    def _row(self, run: RunFolder, is_living: bool) -> dict[str, Any]:
        if is_living or run.is_alive():
            step, steps, changed = self._watcher.progress(run)
            return _as_row(
                RunSummary(run.name, run.path, "running", step, steps, "", {}, changed, saved_step(run))
            )
        stamp = _stamp(run)
        with self._lock:
            known = self._known.get(run.path)
        if known is None or known[0] != stamp:
            summary = summarize(run)
            if summary.state == "interrupted":
                summary = dataclasses.replace(summary, error=self._ending_of(run).text)
            known = stamp, summary
            with self._lock:
                self._known[run.path] = known
        return _as_row(known[1])


def _kind_in(run: RunFolder) -> str:
    try:
        settings = read_mapping(run.config)
    except InputError:
        return ""
    kind = settings.get("output_kind", "")
    return str(settings.get("adapter", kind) if kind in ADAPTERS else kind)


def _as_row(one: RunSummary) -> dict[str, Any]:
    return {
        "name": one.name, "state": one.state, "step": one.step, "steps": one.steps, "error": one.error,
        "changed": one.changed, "saved": one.saved, "result": one.result,
    }  # fmt: skip


def _stamp(run: RunFolder) -> _Stamp:
    """What changes whenever the run does. Raises FileNotFoundError for a run that is gone."""
    config = run.config.stat()
    try:
        events = run.events.stat()
    except FileNotFoundError:
        return config.st_mtime_ns, 0, 0
    return config.st_mtime_ns, events.st_mtime_ns, events.st_size
