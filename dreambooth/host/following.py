"""Sees to it that the WebUI lists what a training exports, whether or not a page is looking."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from ..shared.runfolder import RunFolder
from .jobs import Active

EVERY = 2.0
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

    def begin(self) -> None:
        """Follows what runs now, if anything does and nobody follows it yet."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._follow, name="dreambooth-follower", daemon=True)
                self._thread.start()

    def _follow(self) -> None:
        try:
            followed: RunFolder | None = None
            known = 0
            while (active := self._active()) is not None:
                if active.run is not None:
                    if followed is None or followed.path != active.run.path:
                        followed, known = active.run, len(self._exports(active.run))
                    known = self._look(followed, known)
                self._pause.wait(self._every)
            if followed is not None:
                self._look(followed, known)
        except Exception:  # noqa: BLE001 -- logged; the user's own refresh does the same
            _log.exception("DreamBooth: what the training exports is not listed by itself")

    def _look(self, run: RunFolder, known: int) -> int:
        """Lists anew if there are exports that nobody has listed. How many there are now."""
        count = len(self._exports(run))
        if count > known:
            self._list_again()
        return count
