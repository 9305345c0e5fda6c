"""Windows looks for a library's own dependencies only in folders that the process has named: CUDA's, beside torch's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from dreambooth.pins import Version


def dll_folders(torch_folder: Path, cuda: Version, environ: Mapping[str, str]) -> list[Path]:
    """Where CUDA's libraries may lie on Windows, torch's own first: only folders that are there, each once.

    pip's CUDA packages put them into `nvidia/<part>/bin` beside torch, NVIDIA's installer under CUDA_PATH_V12_8 and
    CUDA_PATH, since CUDA 13 in `bin/x64`.
    """
    own = "CUDA_PATH_V" + "_".join(map(str, cuda))
    installed = [Path(environ[name]) for name in (own, "CUDA_PATH", "CUDA_HOME") if environ.get(name)]
    candidates = [
        torch_folder / "lib",
        torch_folder / "bin",
        *sorted((torch_folder.parent / "nvidia").glob("*/bin")),
        *sorted((torch_folder.parent / "nvidia").glob("*/bin/x86_64")),
        *(folder / part for folder in installed for part in ("bin", "bin/x64")),
    ]
    return [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]


def add_dll_folders(folders: Iterable[Path]) -> list[Path]:
    """Names the folders to Windows' loader, and in PATH for what looks there; elsewhere nothing."""
    if sys.platform != "win32":
        return []
    added = list(folders)
    for folder in added:
        os.add_dll_directory(str(folder))
    before = os.environ.get("PATH", "")
    new = [str(folder) for folder in added if str(folder) not in before.split(os.pathsep)]
    os.environ["PATH"] = os.pathsep.join([*new, before])
    return added
