"""Our layers give, and learn, what peft's and LyCORIS's do with the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import references
import torch

NEEDED = (2, 4)  # of torch: LyCORIS's kernels are registered in a way that older ones do not have
LAYERS, RANKS = 4, 2  # that libraries.py compares
CASES = {
    "lora of peft": LAYERS,
    "lora of LyCORIS": LAYERS,
    "dora of peft, transposed": 1,
    "dora of LyCORIS": LAYERS,
    "loha of LyCORIS": LAYERS,
    "lokr of LyCORIS": LAYERS,
}


@pytest.fixture(scope="module")
def said() -> dict:
    """What libraries.py says."""
    if not references.are_there():
        pytest.skip("peft and LyCORIS are not there: `python3 -m tests` fetches them")
    if tuple(map(int, torch.__version__.split(".")[:2])) < NEEDED:
        pytest.skip(f"LyCORIS needs torch 2.4, and this is {torch.__version__}")
    script = Path(__file__).with_name("libraries.py")
    environ = os.environ | {"PYTHONPATH": str(references.folder())}
    done = subprocess.run(
        [sys.executable, str(script)], env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict = json.loads(done.stdout.splitlines()[-1])  # LyCORIS logs there too
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_layer_gives_and_learns_what_the_librarys_does(case, said) -> None:
    found = {name: apart for name, apart in said["apart"].items() if name.startswith(f"{case}:")}
    assert len(found) == CASES[case] * RANKS
    assert not {name: apart for name, apart in found.items() if not apart < 1e-5}


@pytest.mark.slow
def test_the_published_models_widths_are_cut_for_a_kronecker_product_as_lycoris_cuts_them(said) -> None:
    assert said["cut otherwise"] == []
