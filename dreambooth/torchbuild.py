"""Which build of torch a new environment gets, and from where: standard library only.

PyPI has one build for each system: with CUDA 13.0 on Linux, for the CPU on Windows, with Metal on a Mac. The
others lie on PyTorch's own index, which not every network can reach.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import pins
from .environment import TORCH_VARIABLE
from .shared.errors import DreamboothError, InputError

PYTORCH_INDEX = "https://download.pytorch.org/whl/"
_ANSWER_SECONDS = 6.0
_TRIES = 2


class Card(NamedTuple):
    """An NVIDIA card: its name, its driver's version, its compute capability."""

    name: str
    driver: pins.Version
    capability: pins.Version


class CudaBuild(NamedTuple):
    """What a CUDA build of the pinned torch needs: a driver (Linux, Windows) and a card in this range."""

    tag: str
    linux_driver: pins.Version
    windows_driver: pins.Version
    oldest: pins.Version
    newest: pins.Version


# Of torch 2.13. The first that serves every card is taken.
CUDA_BUILDS = (
    CudaBuild("cu130", (580,), (580,), (7, 5), (99,)),
    CudaBuild("cu126", (525, 60), (528, 33), (5, 0), (9, 0)),
)


class Build(NamedTuple):
    """What pip is told (`constraint`, an index's `address`; both empty for the usual build), and the user (`notes`)."""

    kind: str
    constraint: str = ""
    address: str = ""
    notes: tuple[str, ...] = ()


def cards() -> list[Card]:
    """The NVIDIA cards as the driver's own tool lists them; empty where there is no such tool or no card."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in answer.splitlines()]
    return [Card(row[0], pins.version(row[1]), pins.version(row[2])) for row in rows if len(row) == 3]


def cuda_tag(found: Sequence[Card], *, windows: bool = os.name == "nt") -> str:
    """The CUDA build that serves every one of these cards.

    Raises DreamboothError if none does: an old driver, an old card.
    """
    for build in CUDA_BUILDS:
        driver = build.windows_driver if windows else build.linux_driver
        if all(card.driver >= driver and build.oldest <= card.capability <= build.newest for card in found):
            return build.tag
    seen = "; ".join(f"{card.name}, driver {'.'.join(map(str, card.driver))}" for card in found)
    raise DreamboothError(
        f"no CUDA build of this torch serves what is here ({seen})",
        remedy=f"update the NVIDIA driver to 580 or newer; or set {TORCH_VARIABLE}=cpu to train without the card",
    )


def on_pypi(tag: str) -> bool:
    """Whether the usual index has this build, so that PyTorch's own need not be asked."""
    if sys.platform == "darwin":
        return True
    if sys.platform == "win32":
        return tag == "cpu"
    return tag == "cu130" if platform.machine() == "x86_64" else False


def index_has(address: str, release: str) -> bool:
    """Whether the index at `address` answers, soon, and lists this release of torch for the running Python."""
    file = f"torch-{release.replace('+', '%2B')}-cp{sys.version_info[0]}{sys.version_info[1]}-"
    for _ in range(_TRIES):
        try:
            with urllib.request.urlopen(f"{address.rstrip('/')}/torch/", timeout=_ANSWER_SECONDS) as answer:
                page = answer.read().decode(errors="replace")
            return file in page or file.replace("%2B", "+") in page
        except urllib.error.HTTPError:
            return False
        except (OSError, ValueError):
            continue
    return False


def choose(kind: str, *, has: Callable[[str, str], bool] = index_has) -> Build:
    """The build for `kind`: `cpu`, `cuda` (the cards decide), a tag as `cu126`, or an index's address.

    Where PyTorch's index cannot be reached, the usual index's build is taken, with a note that says so; but what
    was asked for by its tag and cannot be had raises InputError.
    """
    release = pins.read(pins.REQUIREMENTS)["torch"]
    if "://" in kind:
        return Build("cuda", address=kind, notes=(f"torch comes from {kind}, as {TORCH_VARIABLE} says.",))
    tag = kind
    if kind == "cuda":
        found = cards()
        tag = cuda_tag(found) if found else CUDA_BUILDS[0].tag
    family = "cpu" if tag == "cpu" else "cuda"
    if on_pypi(tag):
        return Build(family)
    address, pin = PYTORCH_INDEX + tag, f"{release}+{tag}"
    if has(address, pin):
        return Build(family, constraint=f"torch=={pin}", address=address)
    absent = f"{address} cannot be reached or has no torch {pin}"
    if kind not in ("cpu", "cuda"):
        remedy = f"name cpu, one of {', '.join(build.tag for build in CUDA_BUILDS)}, or an index's address; or unset it"
        raise InputError(absent, where=f"{TORCH_VARIABLE}={kind}", remedy=remedy)
    return Build(family, notes=(f"{absent}: the usual index's build of torch {release} is taken.",))
