"""The Python that the tests of the WebUI's side run in: an environment with the WebUI's own pins and a browser's driver.

The trainer's environment cannot hold them: gradio 3.41.2 wants the libraries of 2023. Made once in `environments/`,
safe to interrupt and to repeat: whatever has no stamp is thrown away and made anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

from dreambooth import environment
from dreambooth.making import alone
from dreambooth.shared.errors import DreamboothError

REQUIREMENTS = Path(__file__).with_name("requirements-host.txt")
VERSIONS = ("3.11", "3.10")  # of Python, that the WebUI runs on
STAMP = "whole"


def find_base() -> str | None:
    """A Python that the WebUI's pins can be installed on, with its venv module; None if this machine has none."""
    for version in VERSIONS:
        if sys.version.startswith(version + "."):
            return getattr(sys, "_base_executable", sys.executable)
    for version in VERSIONS:
        found = shutil.which(f"python{version}")
        if (
            found
            and not subprocess.run([found, "-c", "import venv, ensurepip"], capture_output=True).returncode
        ):
            return found
    return None


def make(base: str, say: Callable[[str], None]) -> Path:
    """Makes the environment where it is missing, and gives its Python. Raises DreamboothError if pip cannot."""
    folder = _folder(base)
    python = environment.python_in(folder)
    if (folder / STAMP).exists() and python.exists():
        return python
    with alone(folder, say):
        if not (folder / STAMP).exists():
            say(f"Making the environment of the WebUI's side's tests, once: {folder}")
            shutil.rmtree(folder, ignore_errors=True)
            _run(base, "-m", "venv", str(folder))
            _run(str(python), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS))
            _run(str(python), "-c", "import gradio, pytest, playwright.sync_api, omegaconf")
            (folder / STAMP).touch()
    return python


def _folder(base: str) -> Path:
    digest = zlib.crc32(REQUIREMENTS.read_bytes() + base.encode())
    return environment.ENVIRONMENTS / f"host-tests-{digest:08x}"


def _run(*command: str) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, env=environ, stdout=sys.stderr.fileno())
    if done.returncode:
        raise DreamboothError(
            f"{' '.join(command[:5])} ended with {done.returncode}",
            where=str(REQUIREMENTS),
            remedy="its own message stands above; mend that and repeat",
        )
