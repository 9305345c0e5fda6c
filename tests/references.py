"""A folder with the libraries that our adapters are compared with, for processes of their own that have it on their path.

Made once in `environments/` by `python3 -m tests`, safe to interrupt and to repeat: whatever has no stamp is made anew.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

from dreambooth import environment
from dreambooth.making import alone

REQUIREMENTS = Path(__file__).with_name("requirements-references.txt")
STAMP = "whole"


def folder() -> Path:
    """Where they are, if they are."""
    return environment.ENVIRONMENTS / f"references-{zlib.crc32(REQUIREMENTS.read_bytes()):08x}"


def are_there() -> bool:
    return (folder() / STAMP).exists()


def make(say: Callable[[str], None]) -> None:
    """Fetches them where they are missing. Without them their tests are skipped, so that a failure of pip is only said."""
    with alone(folder(), say):
        if are_there():
            return
        say(f"Fetching the libraries that adapters are compared with, once: {folder()}")
        shutil.rmtree(folder(), ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder()]
        done = subprocess.run([*map(str, command), "-r", str(REQUIREMENTS)], stdout=sys.stderr.fileno())
        if done.returncode:
            say("pip could not, as it says above: their tests are left out")
        else:
            (folder() / STAMP).touch()
