"""Names and places: what may be a file name everywhere, where runs live, and files that are whole or absent."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import DreamboothError, InputError, quoted

APP_NAME = "dreambooth-trainer"
_ROOM_FOR_A_RUN = "make room, then go on with `resume`: what was saved before is intact"
_RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "123456789¹²³"
}
_NOT_FOR_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]')
_ON_A_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def user_data_dir() -> Path:
    """Where a program keeps a user's data, as platformdirs names it (shared code may not import platformdirs)."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / APP_NAME


def default_runs_dir() -> Path:
    """Where runs are kept when nobody says otherwise: `DREAMBOOTH_RUNS_DIR` (which the host sets to a folder
    under the WebUI's data path), else the user's data folder."""
    named = os.environ.get("DREAMBOOTH_RUNS_DIR")
    return Path(named).absolute() if named else user_data_dir() / "runs"


def file_name_problem(name: str) -> str:
    """What keeps `name` from being a file name on Windows, macOS and Linux alike; empty if nothing does."""
    if not name.strip():
        return "is empty"
    if _FORBIDDEN.search(name):
        return (
            'has a character that file names may not have (one of < > : " / \\ | ? * or a control character)'
        )
    if name in (".", "..") or name.endswith((".", " ")) or name.startswith((" ", ".")):
        return "begins or ends with a dot or a space"
    if name.split(".")[0].strip().lower() in _RESERVED:
        return "is a device's name on Windows"
    if len(name.encode()) > 200:
        return "is longer than 200 bytes"
    return ""


def check_file_name(name: str, *, setting: str) -> str:
    """Returns `name`. Raises InputError if it is no file name somewhere, or would leave its folder."""
    problem = file_name_problem(name)
    if problem:
        shown = name if len(name) <= 60 else f"{name[:60]}…"
        raise InputError(
            f"{quoted(shown)} {problem}", where=setting, remedy="choose another name, such as my-model"
        )
    return name


def fsync_folder(folder: Path) -> None:
    """Makes a rename in `folder` last through a power cut. Windows has no such call and needs none; some
    file systems (network shares, a USB stick's) refuse it, and do as well as they can without."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_FOR_FOLDERS:
            raise
    finally:
        os.close(descriptor)


def replace(source: Path, target: Path, *, patience: float = 2.0) -> None:
    """os.replace, tried again for `patience` seconds where Windows refuses it: it does so while a reader or a
    virus scanner has one of the two open. A folder that is there is never replaced on Windows."""
    deadline = time.monotonic() + patience
    while True:
        try:
            os.replace(source, target)
        except PermissionError:
            if sys.platform != "win32" or target.is_dir() or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def write_whole(path: Path, content: bytes) -> None:
    """Writes `path` so that it is the old content or the new, never a part: a temporary file beside it,
    synced, then os.replace. Raises DreamboothError when the disk is full."""
    with disk_full_is_said(path, remedy="make room"):
        descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".partial", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            give_usual_permissions(Path(temporary))
            replace(Path(temporary), path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        fsync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    write_whole(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def give_usual_permissions(path: Path) -> None:
    """Gives a temporary file (made 0600) the permissions of any new file. `os.umask` alone can tell the mask,
    and only by setting it, which would race with threads: a probe file says the same."""
    if os.name != "posix":
        return
    probe = path.with_name(f"{path.name}.mode")
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        mode = os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)
        os.unlink(probe)
    os.chmod(path, mode)


@contextlib.contextmanager
def disk_full_is_said(path: Path, *, remedy: str = _ROOM_FOR_A_RUN) -> Iterator[None]:
    """Turns the system's "no space" into one message that names the file and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DreamboothError(
                "no space is left on the disk",
                where=str(path),
                remedy=remedy,
            ) from error
        raise


def existing_parent(path: Path) -> Path:
    """The nearest folder above `path` (or itself) that is there: what to ask for the disk's free room. The root of a
    drive that is not there answers for itself."""
    path = path.absolute()
    while path != path.parent and not _is_there(path):
        path = path.parent
    return path


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long, or below a folder that we may not look into
        return False


def takes_away(written: Path, kept: Path) -> bool:
    """Whether writing `written` takes `kept` away: both are one file, by whatever name (links, letters' case), or
    `written` is a folder around it. What is not there takes nothing away."""
    try:
        if not (written.exists() and kept.exists()):
            return False
        around = (kept, *kept.resolve().parents)
        return any(written.samefile(place) for place in around)
    except (
        OSError
    ):  # a name too long, or below a folder that we may not look into: nothing is written there either
        return False


def is_from_windows(text: str) -> bool:
    """Whether a path is one of Windows' drives and this is no Windows: here it would be a name like any other."""
    return os.name != "nt" and _ON_A_DRIVE.match(text) is not None


def check_writable(folder: Path, *, setting: str) -> None:
    """Raises InputError if nothing can be written into `folder` (or where it would be made)."""
    place = existing_parent(folder)
    to_be_made = str(folder.absolute().relative_to(place))
    if is_from_windows(to_be_made):
        raise InputError(
            f"{to_be_made} is a path of Windows, and this is another system",
            where=setting,
            remedy="name a folder of this machine",
        )
    if not place.is_dir():
        problem = f"{place} is a file, not a folder" if _is_there(place) else f"there is no drive {place}"
        raise InputError(problem, where=setting, remedy="name a folder")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        # it is there: the file that was to be made in it is what the system says is not
        reason = "it takes no files" if error.errno == errno.ENOENT else error.strerror
        raise InputError(
            f"nothing can be written into {place} ({reason})",
            where=setting,
            remedy="choose another folder or change its permissions",
        ) from error
