"""Lets torch's memory on a card grow in place, so that it does not fall to pieces: standard library only.

torch takes a card's memory in segments. As tensors of many sizes come and go, what is free lies in pieces between them,
and a run ends for want of memory that is there. Segments that can grow (`expandable_segments`) prevent that; torch reads
of them when it first uses the card, from the environment.

They are asked for on Linux: torch has none on Windows and none for a Jetson, and for AMD's cards only in its newest
versions. Whatever a user has set of torch's allocator is the user's own, and is left as it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE, OLDER = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
VALUE = "expandable_segments:True"
# Whatever torch reads of its allocator
VARIABLES = (OLDER, VARIABLE, "PYTORCH_HIP_ALLOC_CONF")
# 2.9 takes the new name and passes over it (pytorch#183387); this one was seen to read it
_READS_NEWER = (2, 13)
_JETSON = Path("/etc/nv_tegra_release")


def wanted(environ: Mapping[str, str], torch: str, platform: str, *, jetson: bool = False) -> dict[str, str]:
    """The variable to be set for this version of torch ("" for none), {} where there is nothing to set."""
    if platform != "linux" or jetson or not torch or "+rocm" in torch:
        return {}
    if any(name in environ for name in VARIABLES):
        return {}
    numbers = torch.split("+")[0].split(".")[:2]
    newer = all(number.isdecimal() for number in numbers) and tuple(map(int, numbers)) >= _READS_NEWER
    return {VARIABLE if newer else OLDER: VALUE}


def prepare() -> None:
    """Sets it for this process, before it imports torch."""
    if sys.platform == "linux":  # elsewhere not even torch's version is looked up
        os.environ.update(wanted(os.environ, _torch(), sys.platform, jetson=_JETSON.exists()))


def said(environ: Mapping[str, str]) -> str:
    """What holds, in `doctor`'s words."""
    found = next((name for name in VARIABLES if name in environ), None)
    if found is None:
        return "torch's own way of taking a card's memory"
    value = environ[found]
    grows = "a card's memory grows in place" if VALUE in value else "as it was set"
    return f"{grows} ({found}={value})"


def _torch() -> str:
    from importlib import metadata

    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""
