"""What 8-bit optimizers depend on here: torch's CUDA or ROCm, the card, and what bitsandbytes' folder really holds.

Nothing of bitsandbytes is imported for it: its import alone loads a library, right or wrong.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from dreambooth.pins import Version, version

NAME = "bitsandbytes"
# Wheels of other names that bring files of the same package.
ALIASES = ("bitsandbytes-windows", "bitsandbytes-windows-webui", "bitsandbytes-rocm")
# Python files that decide which library is loaded: those that the guides of 2022 had people overwrite.
LOADERS = ("cextension.py", "cuda_setup/main.py")


@dataclass(frozen=True)
class Surroundings:
    """`platform` as sys.platform has it. `files` are bitsandbytes' own (paths within its folder), `foreign` those of
    them that its wheel did not bring or brought otherwise; `own_folder`: it lies in the trainer's environment, not in
    the WebUI's behind it. Versions are () where there is none: torch's CUDA counts only beside a card."""

    platform: str
    bitsandbytes: Version = ()
    version_text: str = ""
    folder: str = ""
    own_folder: bool = True
    files: frozenset[str] = frozenset()
    foreign: frozenset[str] = frozenset()
    aliases: tuple[str, ...] = ()
    cuda: Version = ()
    hip: Version = ()
    capability: Version = ()
    card: str = ""
    directml: bool = False

    @property
    def installed(self) -> bool:
        return bool(self.files)


def look_around() -> Surroundings:
    """The surroundings of this process."""
    has_card = torch.cuda.is_available()
    folder = package_folder()
    installed = _distribution(NAME)
    return Surroundings(
        platform=sys.platform,
        bitsandbytes=version(installed.version) if installed else (),
        version_text=installed.version if installed else "",
        folder=str(folder or ""),
        own_folder=folder is not None and folder.resolve().is_relative_to(Path(sys.prefix).resolve()),
        files=frozenset(_listing(folder)) if folder else frozenset(),
        foreign=frozenset(_foreign(folder, installed)) if folder and installed else frozenset(),
        aliases=tuple(name for name in ALIASES if _distribution(name)),
        cuda=version(torch.version.cuda or "")[:2] if has_card else (),
        hip=version(torch.version.hip or "")[:2] if has_card else (),
        capability=torch.cuda.get_device_capability() if has_card else (),
        card=torch.cuda.get_device_name() if has_card else "",
        directml=importlib.util.find_spec("torch_directml") is not None,
    )


def package_folder() -> Path | None:
    """The folder that `import bitsandbytes` would take, None if there is none."""
    spec = importlib.util.find_spec(NAME)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if places:
        return Path(places[0])
    return Path(spec.origin).parent / NAME if spec and spec.origin else None


def _distribution(name: str) -> metadata.Distribution | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.distribution(name)
    return None


def _listing(folder: Path) -> Iterable[str]:
    """Libraries and loaders in a package's folder and its `cuda_setup`."""
    for place in (folder, folder / "cuda_setup"):
        if place.is_dir():
            for path in place.iterdir():
                if path.is_file():
                    yield path.relative_to(folder).as_posix()


def _foreign(folder: Path, installed: metadata.Distribution) -> Iterable[str]:
    """What lies there and is not the wheel's: told by its RECORD, if that is of this folder and whole."""
    brought = {
        str(path).replace("\\", "/").partition(f"{NAME}/")[2]: path
        for path in installed.files or ()
        if str(path).startswith(NAME)
    }
    if not brought or Path(str(installed.locate_file(NAME))).resolve() != folder.resolve():
        return
    for name in _listing(folder):
        known = brought.get(name)
        if known is None:
            if _decides(name):
                yield name
        elif name in LOADERS and known.hash is not None and _sha256(folder / name) != known.hash.value:
            yield name


def _decides(name: str) -> bool:
    return name in LOADERS or name.rpartition("/")[2].startswith("libbitsandbytes")


def _sha256(path: Path) -> str:
    """As a wheel's RECORD writes it."""
    digest = hashlib.sha256(path.read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")
