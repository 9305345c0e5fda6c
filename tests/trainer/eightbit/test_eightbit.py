from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from optional import skip_without
from recorded import installed

from dreambooth.trainer import eightbit
from dreambooth.trainer.eightbit import Step, Surroundings, Verdict, examine, prepare, probe

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

optim = sys.modules["bitsandbytes.optim"] = types.ModuleType("bitsandbytes.optim")
optim.AdamW8bit = AdamW8bit
__version__ = "9.9"
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bitsandbytes of the test's own, before any that is installed."""
    package = tmp_path / "bitsandbytes"
    package.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(eightbit, "look_around", lambda: installed("0.50.2"))
    return package / "__init__.py"


# ---- a step in a process of its own ----------------------------------------------------------------------------------


def test_a_right_step_with_8_bit_state_works(fake: Path):
    fake.write_text(STUB, encoding="utf-8")
    verdict = examine(device="cpu")
    assert (verdict.works, verdict.text) == (True, "a real 8-bit step works, bitsandbytes 9.9 on cpu")
    assert (verdict.version, verdict.device, verdict.cause) == ("9.9", "cpu", "")


@pytest.mark.parametrize(
    ("broken", "cause"),
    [("AdamW8bit.dtype = torch.float32", "not_8bit"), ("AdamW8bit.sign = -1.0", "wrong_step")],
    ids=["state", "sign"],
)
def test_a_step_in_32_bits_or_in_the_wrong_direction_does_not_work(fake: Path, broken: str, cause: str):
    fake.write_text(f"{STUB}\n{broken}\n", encoding="utf-8")
    verdict = examine(device="cpu")
    assert not verdict.works and verdict.cause == cause


def test_what_a_failed_step_said_is_handed_on(fake: Path):
    fake.write_text("raise NameError('str2optimizer8bit_blockwise')", encoding="utf-8")
    verdict = examine(device="cpu")
    assert verdict.text.endswith("NameError: str2optimizer8bit_blockwise")


def test_a_process_that_dies_takes_nobody_with_it(fake: Path):
    fake.write_text("import os; os.abort()", encoding="utf-8")
    verdict = examine(device="cpu")
    assert verdict.cause == "died" and "the process died" in verdict.text


def test_a_step_that_never_ends_does_not_work(fake: Path, monkeypatch: pytest.MonkeyPatch):
    fake.write_text("import threading; threading.Event().wait()", encoding="utf-8")
    monkeypatch.setattr(probe, "SECONDS", 0.5)
    verdict = examine(device="cpu")
    assert verdict.cause == "timeout" and "did not end in 0 s" not in verdict.remedy


def test_the_step_has_enough_elements_for_8_bits():
    assert probe.ELEMENTS >= 4096 and "weight.numel()" in probe._STEP


def test_the_installed_bitsandbytes_takes_a_real_step_on_the_processor():
    skip_without("adamw8bit")
    verdict = examine(device="cpu")
    assert verdict.works, verdict.text


def test_what_is_not_installed_is_not_tried(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eightbit, "look_around", lambda: Surroundings("linux"))
    monkeypatch.setattr(eightbit, "take_step", lambda *_: pytest.fail("a step was taken"))
    assert examine().cause == "missing"


def test_another_librarys_failure_is_said_in_its_own_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eightbit, "take_step", lambda target, device: Step(1, "x\nRuntimeError: no compiler"))
    verdict = examine("torchao.optim.AdamW8bit", device="cpu")
    assert verdict == Verdict(
        False, "torchao's 8-bit step failed: RuntimeError: no compiler", eightbit.OTHERWISE, cause="unknown"
    )


# ---- before the import -----------------------------------------------------------------------------------------------


def test_variables_are_set_before_the_import_for_this_process_and_the_steps(monkeypatch: pytest.MonkeyPatch):
    """The process that takes the step starts with what this one has now."""
    monkeypatch.setattr(eightbit, "look_around", lambda: installed("0.49.0", cuda=(13, 1), capability=(8, 6)))
    monkeypatch.delenv("BNB_CUDA_VERSION", raising=False)
    given: list[str | None] = []

    def run(command, **options):
        given.append(options["env"].get("BNB_CUDA_VERSION"))
        return subprocess.CompletedProcess(command, 1, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    examine(device="cuda")
    assert given == ["130"] and os.environ["BNB_CUDA_VERSION"] == "130"
    monkeypatch.delenv("BNB_CUDA_VERSION")


def test_an_override_that_names_an_absent_file_is_taken_away(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(eightbit, "look_around", lambda: installed("0.50.2", cuda=(12, 8), capability=(8, 6)))
    environ = {"BNB_CUDA_VERSION": "124x", "OTHER": "1"}
    _, choice = prepare(environ)
    assert environ == {"OTHER": "1"}
    assert choice.binary == "libbitsandbytes_cuda128.so"
    assert prepare(environ)[1].changes == {}


def test_windows_is_told_of_cudas_folders_beside_torch(monkeypatch: pytest.MonkeyPatch):
    told = []
    monkeypatch.setattr(eightbit, "look_around", lambda: installed("0.50.2", "win32", cuda=(12, 8)))
    monkeypatch.setattr(eightbit, "add_dll_folders", lambda folders: told.extend(folders))
    prepare({})
    assert Path(torch.__file__).parent / "lib" in told
