from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from dreambooth import environment, torchbuild
from dreambooth.trainer import doctor
from dreambooth.trainer.doctor import BAD, GOOD, NOTE, Finding
from dreambooth.trainer.eightbit import Verdict

CARD = torchbuild.Card("RTX 3090", (580, 65), (8, 6))


@pytest.fixture(autouse=True)
def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 8-bit step has tests of its own; a process of its own would be most of these tests' time."""
    monkeypatch.setattr(
        doctor.eightbit, "examine", lambda: Verdict(False, "an 8-bit step failed", "use adamw")
    )


def _only(topic: str, findings: list[Finding]) -> Finding:
    (found,) = [finding for finding in findings if finding.topic == topic]
    return found


def test_optimizers_whose_library_is_missing_are_named_with_what_to_type(monkeypatch):
    monkeypatch.setattr(doctor, "is_installed", lambda name: name != "pytorch_optimizer")
    there, missing = doctor._optimizers()
    assert there.state == GOOD and "adamw, adamw8bit" in there.text and "came" not in there.text
    assert missing.state == NOTE and "lion, dadaptadam, came" in missing.text
    assert "pip install --no-deps pytorch_optimizer==" in missing.remedy
    monkeypatch.setattr(doctor, "is_installed", lambda name: True)
    assert len(doctor._optimizers()) == 1


def test_everything_that_a_training_needs_is_looked_at():
    findings = doctor.examine()
    topics = {finding.topic for finding in findings}
    assert topics >= {topic for topic, _ in doctor.CHECKS} | {"card"}
    assert _only("vocabulary", findings).state == GOOD
    assert _only("libraries", findings).state == GOOD
    assert torch.__version__ in _only("torch", findings).text


def test_whatever_is_bad_has_a_remedy_beneath_it():
    findings = [
        Finding("card", BAD, "it is broken", "mend it"),
        Finding("disk", GOOD, "there is room"),
    ]
    lines = doctor.render(findings).splitlines()
    assert lines[0].split() == ["bad", "card", "it", "is", "broken"]
    assert lines[1].strip() == "What to do: mend it"
    assert lines[2].split() == ["ok", "disk", "there", "is", "room"]


@pytest.mark.parametrize("error", [ImportError("DLL load failed\nmore"), RuntimeError(""), OSError("gone")])
def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def broken() -> list[Finding]:
        raise error

    monkeypatch.setattr(doctor, "CHECKS", (("torch", broken), ("memory", doctor._memory)))
    first, second = doctor.examine()
    assert (first.topic, first.state) == ("torch", BAD)
    assert type(error).__name__ in first.text
    assert first.remedy
    assert second.topic == "memory"


def test_what_was_noted_when_the_environment_was_made_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    python = environment.python_in(tmp_path)
    python.parent.mkdir(parents=True)
    python.touch()
    stamp = {
        "base_python": sys.executable,
        "made": "2026-11-20",
        "notes": ["the index gave a torch without CUDA"],
    }
    (tmp_path / "stamp.json").write_text(json.dumps(stamp), encoding="utf-8")
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    made, note = doctor._environment()
    assert "made 2026-11-20" in made.text
    assert note == Finding("environment", NOTE, "the index gave a torch without CUDA")


def test_libraries_that_do_not_fit_are_bad(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "lacking", lambda: ["pillow 9.0 (at least 9.5 is needed)"])
    found = _only("libraries", doctor._libraries())
    assert found.state == BAD
    assert "pillow 9.0" in found.text


@pytest.mark.parametrize(
    ("built_with", "remedy"), [(None, "DREAMBOOTH_TORCH=cu130"), ("13.0", "update the NVIDIA driver")]
)
def test_a_card_that_torch_cannot_use_is_bad(
    monkeypatch: pytest.MonkeyPatch, built_with: str | None, remedy: str
):
    monkeypatch.setattr(torchbuild, "cards", lambda: [CARD])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_with)
    found = _only("card", doctor._torch())
    assert found.state == BAD
    assert "RTX 3090 (driver 580.65)" in found.text
    assert remedy in found.remedy


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A card that torch pretends to have; change its fields before the look."""
    told = SimpleNamespace(capability=(8, 6), architectures=["sm_75", "sm_80", "sm_90"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "RTX 3090")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: told.capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (20 * 2**30, 24 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: told.architectures)
    monkeypatch.setattr(torchbuild, "cards", lambda: [CARD])
    return told


def test_a_card_is_told_with_its_memory_driver_and_precision(card: SimpleNamespace):
    found = _only("card", doctor._torch())
    assert found == Finding(
        "card", GOOD, "0: RTX 3090, 20.0 of 24.0 GiB free, capability 8.6, bf16, driver 580.65"
    )


def test_an_older_card_is_told_to_use_fp16(card: SimpleNamespace):
    card.capability = (7, 5)
    assert "no bf16: use mixed_precision: fp16" in _only("card", doctor._torch()).text


@pytest.mark.parametrize(
    ("capability", "architectures", "state"),
    [
        ((8, 6), ["sm_80"], GOOD),
        ((6, 1), ["sm_75", "sm_80"], BAD),
        ((12, 0), ["sm_80", "sm_90"], BAD),
        ((12, 0), ["sm_80", "compute_90"], GOOD),
        ((9, 0), ["sm_90a"], GOOD),
    ],
)
def test_a_torch_without_code_for_the_card_is_bad(card, capability, architectures, state):
    card.capability, card.architectures = capability, architectures
    assert _only("card", doctor._torch()).state == state


def test_little_memory_and_little_disk_are_noted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * 2**30, total=4 * 2**30)
    )
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**30))
    assert doctor._memory()[0][:3] == ("memory", NOTE, "2.0 of 4.0 GiB are free")
    (disk,) = doctor._disk()
    assert disk.state == NOTE
    assert disk.text.startswith("1.0 GiB are free")


def test_an_8_bit_step_that_fails_is_noted_with_its_remedy():
    assert doctor._eight_bit() == [Finding("8-bit AdamW", NOTE, "an 8-bit step failed", "use adamw")]


def test_accelerate_s_own_configuration_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert "no configuration" in doctor._accelerate()[0].text
    (tmp_path / "accelerate").mkdir()
    lines = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_processes: 2\n"
    (tmp_path / "accelerate" / "default_config.yaml").write_text(lines, encoding="utf-8")
    assert "distributed_type MULTI_GPU, num_processes 2" in doctor._accelerate()[0].text


@pytest.mark.gpu
def test_sdpa_has_a_fast_kernel_on_a_real_card():
    assert doctor._sdpa_works("flash") or doctor._sdpa_works("mem_efficient")
    assert doctor._sdpa_works("math")
