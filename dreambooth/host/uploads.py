"""Photos: those that are dropped into the page, kept in sets of our own, and folders of the user that may be read.

A file that comes in gets a name made from its content. What it was called is only compared and shown, never used
as a path; a set keeps it in a hidden file, which those who look for photos pass over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..shared.errors import DreamboothError, InputError
from ..shared.paths import file_name_problem, write_whole
from ..shared.text_files import decode_text, read_text
from .answers import NotFound
from .folders import is_inside
from .thumbnails import FORMATS, MOST_BYTES, check_whole, look_at

MOST_FILES = 2_000
MOST_ENTRIES = 20_000
LONGEST_CAPTION = 20_000
LONGEST_NAMES = 4 << 20
SUFFIXES = frozenset({*FORMATS.values(), ".jpeg"})
NAMES = ".names.json"
_OWN = r"[0-9a-f]{24}\.(?:jpg|png|webp|bmp)"
_ANY_OWN = re.compile(_OWN)
_OWN_NAME = re.compile(f"^{_OWN}$")


@dataclass(frozen=True)
class Incoming:
    """A file as it came: `name` is what the sender calls it, `content` its bytes."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Stored:
    """What became of incoming files: the photos' new paths, and what was refused and why."""

    folder: Path
    files: list[Path]
    refused: list[dict[str, str]]


class Photos:
    """Sets of photos, each a folder below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # what was stored last, by set and by the sender's name without ending: a caption may come in a later call
        self._stored: OrderedDict[tuple[Path, str], Path] = OrderedDict()
        self._names: OrderedDict[str, str] = OrderedDict()  # those that were looked up in all sets

    def set_folder(self, name: str) -> Path:
        """The folder of a set; "" is a new one. Raises InputError for a name that is none of ours."""
        if not name:
            return self.root / f"photos-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
        problem = file_name_problem(name)
        folder = self.root / name
        if problem or folder.is_symlink() or not is_inside(folder, [self.root]):
            raise InputError(
                f"a set of photos cannot be called that: the name {problem or 'leads elsewhere'}",
                where="folder", remedy="leave it empty for a new set",
            )  # fmt: skip
        return folder

    def store(self, files: Iterable[Incoming], set_name: str = "") -> Stored:
        """Takes photos and the captions beside them (`dog.txt` is `dog.jpg`'s) into a set."""
        folder = self.set_folder(set_name)
        captions: dict[str, Incoming] = {}
        names: list[Path] = []
        called: dict[str, str] = {}
        refused: list[dict[str, str]] = []
        for one in files:
            if _suffix(one.name) == ".txt":
                captions[_stem(one.name)] = one
                continue
            try:
                names.append(_keep(one, folder))
                called[names[-1].name] = _shown(one.name)
                self._remember(folder, one.name, names[-1])
            except InputError as error:
                refused.append({"name": _shown(one.name), "why": f"{error.what}. {error.remedy}".strip()})
        _keep_names(folder, called)
        self._names.clear()
        for stem, caption in captions.items():
            why = _keep_caption(caption, self._stored.get((folder, stem)))
            if why:
                refused.append({"name": _shown(caption.name), "why": why})
        return Stored(folder, list(dict.fromkeys(names)), refused)

    def copy_of(self, folder: Path) -> Stored:
        """A new set with copies of a folder's photos, and of the captions beside them, as `store` takes them. Raises
        InputError if the folder cannot be read."""
        return self.store(_with_captions(folder))

    def _remember(self, folder: Path, name: str, path: Path) -> None:
        self._stored[folder, _stem(name)] = path
        while len(self._stored) > MOST_FILES:
            self._stored.popitem(last=False)

    def in_users_words(self, text: str) -> str:
        """A text of the trainer's in which photos of ours are called what their owner called them, with their folder before
        them or without."""
        if not _ANY_OWN.search(text):
            return text
        roots = "|".join(re.escape(str(root)) for root in {self.root, self.root.resolve()})
        return re.sub(rf"(?:(?:{roots})[\\/]([^\\/\n]+)[\\/])?\b({_OWN})", self._called, text)

    def _called(self, found: re.Match[str]) -> str:
        if found[1]:
            return called_in(self.root / found[1]).get(found[2], found[0])
        if (
            found[2] not in self._names
        ):  # a name is made from the content: the same photo in another set is called the same
            self._names[found[2]] = self._called_anywhere(found[2])
            while len(self._names) > MOST_FILES:
                self._names.popitem(last=False)
        return self._names[found[2]] or found[0]

    def _called_anywhere(self, name: str) -> str:
        sets = sorted(path.parent for path in self.root.glob(f"*/{name}"))
        return next((called for folder in reversed(sets) if (called := called_in(folder).get(name))), "")

    def is_own(self, folder: Path) -> bool:
        """Whether a folder is a set of ours, whose photos may be removed."""
        return folder.parent == self.root and not folder.is_symlink()

    def remove(self, folder: Path, name: str) -> None:
        """Removes a photo of a set, and its caption. Raises InputError for a folder that is none of ours."""
        if not self.is_own(folder):
            raise InputError(
                "photos are removed only from what was dropped into the page", where="path",
                remedy="remove it from its folder yourself",
            )  # fmt: skip
        if not _OWN_NAME.match(name) or not (folder / name).is_file():
            raise NotFound("there is no such photo", where="name", remedy="look at the folder again")
        (folder / name).unlink(missing_ok=True)
        (folder / name).with_suffix(".txt").unlink(missing_ok=True)


def _keep(one: Incoming, folder: Path) -> Path:
    if not one.content:
        raise InputError("it is empty")
    size = look_at(one.content)
    check_whole(one.content)
    path = folder / f"{hashlib.sha256(one.content).hexdigest()[:24]}{FORMATS[size.format]}"
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, one.content)
        except OSError as error:
            raise DreamboothError(
                f"photos cannot be kept ({error.strerror})", where=str(folder), remedy="look at the disk"
            ) from error
    return path


