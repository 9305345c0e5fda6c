"""Finds the trainer's environment, has it made where it is missing, and enters it: standard library only.

This runs on a bare Python, before anything else and at every start, so what a whole environment needs is a stat
and a small file. Which Python trains is decided in this order:

1. the one that `DREAMBOOTH_PYTHON` names, used as it is;
2. the running one, where `accelerate launch` has started it, or where it is the environment's own;
3. the running one, where every library is there in a version that serves (a container, a notebook);
4. the environment in `environments/`, one for each set of requirements, Python and kind of torch. It is whole
   once its stamp is written, and nothing that is not whole is ever used.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from . import pins
from .shared.errors import DreamboothError, InputError

ROOT = pins.ROOT
ENVIRONMENTS = ROOT / "environments"
STAMP = "stamp.json"

# A Python that is to be used as it is; nothing is installed into it.
PYTHON_VARIABLE = "DREAMBOOTH_PYTHON"
# The build of torch for a new environment: `cpu`, `cu126`, `cu130`, or the address of a package index that has one.
TORCH_VARIABLE = "DREAMBOOTH_TORCH"
# Bytes of the card that whoever asks for a plan gives back before the run begins: the WebUI's model, while its page plans.
RETURNED_VARIABLE = "DREAMBOOTH_CARD_RETURNED"
# Set for the process that is entered, and gone once it has arrived: nothing is ever entered twice.
_ENTERED_VARIABLE = "DREAMBOOTH_ENTERED"

# What `accelerate launch` leaves for the processes that it starts.
_LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
_PRELOADS = ("LD_PRELOAD", "DYLD_INSERT_LIBRARIES")
_HUB = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "DIFFUSERS_")
_NEVER = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PIP_", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


class Environment(NamedTuple):
    """A whole environment: its folder, the Python to run, and what was noted when it was made."""

    folder: Path
    python: Path
    stamp: dict[str, Any]


def accelerator() -> str:
    """The kind of torch that this machine wants: `cuda` where there is an NVIDIA driver, else `cpu`; or as told.

    Only looks for files, since it is asked at every start.
    """
    told = os.environ.get(TORCH_VARIABLE, "").strip()
    if told:
        return told
    windows = Path(os.environ.get("SYSTEMROOT", "C:/Windows")) / "System32/nvcuda.dll"
    signs = [windows] if sys.platform == "win32" else [Path("/proc/driver/nvidia/version"), Path("/dev/dxg")]
    return "cuda" if any(sign.exists() for sign in signs) else "cpu"


def folder_for(kind: str, *, host: str = "") -> Path:
    """Where the environment of that kind of torch lies (of `host`, a WebUI's Python), made or not."""
    import zlib

    names = (pins.REQUIREMENTS, pins.NO_DEPENDENCIES, pins.EIGHT_BIT, pins.CONSTRAINTS)
    machine = os.uname().machine if sys.platform != "win32" else ""
    parts = [sys.platform, machine, kind, host, repr(pins.OLDER_SETS)]
    parts += [(ROOT / name).read_text(encoding="utf-8") for name in names]
    digest = zlib.crc32("\0".join(parts).encode())
    name = "host" if host else kind if kind.isalnum() else "other"
    return ENVIRONMENTS / f"py{sys.version_info[0]}.{sys.version_info[1]}-{name}-{digest:08x}"


def python_in(folder: Path) -> Path:
    """The Python of an environment's folder."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def whole(folder: Path) -> Environment | None:
    """The environment in `folder` if it is whole and its Python still there, else None."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        python = Path(stamp["python"]) if stamp.get("packages") else python_in(folder)
        base_is_there = Path(stamp["base_python"]).exists()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Environment(folder, python, stamp) if base_is_there and python.exists() else None


def find(*, tests: bool = False) -> Environment | None:
    """The whole environment for this machine and this Python, None if there is none.

    One with CUDA also serves a machine whose card is not to be seen at the moment.
    """
    kind = accelerator()
    for candidate in dict.fromkeys((kind, "cuda") if kind == "cpu" else (kind,)):
        found = whole(folder_for(candidate))
        if _is_complete(found, tests=tests):
            return found
    return None


def _is_complete(found: Environment | None, *, tests: bool) -> bool:
    return found is not None and (not tests or found.stamp.get("tests") == tests_digest())


def tests_digest() -> str:
    """What is noted of the tests' own libraries, so that a change of them is noticed."""
    import zlib

    return f"{zlib.crc32((ROOT / pins.TESTS).read_bytes()):08x}"


def _wanted(*, tests: bool) -> tuple[pins.Library, ...]:
    return pins.LIBRARIES + (pins.TEST_LIBRARIES if tests else ())


def _absent(*, tests: bool) -> Iterator[str]:
    from importlib.util import find_spec

    return (library.name for library in _wanted(tests=tests) if find_spec(library.module) is None)


def lacking(*, tests: bool = False) -> list[str]:
    """What the running Python lacks of the trainer's libraries, a phrase each; empty if it serves as it is."""
    absent = list(_absent(tests=tests))
    if absent:
        return absent
    from importlib import metadata

    installed: dict[str, str] = {}
    for library in _wanted(tests=tests):
        try:
            installed[library.name] = metadata.version(library.name)
        except (
            metadata.PackageNotFoundError
        ):  # built from source, or named otherwise: it is there, that is enough
            continue
    try:
        return pins.unfit(installed)
    except ValueError as error:
        return [str(error)]


def clean_environ(
    environ: Mapping[str, str], *, from_host: bool = False, hub: bool = False
) -> dict[str, str]:
    """The variables that the trainer is started with.

    What could lead it to somebody else's libraries is left out. Coming from a host (a WebUI), so is what the host
    preloads, and its settings for the model hub unless a hub model is to be used (`hub`). On a command line both
    are the user's own.
    """
    dropped: tuple[str, ...] = _NEVER
    if from_host:
        dropped += _PRELOADS if hub else _PRELOADS + _HUB
    kept = {name: value for name, value in environ.items() if not name.upper().startswith(dropped)}
    return kept | {"PYTHONNOUSERSITE": "1"}


def environ_for(
    found: Environment, environ: Mapping[str, str], *, from_host: bool = False, hub: bool = False
) -> dict[str, str]:
    """The variables to start `found`'s Python with, see `clean_environ`."""
    packages = found.stamp.get("packages")
    return clean_environ(environ, from_host=from_host, hub=hub) | (
        {"PYTHONPATH": packages} if packages else {}
    )


def forced() -> Path | None:
    """The Python that DREAMBOOTH_PYTHON names, None if the variable is not set."""
    told = os.environ.get(PYTHON_VARIABLE, "").strip()
    if not told:
        return None
    import shutil

    found = shutil.which(Path(told).expanduser())
    if not found:
        raise InputError(
            f"{told} is not a Python that can be run",
            where=PYTHON_VARIABLE,
            remedy="name a Python's whole path, or unset the variable so that an environment is made",
        )
    return _absolute(found)


def _absolute(path: str) -> Path:
    """Not resolved: an environment's Python is a link to another, and what counts is where the link lies."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _require_libraries(why: str, remedy: str, *, tests: bool) -> None:
    missing = lacking(tests=tests)
    if missing:
        raise InputError(f"{why}, and it lacks {', '.join(missing)}", where=sys.executable, remedy=remedy)


def this_python_serves(*, tests: bool = False, entered: bool = False) -> bool:
    """Whether the running Python is the one to train with, by the order above; `entered`: it was chosen already.

    Raises InputError where it was forced or launched and lacks something.
    """
    told = forced()
    if told:
        if not entered and _absolute(sys.executable) != told:
            return False
        files = f"{pins.REQUIREMENTS}{f', {pins.TESTS}' if tests else ''} and, with --no-deps, {pins.NO_DEPENDENCIES}"
        _require_libraries(
            f"{PYTHON_VARIABLE} says to use this Python as it is", f"install {files} into it", tests=tests
        )
        return True
    if any(name in os.environ for name in _LAUNCHED):
        own = python_in(folder_for(accelerator()))
        _require_libraries(
            "accelerate started this Python", f"launch with {own} -m accelerate.commands.launch", tests=tests
        )
        return True
    prefix = Path(sys.prefix)
    inside = whole(prefix) if prefix.parent == ENVIRONMENTS else None
    if _is_complete(inside, tests=tests):
        return True
    bare = next(_absent(tests=tests), None)  # the usual case, told by one look
    return not bare and not lacking(tests=tests)


def tell(text: str) -> None:
    """Says something while the environment is looked for or made; not to stdout, which is the command's own."""
    print(text, file=sys.stderr, flush=True)


def ensure(*, tests: bool = False, say: Callable[[str], None] = tell) -> Environment:
    """The whole environment for this machine, made first if it is missing.

    Raises DreamboothError when it cannot be made: no network, no space, a Python without its venv module.
    """
    found = find(tests=tests)
    if found:
        return found
    from . import making

    return making.make_plain(tests=tests, say=say)


def enter(
    script: str,
    arguments: Sequence[str],
    *,
    tests: bool = False,
    before_making: Callable[[], object] | None = None,
) -> None:
    """Returns in a Python that can train; in any other it runs `script` in the one that can, and does not return.

    `before_making` is called before an environment is made, so that wrong usage is said at once.
    """
    entered = bool(os.environ.pop(_ENTERED_VARIABLE, ""))
    if this_python_serves(tests=tests, entered=entered):
        return
    if entered:
        raise DreamboothError(
            f"the environment lacks {', '.join(lacking(tests=tests)) or 'nothing, yet is not whole'}",
            where=sys.prefix,
            remedy="delete this folder and repeat: it is made anew",
        )
    told = forced()
    if told:
        _run([str(told), script, *arguments], clean_environ(os.environ))
    found = find(tests=tests)
    if not found and before_making:
        before_making()
    found = found or ensure(tests=tests)
    _run([str(found.python), script, *arguments], environ_for(found, os.environ))


def _run(command: Sequence[str], environ: dict[str, str]) -> NoReturn:
    """Becomes `command`, or on Windows, where a process cannot, runs it and ends as it ends."""
    environ[_ENTERED_VARIABLE] = "1"
    sys.stdout.flush()
    if os.name != "nt":
        os.execve(command[0], list(command), environ)
    import signal
    import subprocess

    # The console sends Ctrl-C and Ctrl-Break to both: the trainer saves and ends, and this one has to wait for it.
    for name in ("SIGINT", "SIGBREAK"):
        signal.signal(getattr(signal, name), lambda *_: None)
    sys.exit(subprocess.Popen(list(command), env=environ).wait())
