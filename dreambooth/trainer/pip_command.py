"""What to type so that a library is installed into the very environment that trains."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from dreambooth.environment import STAMP
from dreambooth.shared.commands import command_line


def pip_install(*arguments: str, python: str | None = None) -> str:
    """The command line that has pip install `arguments` into the environment of `python` (that which runs this)."""
    return command_line(*_pip(python or sys.executable), *arguments)


def _pip(python: str) -> list[str]:
    """pip for an environment: its own, that of the Python it was made with, or one that is given the folder."""
    if target := _target(sys.path):
        return [python, "-m", "pip", "install", "--target", target]
    if importlib.util.find_spec("pip") is None:  # made without one
        base = getattr(sys, "_base_executable", sys.executable)
        return [base, "-m", "pip", "--python", python, "install"]
    return [python, "-m", "pip", "install"]


def _target(paths: Sequence[str]) -> str:
    """The folder of packages of an environment that was made without venv; "" for all others."""
    folders = (Path(path) for path in paths if path)
    return next(
        (str(path) for path in folders if path.name == "packages" and (path.parent / STAMP).is_file()), ""
    )