def called_in(folder: Path) -> dict[str, str]:
    """What the photos of a set were called, by the names they have here; {} where nobody wrote that down."""
    path = folder / NAMES
    with contextlib.suppress(OSError, ValueError):
        if path.stat().st_size <= LONGEST_NAMES:
            found = json.loads(path.read_bytes())
            if isinstance(found, Mapping):
                return {name: _shown(str(called)) for name, called in found.items() if _OWN_NAME.match(name)}
    return {}


def _keep_names(folder: Path, called: Mapping[str, str]) -> None:
    if called:
        # a disk that is full was told of by the photos; a name that is not kept costs nothing but beauty
        with contextlib.suppress(OSError):
            write_whole(folder / NAMES, json.dumps({**called_in(folder), **called}, indent=0).encode())


def _keep_caption(caption: Incoming, photo: Path | None) -> str:
    """Keeps a caption beside its photo. Why not, if not."""
    if photo is None or not photo.exists():
        return "it is no photo, and there is no photo of that name beside it"
    if len(caption.content) > LONGEST_CAPTION:
        return "it is too long for a caption"
    try:
        text = decode_text(caption.content)
    except ValueError:
        return "it is no text"
    write_whole(photo.with_suffix(".txt"), text.encode())
    return ""


def _leaf(name: str) -> str:
    return re.split(r"[\\/]", name)[-1]


def _suffix(name: str) -> str:
    return PurePosixPath(_leaf(name)).suffix.lower()


def _stem(name: str) -> str:
    """To pair captions with photos: the whole name but its ending, folders and all."""
    return name.removesuffix(PurePosixPath(_leaf(name)).suffix)


def _shown(name: str) -> str:
    leaf = "".join(sign if sign.isprintable() else "?" for sign in _leaf(name) or name)
    return leaf if len(leaf) <= 80 else f"{leaf[:80]}…"


def look(folder: Path, thumbnail: Callable[[Path], str]) -> dict[str, Any]:
    """The photos of a folder and its subfolders, as the trainer would find them: `{path, count, files, problems}`; files
    that cannot be read are problems, and not counted.
    A file's `called` is what its owner called it, where it has a name of ours. Raises InputError if it is no folder
    that can be read."""
    try:
        if not folder.is_dir():
            raise InputError("there is no such folder", where="path", remedy="check the path")
        found = sorted(_images(folder))
    except OSError as error:
        raise InputError(
            f"the folder cannot be read ({error.strerror})", where="path", remedy="change its permissions"
        ) from error
    files: list[dict[str, Any]] = []
    problems: list[str] = []
    broken, called = 0, called_in(folder)
    for path in found[:MOST_FILES]:
        about = _about(path, folder, thumbnail)
        name = path.relative_to(folder).as_posix()
        if isinstance(about, str):
            problems.append(f"{called.get(name, name)}: {about}")
            broken += 1
        else:
            files.append({"name": name, "called": called.get(name, name), **about})
    if len(found) > MOST_FILES:
        problems.append(f"only the first {MOST_FILES} of {len(found)} photos are shown")
    return {"path": str(folder), "count": len(found) - broken, "files": files, "problems": problems}


def _images(folder: Path) -> Iterator[Path]:
    """Image files by their names, hidden ones left out; folders behind links are not entered."""
    left = MOST_ENTRIES
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        left -= len(names) + len(folders)
        for name in names:
            if not name.startswith(".") and PurePosixPath(name).suffix.lower() in SUFFIXES:
                yield Path(place) / name
        if left < 0:
            return


def _with_captions(folder: Path) -> Iterator[Incoming]:
    """The photos of a folder, one read after the other, each with its caption. Raises InputError."""
    try:
        if not folder.is_dir():
            raise InputError("there is no such folder", where="path", remedy="check the path")
        for path in sorted(_images(folder)):
            plain = path.with_suffix(".txt")
            beside = (plain, path.with_name(f"{path.name}.txt"), path.with_suffix(".caption"))
            caption = next((one for one in beside if one.is_file()), path)
            for one, called in {caption: plain, path: path}.items():
                if one.is_file() and is_inside(one, [folder]):
                    with one.open("rb") as file:
                        yield Incoming(called.relative_to(folder).as_posix(), file.read(MOST_BYTES + 1))
    except OSError as error:
        raise InputError(
            f"the folder cannot be read ({error.strerror})", where="path", remedy="change its permissions"
        ) from error


def _about(path: Path, folder: Path, thumbnail: Callable[[Path], str]) -> dict[str, Any] | str:
    """What the page shows of one photo, or what is wrong with it."""
    if not is_inside(path, [folder]):
        return "a link that leads out of the folder"
    try:
        if not path.is_file():
            return "it is no file"
        size = look_at(path)
        return {
            "thumbnail": thumbnail(path), "width": size.width, "height": size.height, "caption": _caption(path),
        }  # fmt: skip
    except InputError as error:
        return error.what
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def _caption(path: Path) -> str | None:
    """The text beside a photo, None if there is none."""
    beside = path.with_suffix(".txt")
    try:
        if not beside.is_file() or beside.stat().st_size > LONGEST_CAPTION:
            return None
        return read_text(beside).strip()[:2000]
    except (OSError, InputError):
        return None
