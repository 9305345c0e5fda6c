"""The WebUI's own loader makes of our files what kohya's convention makes of them, for every family, kind and layer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kohya
import models
import pytest
import torch
from safetensors.torch import load_file

from dreambooth.trainer.adapters.kinds import KINDS

VERSIONS = {"sd1": "SD1", "sd1-inpaint": "SD1", "sd2": "SD2", "sd2-inpaint": "SD2", "sdxl": "SDXL"}


@pytest.mark.webui
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", VERSIONS)
def test_the_webuis_loader_applies_every_layer_as_it_was_trained(family, kind, tmp_path) -> None:
    _, path = models.trained(
        tmp_path, family, path=tmp_path / "my lora.safetensors", adapter=kind, output_kind=KINDS[kind].result,
        target_blocks="all", lora_alpha=3,
    )  # fmt: skip
    base, out = models.base(tmp_path, family), tmp_path / "applied.safetensors"
    script = Path(__file__).with_name("webui_loader.py")
    command = [sys.executable, script, os.environ["DREAMBOOTH_WEBUI"], base, path, out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    version, alias = done.stdout.split()[0], " ".join(done.stdout.split()[1:-1])
    assert (version, alias) == (VERSIONS[family], "my lora")
    adapter, before = load_file(path), models.weights(family)
    expected, _ = kohya.applied(before, adapter)
    found = load_file(out)
    changed = [name for name in expected if not torch.equal(expected[name], before[name].float())]
    assert changed and set(changed) <= found.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.reshape(expected[name].shape), expected[name], atol=1e-5, rtol=1e-4)
