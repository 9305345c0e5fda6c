"""Starts a process that outlives the one that starts it: standard library only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

# Windows' flags by value, since other systems' subprocess modules do not have the names.
_NO_WINDOW = 0x08000000
_NEW_GROUP = 0x00000200
_BREAKAWAY = 0x01000000
_BELOW_NORMAL = 0x00004000


def options(platform: str = sys.platform, *, gentle: bool = False, breakaway: bool = True) -> dict[str, Any]:
    """What subprocess.Popen is given so that neither Ctrl-C, nor the end of the starting process, nor the closing of
    its window ends the new one.

    On Windows a console of its own that is not shown, rather than none (DETACHED_PROCESS): every program that a
    process without a console starts would open a window. `breakaway` leaves the starter's job, which may end with it.
    """
    if platform != "win32":
        return {"start_new_session": True}
    flags = _NO_WINDOW | _NEW_GROUP
    flags |= _BREAKAWAY if breakaway else 0
    flags |= _BELOW_NORMAL if gentle else 0
    return {"creationflags": flags}


def start(
    command: Sequence[str],
    *,
    output: IO[bytes],
    environ: Mapping[str, str],
    cwd: Path,
    gentle: bool = False,
) -> subprocess.Popen[bytes]:
    """Starts `command` detached, what it prints going to `output`. Raises OSError if it cannot be started."""

    def popen(**how: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environ),
            cwd=cwd,
            **how,
        )

    try:
        return popen(**options(gentle=gentle))
    except PermissionError:
        if sys.platform != "win32":
            raise
        return popen(**options(gentle=gentle, breakaway=False))  # a job that lets nobody leave
