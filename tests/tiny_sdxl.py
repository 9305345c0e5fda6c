"""The smallest checkpoint that has SDXL's form, for tests of whole runs and of what is done with such a model.

Weights are random, in the published layout, which is built without a look at our tables of names. Every width is a
multiple of 32, the two text encoders have two layers each, which SDXL's penultimate one needs, and the vocabulary is the
real one.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from checkpoints import write
from ldm_layout import TINY_SDXL, tensors

LAYOUT = replace(TINY_SDXL, vocabulary=49408, vae_multiples=(1, 1, 1, 1))
MARKS = {"v": ("v_pred",), "zsnr": ("v_pred", "ztsnr")}


def write_checkpoint(
    path: Path, *, seed: int = 1, dtype: torch.dtype = torch.float16, kind: str = "epsilon"
) -> Path:
    """Writes the checkpoint as a single file; `kind` is epsilon, v, or zsnr (v with zero terminal SNR)."""
    found = tensors(LAYOUT, dtype=dtype, seed=seed)
    found |= {name: torch.empty(0) for name in MARKS.get(kind, ())}
    return write(path, found)


@functools.cache
def base(kind: str = "epsilon") -> Path:
    """A checkpoint that is made once for all tests of a process; nobody may write to it."""
    return write_checkpoint(_shared_folder() / f"tiny sdxl {kind}.safetensors", kind=kind)


@functools.cache
def _shared_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dreambooth-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
