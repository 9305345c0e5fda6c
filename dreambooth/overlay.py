"""The trainer's environment of a WebUI: it sees the WebUI's packages after its own. Standard library only.

torch and whatever else already serves is reused, never installed again; newer libraries lie in front. The WebUI's
own environment is only ever read.
"""

from __future__ import annotations

import itertools
import os
import site
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import making, pins
from .environment import STAMP, Environment, accelerator, folder_for, whole
from .shared.errors import DreamboothError

# What no library may change: pip is held to the host's own versions of these.
_HELD = ("torch", "numpy", "torchvision", "torchaudio", "xformers", "triton")
_PINNED = ("diffusers", "transformers", "accelerate")


@dataclass(frozen=True)
class Host:
    """A WebUI's Python: its executable, its folders of packages, and the version of each package in them."""

    python: str
    site_packages: tuple[str, ...]
    packages: dict[str, str]

    @property
    def key(self) -> str:
        """What makes an environment of this host another one than its last: its place, its torch, its numpy."""
        return "|".join((self.python, self.packages["torch"], self.packages.get("numpy", "")))


def normal(name: str) -> str:
    """A package's name as pip compares it."""
    return name.lower().replace("_", "-").replace(".", "-")


def installed(folders: Iterable[str]) -> dict[str, str]:
    """The packages in these folders by their normal name, of two of one name the first: told by folder names alone,
    since it is asked at every start."""
    found: dict[str, str] = {}
    for folder in folders:
        try:
            entries = sorted(entry.name for entry in os.scandir(folder))
        except OSError:
            continue
        for entry in entries:
            stem, dot, kind = entry.rpartition(".")
            name, dash, version = stem.partition("-")
            if dot and dash and kind == "dist-info":
                found.setdefault(normal(name), version)
    return found


def running_host() -> Host:
    """The host whose Python this is. Raises DreamboothError if it has no torch yet, or one that is too old."""
    folders = tuple(folder for folder in site.getsitepackages() if Path(folder).is_dir())
    host = Host(sys.executable, folders, installed(folders))
    if "torch" not in host.packages:
        raise DreamboothError(
            "this Python has no torch yet", where=sys.executable, remedy="start the WebUI once first"
        )
    try:
        pins.set_for(host.packages["torch"])
    except ValueError as error:
        raise DreamboothError(str(error), where=sys.executable, remedy="update the WebUI's torch") from error
    return host


def recipe_for(host: Host) -> making.Recipe:
    """What pip has to add to this host's packages, and what it must leave alone."""
    complete = pins.set_for(host.packages["torch"])
    pinned = (*_PINNED, "bitsandbytes") if accelerator() == "cuda" and sys.platform != "darwin" else _PINNED
    loose = [
        library for library in pins.LIBRARIES if library.name not in (*pinned, *_HELD, "open_clip_torch")
    ]
    numpy = () if "numpy" in host.packages else (f"numpy=={complete['numpy']}",)
    return making.Recipe(
        kind="host",
        packages=(
            *(f"{name}=={complete[name]}" for name in pinned),
            *(f"{library.name}>={library.lowest}" for library in loose),
            *numpy,
        ),
        constraints=tuple(
            f"{name}=={host.packages[name].partition('+')[0]}" for name in _HELD if name in host.packages
        ),
        base_python=host.python,
        behind=host.site_packages,
        vocabulary="open-clip-torch" not in host.packages,
    )


def changes(found: Environment, host: Host) -> list[str]:
    """What the environment reuses of the host and is not as it was when it was made, a phrase each."""
    reused: dict[str, str] = found.stamp.get("reused", {})
    now = {name: host.packages.get(normal(name)) for name in reused}
    return [
        f"{name} was {was} and is {now[name] or 'gone'}" for name, was in reused.items() if now[name] != was
    ]


def folder(host: Host) -> Path:
    """Where this host's environment lies, made or not; later ones, after the host has changed, lie beside it. The
    lock that keeps two makings of either apart has this one's name."""
    return folder_for("host", host=host.key)


def _folders(host: Host) -> Iterator[Path]:
    first = folder(host)
    yield first
    for number in itertools.count(2):
        yield first.with_name(f"{first.name}-{number}")


def _made(host: Host) -> Iterator[Path]:
    """The folders that were whole once."""
    return itertools.takewhile(lambda path: (path / STAMP).exists(), _folders(host))


def changed(host: Host) -> list[str]:
    """What the newest environment of this host reuses and is not as it was, a phrase each; empty if there is none."""
    found = [one for one in map(whole, _made(host)) if one]
    return changes(found[-1], host) if found else []


def find(host: Host) -> Environment | None:
    """The whole environment of this host, None if there is none or the host has changed under each."""
    for path in _made(host):
        found = whole(path)
        if found and not changes(found, host):
            return found
    return None


def ensure(host: Host, *, say: making.Say) -> Environment:
    """The whole environment of this host, made if need be. Raises DreamboothError if it cannot be.

    One that was whole once is never touched again, since a training may run in it: where the host has changed under
    it, another is made beside it.
    """
    ready = find(host)
    if ready:
        return ready
    with making.alone(folder(host), say) as inherited:
        ready = find(host)
        if ready:
            return ready
        phrases = changed(host)
        if phrases:
            say(f"The WebUI's packages have changed ({'; '.join(phrases)}): a new environment is made.")
        place = next(path for path in _folders(host) if not (path / STAMP).exists())
        return making.make(place, recipe_for(host), say=say, inherited=inherited)
