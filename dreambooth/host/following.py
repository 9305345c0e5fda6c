"""Sees to it that the WebUI lists what a training exports, whether or not a page is looking."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..shared.runfolder import RunFolder
from .jobs import Active

EVERY = 2.0
MOST_FAILURES = 10
_log = logging.getLogger(__name__)


class Follower:
    """A thread that lives as long as a training does; `list_again` is called after each export."""

    def __init__(
        self,
        active: Callable[[], Active | None],
        exports: Callable[[RunFolder], list[dict[str, Any]]],
        list_again: Callable[[], None],
        every: float = EVERY,
    ) -> None:
        self._active = active
        self._exports = exports
        self._list_again = list_again
        self._every = every
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pause = threading.Event()
        self._known: dict[Path, int] = {}  # run → how many of its exports were listed
        self._failures = 0

    def begin(self, run: RunFolder | None = None) -> None:
        """Follows `run` and whatever else runs, if nobody follows it yet."""
        with self._lock:
            if run is not None:
                self._known.setdefault(run.path, 0)
            if self._thread is None:
                self._thread = threading.Thread(target=self._follow, name="dreambooth-follower", daemon=True)
                self._thread.start()

    def _follow(self) -> None:
        while self._go_on():
            self._pause.wait(self._every)

    def _go_on(self) -> bool:
        """One look at every run that is followed. Whether there will be more to see."""
        looked: list[Path] = []
        active, all_listed = None, False
        try:
            active = self._active()  # before the look: what the last one exported is seen in it
            with self._lock:
                if active is not None and active.run is not None:
                    self._known.setdefault(active.run.path, 0)
                looked = list(self._known)
            for path in looked:
                self._look(path)
            all_listed, self._failures = True, 0
        except Exception:  # noqa: BLE001 -- logged; the user's own refresh does the same
            self._failures += 1
            _log.exception("DreamBooth: what the training exports is not listed by itself")
        with self._lock:
            again = not all_listed and self._failures < MOST_FAILURES
            if active is not None or len(self._known) > len(looked) or again:
                return True
            self._known.clear()
            self._thread = None
            return False

    def _look(self, path: Path) -> None:
        """Lists anew if there are exports that nobody has listed."""
        count = len(self._exports(RunFolder(path)))
        if count > self._known[path]:
            self._list_again()
            self._known[path] = count
