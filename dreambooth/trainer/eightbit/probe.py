"""A real 8-bit step in a process of its own: all else proves nothing.

bitsandbytes imports and builds its optimizer where it cannot step: only a step of at least 4096 elements (smaller
tensors keep 32-bit states) reaches the kernels, and a wrong library may take the whole process with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from dreambooth import pins

SECONDS = 180.0
ELEMENTS = 4 * 4096
_STEP = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
target, device, elements = sys.argv[2], sys.argv[3], int(sys.argv[4])
import torch
from dreambooth.trainer.eightbit import prepare
prepare()
module, _, name = target.rpartition(".")
library = importlib.import_module(module.partition(".")[0])
made_of = getattr(importlib.import_module(module), name)
if device == "auto":
    device = "cuda" if torch.cuda.is_available() else "cpu"
weight = torch.nn.Parameter(torch.linspace(-1, 1, elements, device=device))
before = weight.detach().clone()
optimizer = made_of([weight], lr=0.01, weight_decay=0.0)
weight.grad = torch.where(torch.arange(weight.numel(), device=device) % 2 == 0, 1.0, -1.0)
optimizer.step()
moved = (weight.detach() - before).cpu()
states = [v for v in optimizer.state[weight].values() if torch.is_tensor(v) and v.shape == weight.shape]
eight = [v.dtype == torch.uint8 or "8bit" in type(v).__name__ for v in states]
print(json.dumps({
    "version": getattr(library, "__version__", ""),
    "device": device,
    "eight_bit": bool(eight) and all(eight),
    "right": bool(torch.allclose(moved[::2], torch.tensor(-0.01), rtol=0.1)
                  and torch.allclose(moved[1::2], torch.tensor(0.01), rtol=0.1)),
}))
"""


@dataclass(frozen=True)
class Step:
    """How the step went: the process's exit code (None: it did not end), what it said, what it saw."""

    code: int | None
    said: str = ""
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        return self.code == 0 and bool(self.seen.get("eight_bit")) and bool(self.seen.get("right"))

    @property
    def died(self) -> bool:
        """Ended by the system, not by an error of Python's."""
        return self.code is not None and (self.code < 0 or self.code > 255)


def take_step(target: str, device: str) -> Step:
    """Takes one step of the class `target` on `device` (`auto`: the card if there is one) in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _STEP, str(pins.ROOT), target, device, str(ELEMENTS)],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        )
    except subprocess.TimeoutExpired:
        return Step(None, f"it did not end in {SECONDS:.0f} s")
    if done.returncode:
        return Step(done.returncode, f"{done.stdout}\n{done.stderr}")
    return Step(0, done.stderr, json.loads(done.stdout.strip().splitlines()[-1]))
