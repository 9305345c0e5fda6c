"""Whether 8-bit AdamW works here, told by a real step in a process of its own.

bitsandbytes imports and builds its optimizer where it cannot step: only a step of at least 4096 elements (smaller
tensors keep 32-bit states) reaches the kernels, and a wrong library may take the whole process with it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import NamedTuple

from dreambooth import pins

_SECONDS = 180.0
_STEP = """
import json, sys
import torch
import bitsandbytes
device = sys.argv[1]
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"
weight = torch.nn.Parameter(torch.linspace(-1, 1, 4 * 4096, device=device))
before = weight.detach().clone()
optimizer = bitsandbytes.optim.AdamW8bit([weight], lr=0.01, weight_decay=0.0)
weight.grad = torch.where(torch.arange(weight.numel(), device=device) % 2 == 0, 1.0, -1.0)
optimizer.step()
moved = (weight.detach() - before).cpu()
eight = all(optimizer.state[weight][name].dtype == torch.uint8 for name in ("state1", "state2"))
print(json.dumps({
    "version": bitsandbytes.__version__,
    "device": device,
    "eight_bit": eight,
    "right": bool(torch.allclose(moved[::2], torch.tensor(-0.01), rtol=0.1)
                  and torch.allclose(moved[1::2], torch.tensor(0.01), rtol=0.1)),
}))
"""


class Verdict(NamedTuple):
    """Whether it works, what was seen, and what to do if it does not."""

    works: bool
    text: str
    remedy: str = ""


# What the failed step says, and what helps.
_REMEDIES = (
    (
        r"No module named 'bitsandbytes'",
        f"install it: {{python}} -m pip install -r {pins.EIGHT_BIT}; or use optimizer: adamw",
    ),
    (
        r"libbitsandbytes_\w+\.(?:so|dll)|BNB_CUDA_VERSION|CUDA Setup failed|cextension",
        "bitsandbytes has no library for this torch's CUDA, or an old one is in the way: reinstall it with "
        "{python} -m pip install --force-reinstall --no-deps -r "
        + pins.EIGHT_BIT
        + "; if the CUDA that it names "
        "is newer than torch's, set BNB_CUDA_VERSION to one that it has; or use optimizer: adamw",
    ),
    (
        r"no kernel image is available",
        "this bitsandbytes was not built for this card: try another version; or use optimizer: adamw",
    ),
    (r"out of memory", "the card is full: close what else uses it"),
)
_OTHERWISE = "use optimizer: adamw"


def probe_adamw8bit(python: str = sys.executable, device: str = "auto") -> Verdict:
    """Takes one real step of 8-bit AdamW in a process of its own, on `device` (`auto`: the card if there is one)."""
    try:
        done = subprocess.run(
            [python, "-c", _STEP, device],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        )
    except subprocess.TimeoutExpired:
        return Verdict(False, f"an 8-bit step did not end in {_SECONDS:.0f} s", _OTHERWISE)
    if done.returncode:
        return _failed(done.returncode, done.stderr, python)
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    name = f"bitsandbytes {seen['version']} on {seen['device']}"
    if not seen["eight_bit"]:
        return Verdict(False, f"{name} keeps its state in more than 8 bits", _OTHERWISE)
    if not seen["right"]:
        return Verdict(False, f"{name} steps, and the step is wrong", _OTHERWISE)
    return Verdict(True, f"a real 8-bit step works, {name}")


def _failed(code: int, stderr: str, python: str) -> Verdict:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    said = lines[-1] if lines else "nothing"
    if code < 0 or code > 255:
        said = f"the process died (code {code}): {said}"
    quoted = f'"{python}"' if " " in python else python
    for sign, remedy in _REMEDIES:
        if re.search(sign, stderr, re.IGNORECASE):
            return Verdict(False, f"an 8-bit step failed: {said}", remedy.format(python=quoted))
    return Verdict(False, f"an 8-bit step failed: {said}", _OTHERWISE)
