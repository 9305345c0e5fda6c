"""Which versions of the trainer's libraries go together, as data: standard library only.

The newest set stands in requirements.txt, so that anybody can install it by hand. What is here is the rest: the
sets for the older torch of a WebUI, and which versions of a Python that already has them serve as they are.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = "requirements.txt"
NO_DEPENDENCIES = "requirements-no-deps.txt"
EIGHT_BIT = "requirements-8bit.txt"
OPTIMIZERS = "requirements-optimizers.txt"
TESTS = "requirements-tests.txt"
CONSTRAINTS = "constraints.txt"

Version = tuple[int, ...]


class Library(NamedTuple):
    """A library that the trainer imports: its name for pip, its module, the oldest version that serves."""

    name: str
    module: str
    lowest: str


LIBRARIES = (
    Library("torch", "torch", "2.1.2"),
    Library("diffusers", "diffusers", "0.35.2"),
    Library("transformers", "transformers", "4.55.4"),
    Library("accelerate", "accelerate", "1.0"),
    Library("tokenizers", "tokenizers", "0.21"),
    Library("safetensors", "safetensors", "0.4.2"),
    Library("omegaconf", "omegaconf", "2.2.3"),
    Library("numpy", "numpy", "1.23"),
    Library("pillow", "PIL", "9.5"),
    Library("psutil", "psutil", "5.9"),
    Library("platformdirs", "platformdirs", "3.0"),
    Library("open_clip_torch", "open_clip", "2.0"),
)
TEST_LIBRARIES = (
    Library("pytest", "pytest", "7.0"),
    Library("ruff", "ruff", "0.5"),
    Library("mypy", "mypy", "1.8"),
)


class OlderSet(NamedTuple):
    """The newest libraries that work with torch from `torch` up to the next row's."""

    torch: Version
    pins: dict[str, str]


# Each was tried whole: train steps, sampling, saving and loading, a full SD1.5 single file.
OLDER_SETS = (
    OlderSet((2, 1), {"diffusers": "0.35.2", "transformers": "4.55.4", "bitsandbytes": "0.45.5"}),
    OlderSet((2, 3), {"diffusers": "0.38.0", "transformers": "5.0.0", "bitsandbytes": "0.45.5"}),
    OlderSet((2, 6), {"diffusers": "0.41.0", "transformers": "5.20.2"}),
)
NEWEST_FROM: Version = (2, 13)

# diffusers and transformers break what we use in most of their minor versions; the others hardly ever do.
_BOUND_TO_TORCH = ("diffusers", "transformers")
_LINE = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[^;\s]+)\s*(?:;\s*(?P<marker>.*))?$")
_MARKER = re.compile(r'(?P<key>python_version|sys_platform)\s*(?P<op>>=|<|!=|==)\s*"(?P<value>[^"]+)"$')


def version(text: str) -> Version:
    """The release numbers of a version: `2.13.0+cpu` is (2, 13, 0)."""
    release = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in release.group().split(".")) if release else ()


def _applies(marker: str, python: Version) -> bool:
    found = _MARKER.match(marker.strip())
    if not found:
        raise ValueError(f"a marker that is not understood: {marker}")
    if found["key"] == "sys_platform":
        return (sys.platform == found["value"]) == (found["op"] == "==")
    return (python >= version(found["value"])) == (found["op"] == ">=")


def read(name: str, *, python: Version = tuple(sys.version_info[:2]), root: Path = ROOT) -> dict[str, str]:
    """The pins of one requirements file for one Python, by library; what the file includes (`-r`) with it."""
    pins: dict[str, str] = {}
    for raw in (root / name).read_text(encoding="utf-8").splitlines():
        line = raw.split("#")[0].strip()
        if line.startswith("-r "):
            pins |= read(line[3:].strip(), python=python, root=root)
        elif line and not line.startswith("-"):
            found = _LINE.match(line)
            if not found:
                raise ValueError(f"{name}: a line that is not understood: {raw}")
            if not found["marker"] or _applies(found["marker"], python):
                pins[found["name"]] = found["version"]
    return pins


def set_for(torch: str, python: Version = tuple(sys.version_info[:2])) -> dict[str, str]:
    """The complete set for a torch that is already there: every library with its pin, torch at its own version.

    Raises ValueError for a torch before the oldest that works.
    """
    release = version(torch)
    if release < OLDER_SETS[0].torch:
        raise ValueError(f"torch {torch} is older than 2.1, the oldest that works")
    pins = read(REQUIREMENTS, python=python) | read(NO_DEPENDENCIES, python=python)
    pins |= read(EIGHT_BIT, python=python)
    if release < NEWEST_FROM:
        pins |= [row for row in OLDER_SETS if row.torch <= release][-1].pins
    if release < (2, 3):  # built against numpy 1, and fails beside numpy 2
        pins["numpy"] = "1.26.4"
    return pins | {"torch": torch}


def unfit(installed: dict[str, str], python: Version = tuple(sys.version_info[:2])) -> list[str]:
    """What keeps these libraries (`torch` is among them) from serving as they are, a phrase each; empty: nothing."""
    complaints = [
        f"{library.name} {installed[library.name]} (at least {library.lowest} is needed)"
        for library in LIBRARIES + TEST_LIBRARIES
        if library.name in installed and version(installed[library.name]) < version(library.lowest)
    ]
    if complaints or "torch" not in installed:
        return complaints
    newest = set_for(installed["torch"], python)
    return [
        f"{name} {installed[name]} (beside torch {installed['torch']} at most {newest[name]} was tried)"
        for name in _BOUND_TO_TORCH
        if name in installed and version(installed[name])[:2] > version(newest[name])[:2]
    ]
