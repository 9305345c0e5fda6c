"""How the benchmarks run diffusers' examples/dreambooth/train_dreambooth.py, which is not part of this project.

Take it at the tag of the installed diffusers, or the nearest one before. It needs torchvision, which our environment
lacks: whatever is only for the script goes into a folder of its own, which alone it gets to see.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """The script, and the folder of the packages that only it needs."""

    script: Path
    packages: Path | None

    def command(self, *flags: str, **options: object) -> list[str]:
        """The command line with `--flag`s and `--option value`s, for the running Python."""
        command = [sys.executable, str(self.script), *(f"--{flag}" for flag in flags)]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        return command

    def environment(self) -> dict[str, str]:
        return alike() | ({"PYTHONPATH": str(self.packages)} if self.packages else {})


def alike() -> dict[str, str]:
    """The variables that both run with: one thread, and no network to wait for."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("peer", type=Path, help="diffusers' train_dreambooth.py")
    parser.add_argument("--peer-packages", type=Path, help="what it needs besides, such as torchvision")


def from_arguments(arguments: argparse.Namespace) -> Peer:
    packages = arguments.peer_packages
    return Peer(arguments.peer.absolute(), packages.absolute() if packages else None)
