from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from dreambooth.trainer import eightbit
from dreambooth.trainer.eightbit import Verdict, probe_adamw8bit

STUB = """
import sys, types
import torch

class AdamW8bit:
    dtype, sign = torch.uint8, 1.0

    def __init__(self, parameters, lr, weight_decay):
        self.parameters, self.lr, self.state = parameters, lr, {}

    def step(self):
        for weight in self.parameters:
            weight.data -= self.sign * self.lr * weight.grad.sign()
            self.state[weight] = {name: weight.data.to(self.dtype) for name in ("state1", "state2")}

optim = types.SimpleNamespace(AdamW8bit=AdamW8bit)
__version__ = "9.9"
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bitsandbytes of the test's own, before any that is installed."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "bitsandbytes.py"


def test_a_right_step_with_8_bit_state_works(fake: Path):
    fake.write_text(STUB, encoding="utf-8")
    assert probe_adamw8bit(device="cpu") == Verdict(True, "a real 8-bit step works, bitsandbytes 9.9 on cpu")


@pytest.mark.parametrize(
    ("broken", "text"),
    [("AdamW8bit.dtype = torch.float32", "more than 8 bits"), ("AdamW8bit.sign = -1.0", "the step is wrong")],
    ids=["state", "sign"],
)
def test_a_step_in_32_bits_or_in_the_wrong_direction_does_not_work(fake: Path, broken: str, text: str):
    fake.write_text(f"{STUB}\n{broken}\n", encoding="utf-8")
    verdict = probe_adamw8bit(device="cpu")
    assert not verdict.works
    assert text in verdict.text
    assert verdict.remedy == "use optimizer: adamw"


def test_what_a_failed_step_said_is_handed_on(fake: Path):
    fake.write_text("raise NameError('str2optimizer8bit_blockwise')", encoding="utf-8")
    verdict = probe_adamw8bit(device="cpu")
    assert verdict == Verdict(
        False, "an 8-bit step failed: NameError: str2optimizer8bit_blockwise", "use optimizer: adamw"
    )


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("ModuleNotFoundError: No module named 'bitsandbytes'", "-m pip install -r requirements-8bit.txt"),
        (
            "RuntimeError: Configured CUDA binary not found at libbitsandbytes_cuda132.so",
            "set BNB_CUDA_VERSION",
        ),
        ("RuntimeError: CUDA error: no kernel image is available for execution", "not built for this card"),
        ("torch.OutOfMemoryError: CUDA out of memory", "close what else uses it"),
    ],
)
def test_each_known_failure_has_its_remedy(said: str, remedy: str):
    verdict = eightbit._failed(1, f"Traceback\n{said}\n", "/a b/python")
    assert not verdict.works
    assert said in verdict.text
    assert remedy in verdict.remedy
    assert "{python}" not in verdict.remedy


def test_a_process_that_died_does_not_work():
    assert "the process died (code -11)" in eightbit._failed(-11, "", sys.executable).text


def test_a_step_that_never_ends_does_not_work(fake: Path, monkeypatch: pytest.MonkeyPatch):
    fake.write_text("import threading; threading.Event().wait()", encoding="utf-8")
    monkeypatch.setattr(eightbit, "_SECONDS", 0.5)
    assert "did not end" in probe_adamw8bit(device="cpu").text


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_the_installed_bitsandbytes_takes_a_real_step_on_the_processor():
    verdict = probe_adamw8bit(device="cpu")
    assert verdict.works, verdict.text
