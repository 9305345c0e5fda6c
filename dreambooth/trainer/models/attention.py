"""Which attention is used: torch's own, or xformers where it is wanted and works."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import torch

from dreambooth.shared.errors import InputError

_TRY = """
import torch, xformers, xformers.ops
query = torch.randn(1, 64, 8, 40, device="{device}", dtype=torch.float16, requires_grad=True)
xformers.ops.memory_efficient_attention(query, query, query).sum().backward()
print(xformers.__version__)
"""


def choose(asked: str, device: torch.device) -> str:
    """ "sdpa" or "xformers". Raises InputError where xformers is asked for and cannot be had, or does not work."""
    if asked != "xformers":
        return "sdpa"
    if not is_installed():
        raise InputError(
            "the package xformers is not installed in the trainer's environment",
            where="attention",
            remedy="use attention: auto (torch's own attention is as fast)",
        )
    if device.type != "cuda":
        raise InputError(
            "attention by xformers needs an NVIDIA card", where="attention", remedy="use attention: auto"
        )
    fault = xformers_fault()
    if fault:
        raise InputError(
            f"attention by xformers does not work here: {fault}",
            where="attention",
            remedy="use attention: auto, or install the xformers that was built for this torch",
        )
    return "xformers"


def is_installed() -> bool:
    return importlib.util.find_spec("xformers") is not None


def xformers_fault(device: str = "cuda") -> str:
    """Why xformers does not work, "" if it does: forward and backward, as SD1's UNet asks it (8 heads of 40), in a process
    of its own. One that was built for another torch can be imported and fails, or kills the process, when it is used."""
    done = subprocess.run(
        [sys.executable, "-c", _TRY.format(device=device)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode == 0:
        return ""
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"the try ended with exit code {done.returncode}"
