"""Claims of result names: a small file beside where the result will be, which names the run that will write it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

CLAIM_SUFFIX = ".claimed-by-a-run"


def holder(claim: Path) -> Path | None:
    """The run folder that a claim names, which may be gone; None if the file is no claim."""
    try:
        return Path(json.loads(claim.read_bytes())["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def release_all(folder: Path, run: Path) -> None:
    """Removes what a run that is deleted claimed in a folder. A claim that cannot be removed holds nothing any more."""
    with contextlib.suppress(OSError):
        for claim in folder.glob(f"*{CLAIM_SUFFIX}"):
            found = holder(claim)
            if found is not None and found.resolve() == run.resolve():
                claim.unlink(missing_ok=True)
