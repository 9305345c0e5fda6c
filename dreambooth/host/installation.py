"""The trainer's environment, seen from the WebUI: its state for the tab, "try again", and how the trainer is started."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field

from .. import environment, installing
from ..shared.errors import DreamboothError
from . import webui


@dataclass
class Installation:
    """`state`: ready, making, missing, failed or broken; `text` says it in a sentence, `remedy` what to do, `log` are
    the last lines that the installer printed."""

    state: str
    text: str
    remedy: str
    log: list[str]


@dataclass
class _Started:
    """What this process knows beyond the files: the making that it started, and why it could not start one."""

    process: subprocess.Popen[bytes] | None = None
    problem: DreamboothError | None = field(default=None)


_started = _Started()


def state() -> Installation:
    """The state as it is now, in some milliseconds."""
    if _started.process is not None and _started.process.poll() is not None:
        _started.process = None
    now = installing.look()
    if now.name in ("missing", "broken") and _started.problem is not None:
        return Installation("failed", str(_started.problem.what), _started.problem.remedy, now.log)
    if now.name == "broken" and _started.process is not None:
        return Installation("making", "The making of the environment begins.", "", now.log)
    return Installation(now.name, now.text, now.remedy, now.log)


def start() -> None:
    """Starts the making of the environment in the background if it is needed and not under way.

    Raises DreamboothError if it cannot be started; `state` says so from then on too.
    """
    _started.problem = None
    try:
        _started.process = installing.start() or _started.process
    except DreamboothError as error:
        _started.problem = error
        raise


def trainer_command() -> list[str]:
    """What a trainer's command line begins with; a command of `dreambooth` follows. Raises DreamboothError with what
    to do while there is no environment."""
    return [_ready().python, str(environment.ROOT / "dreambooth" / "__main__.py")]


def trainer_environ(*, hub: bool = False) -> dict[str, str]:
    """The variables that a trainer is started with: none that lead to the WebUI's libraries, its card and no other,
    and its folder for runs. `hub`: the user's own settings for the model hub are kept."""
    return _ready(hub=hub).environ | webui.device_environ() | {"DREAMBOOTH_RUNS_DIR": str(webui.runs_dir())}


def _ready(*, hub: bool = False) -> installing.State:
    now = installing.look(os.environ, hub=hub)
    if now.name != "ready":
        raise DreamboothError(now.text, where="the trainer's environment", remedy=now.remedy)
    return now
