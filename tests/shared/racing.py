"""What test_runfolder has other processes do. A file of its own, so that they need not import pytest."""

from __future__ import annotations

from multiprocessing.synchronize import Barrier
from pathlib import Path

from dreambooth.shared.runfolder import create_run


def create_runs(runs_dir: Path, name: str, count: int, owner: str, start: Barrier) -> None:
    """Makes `count` runs of one name at the same moment as others do; each says in its config whose it is."""
    start.wait(60)
    for _ in range(count):
        create_run(runs_dir, name, f"output_name: {owner}\n")
