"""Which of bitsandbytes' libraries is the one for this torch and this card, among those that the wheel really has.

Each is compiled for one CUDA or ROCm version: `libbitsandbytes_cuda128.dll`, `libbitsandbytes_rocm714.so`; before 0.45
with a second form, `_nocublaslt`, for cards before Turing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dreambooth.pins import Version
from dreambooth.trainer.eightbit.surroundings import Surroundings

SUFFIXES = {"win32": ".dll", "darwin": ".dylib"}
OVERRIDES = {"cuda": "BNB_CUDA_VERSION", "rocm": "BNB_ROCM_VERSION"}
TITLES = {"cuda": "CUDA", "rocm": "ROCm"}
# From here on it takes the nearest library by itself, and knows an override for ROCm.
CHOOSES_ITSELF: Version = (0, 50)
# Before this its override did not know the `_nocublaslt` form.
OVERRIDES_ALL: Version = (0, 44)
TURING: Version = (7, 5)

# The lowest compute capability that the wheels' libraries have code for: from which bitsandbytes, from which CUDA
# (its .github/scripts/build-cuda.sh; the documentation's tables for older ones). The first row that applies holds.
LOWEST: tuple[tuple[Version, Version, Version], ...] = (
    ((0, 48), (13, 0), (7, 5)),
    ((0, 48), (12, 8), (7, 0)),
    ((0, 48), (0, 0), (6, 0)),
    ((0, 45), (12, 8), (7, 5)),
    ((), (), (5, 0)),
)
# Blackwell's code is in libraries for this CUDA and later.
BLACKWELL: Version = (10, 0)
BLACKWELL_FROM: Version = (12, 8)

_NAME = re.compile(
    r"libbitsandbytes_(?P<kind>cuda|rocm)(?P<digits>\d{2,})(?P<plain>_nocublaslt)?(?P<suffix>\.\w+)"
)


class Binary(NamedTuple):
    """One library; `plain`: the form without cuBLASLt."""

    name: str
    kind: str
    version: Version
    plain: bool


@dataclass(frozen=True)
class Choice:
    """The library to load ("": none), which variables to change for it (None: remove), and why; `trouble` names what
    is in the way: no_binary, other_system, card_too_old, card_too_new, no_override."""

    binary: str = ""
    changes: Mapping[str, str | None] = field(default_factory=dict)
    why: str = ""
    trouble: str = ""


def binaries(files: Iterable[str], platform: str) -> list[Binary]:
    """The GPU libraries for this system among a folder's files."""
    suffix = SUFFIXES.get(platform, ".so")
    found = (_NAME.fullmatch(name) for name in sorted(files))
    return [
        Binary(match[0], match["kind"], _split(match["kind"], match["digits"]), bool(match["plain"]))
        for match in found
        if match and match["suffix"] == suffix
    ]


def _split(kind: str, digits: str) -> Version:
    """CUDA's major has two digits, ROCm's one: 128 is (12, 8), 714 is (7, 14)."""
    place = 2 if kind == "cuda" else 1
    return (int(digits[:place]), int(digits[place:] or 0))


def nearest(there: Iterable[Version], wanted: Version) -> Version | None:
    """The same version, else the nearest lower, else the next higher one of the same major."""
    same = sorted(version for version in there if version[0] == wanted[0])
    lower = [version for version in same if version <= wanted]
    return lower[-1] if lower else same[0] if same else None


def lowest_capability(bitsandbytes: Version, cuda: Version) -> Version:
    """The lowest compute capability that a wheel's library for this CUDA has code for."""
    return next(lowest for since, from_cuda, lowest in LOWEST if bitsandbytes >= since and cuda >= from_cuda)


def choose(around: Surroundings, environ: Mapping[str, str]) -> Choice:
    """The library to load, and what to change so that bitsandbytes loads it. A pure function."""
    kind = "rocm" if around.hip else "cuda"
    wanted = around.hip or around.cuda
    if not wanted:
        return Choice(why="this torch has neither CUDA nor ROCm")
    everything = [binary for binary in binaries(around.files, around.platform) if binary.kind == kind]
    plain = any(binary.plain for binary in everything) and around.capability < TURING and kind == "cuda"
    there = {binary.version: binary for binary in everything if binary.plain is plain}
    asked, changes, notes = _asked(kind, there, around, environ)
    if asked:
        return Choice(asked.name, changes, f"{OVERRIDES[kind]} asks for it")
    able = [version for version in there if _has_code(around, kind, version)]
    best = nearest(able, wanted)
    if best is None:
        trouble = _trouble(around, everything, there, wanted)
        return Choice(changes=changes, trouble=trouble, why="; ".join(notes))
    itself = nearest(there, wanted) if around.bitsandbytes >= CHOOSES_ITSELF else wanted
    if best != itself:
        if not _can_override(around, kind, plain):
            return Choice(changes=changes, trouble="no_override", why="; ".join(notes))
        changes = {**changes, OVERRIDES[kind]: "".join(map(str, best))}
        notes.append(_why_another(kind, wanted, best, in_wheel=wanted in there))
    too_new = kind == "cuda" and around.capability >= BLACKWELL and best < BLACKWELL_FROM
    return Choice(there[best].name, changes, "; ".join(notes), "card_too_new" if too_new else "")


def _asked(
    kind: str, there: Mapping[Version, Binary], around: Surroundings, environ: Mapping[str, str]
) -> tuple[Binary | None, dict[str, str | None], list[str]]:
    """The library that a variable asks for, if there is one; else that the variable is to be removed, and why."""
    changes: dict[str, str | None] = {}
    notes = []
    foreign = OVERRIDES["cuda"]
    if kind == "rocm" and foreign in environ and around.bitsandbytes < CHOOSES_ITSELF:
        changes[foreign] = None  # it refuses to load anything then
        notes.append(f"{foreign} is not for ROCm and is left aside")
    value = environ.get(OVERRIDES[kind])
    if value is None:
        return None, changes, notes
    named = there.get(_split(kind, value)) if value.isdigit() and len(value) > 1 else None
    if named is None:
        changes[OVERRIDES[kind]] = None
        notes.append(f"{OVERRIDES[kind]}={value} names a library that is not there and is left aside")
    return named, changes, notes


def _has_code(around: Surroundings, kind: str, version: Version) -> bool:
    known = kind == "cuda" and around.capability
    return not known or around.capability >= lowest_capability(around.bitsandbytes, version)


def _can_override(around: Surroundings, kind: str, plain: bool) -> bool:
    if kind == "rocm":
        return around.bitsandbytes >= CHOOSES_ITSELF
    return not plain or around.bitsandbytes >= OVERRIDES_ALL


def _trouble(
    around: Surroundings, everything: list[Binary], there: Mapping[Version, Binary], wanted: Version
) -> str:
    if nearest(there, wanted) is not None:
        return "card_too_old"
    others = any(name.startswith("libbitsandbytes_") for name in around.files)
    suffix = SUFFIXES.get(around.platform, ".so")
    here = any(name.startswith("libbitsandbytes_") and name.endswith(suffix) for name in around.files)
    return "other_system" if others and not here and not everything else "no_binary"


def _why_another(kind: str, wanted: Version, best: Version, *, in_wheel: bool) -> str:
    title = TITLES[kind]
    asked, taken = (".".join(map(str, version)) for version in (wanted, best))
    if in_wheel:
        return f"its library for {title} {asked} has no code for this card, that for {taken} has"
    return f"it has no library for {title} {asked}, the nearest is that for {taken}"
