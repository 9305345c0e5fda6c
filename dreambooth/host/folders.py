"""Which folders and files of this machine a call may name.

A path that leads to another machine is never followed (Windows would log in there with the user's name), nor one
that names a device. Under `--hide-ui-dir-config`, and where extensions may not be installed from the page
(`disable_extension_access`: a WebUI that others can reach), only the WebUI's own folders may be named at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..shared.errors import InputError
from ..shared.paths import file_name_problem
from .answers import Forbidden

MAX_LENGTH = 4096
_ELSEWHERE = re.compile(r"^[\\/]{2}|^[a-zA-Z][a-zA-Z0-9+.-]+:")
_DRIVE = re.compile(r"^[a-zA-Z]:[\\/]")
_DEVICES = frozenset({"/dev", "/proc", "/sys"})


def path_problem(text: str, *, windows: bool = os.name == "nt") -> str:
    """What keeps `text` from being a path that is followed; empty if nothing does."""
    if not text.strip():
        return "is empty"
    if "\0" in text or len(text) > MAX_LENGTH:
        return "is no path"
    if _ELSEWHERE.match(text) and not _DRIVE.match(text):
        return "leads to another machine or to a device"
    parts = re.split(r"[\\/]" if windows else "/", text)
    if windows:
        names = parts[1:] if _DRIVE.match(text) else parts
        wrong = next((one for one in names if one not in ("", ".", "..") and _is_wrong_on_windows(one)), "")
        return f"has a part that is no file name ({wrong[:60]})" if wrong else ""
    return "leads to a device" if "/".join(parts[:2]) in _DEVICES else ""


def _is_wrong_on_windows(name: str) -> bool:
    return ":" in name or file_name_problem(name) == "is a device's name on Windows"


def followed(text: str, *, base: Path, setting: str) -> Path:
    """`text` as a path, against `base` where it is relative. Raises InputError if it must not be followed."""
    problem = path_problem(text)
    path = "" if problem else os.path.normpath(base / text)
    problem = problem or path_problem(path)  # which it may have led to by a detour
    if problem:
        raise InputError(
            f"the path {problem}", where=setting, setting=setting,
            remedy="name a folder or file of this machine; a share can be given a drive letter or a mount point",
        )  # fmt: skip
    return Path(path)


def is_inside(path: Path, roots: Iterable[Path]) -> bool:
    """Whether `path`, with every link followed, is one of `roots` or below one."""
    real = os.path.realpath(path)
    for root in roots:
        top = os.path.realpath(root)
        if real == top or real.startswith(top.rstrip(os.sep) + os.sep):
            return True
    return False


def allowed(path: Path, *, roots: Iterable[Path], free: bool, setting: str) -> Path:
    """`path`, if it may be named: anywhere where `free`, else only below `roots`. Raises Forbidden."""
    if free or is_inside(path, roots):
        return path
    raise Forbidden(
        "this WebUI does not let its page choose folders", where=setting, setting=setting,
        remedy="drop photos into the page, and take models from its lists; or start the WebUI without "
        "--hide-ui-dir-config, and without --listen or --share or with --enable-insecure-extension-access",
    )  # fmt: skip
