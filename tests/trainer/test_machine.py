"""What is asked of the machine by name and cannot be had is an error; what is left to it is chosen and said."""

from __future__ import annotations

import pytest
import torch

from dreambooth.shared.config import settings_from
from dreambooth.shared.errors import InputError
from dreambooth.trainer import arithmetic, machine
from dreambooth.trainer.models import attention


def settings(**values: str):
    return settings_from(values, where="test")


@pytest.fixture
def device(monkeypatch):
    """Makes the machine one with this kind of device."""

    def become(kind: str, *, bf16: bool = True, title: str = "A Card") -> None:
        monkeypatch.setattr(machine, "choose_device", lambda: torch.device(kind))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: title)

    return become


@pytest.mark.parametrize(
    ("kind", "bf16", "precision", "dtype"),
    [
        ("cpu", True, "no", torch.float32),
        ("mps", False, "no", torch.float32),
        ("cuda", True, "bf16", torch.bfloat16),
        ("cuda", False, "fp16", torch.float16),
    ],
)
def test_auto_takes_what_can_be_had_and_says_so(kind, bf16, precision, dtype, device) -> None:
    device(kind, bf16=bf16)
    found = machine.examine(settings())
    assert (found.mixed_precision, found.compute_dtype, found.attention) == (precision, dtype, "sdpa")
    assert any("CPU" in note if kind == "cpu" else precision in note for note in found.notes)


@pytest.mark.parametrize(
    ("kind", "bf16", "asked", "remedy"),
    [
        ("cpu", True, "fp16", "bf16"),
        ("mps", False, "fp16", "auto"),
        ("mps", False, "bf16", "fp16"),
        ("cuda", False, "bf16", "fp16"),
    ],
)
def test_a_precision_that_cannot_be_had_is_an_error_before_the_start(
    kind, bf16, asked, remedy, device
) -> None:
    device(kind, bf16=bf16)
    with pytest.raises(InputError) as refused:
        machine.examine(settings(mixed_precision=asked))
    assert refused.value.where == "mixed_precision" and remedy in refused.value.remedy


@pytest.mark.parametrize(
    ("kind", "asked"), [("cpu", "bf16"), ("cpu", "no"), ("cuda", "fp16"), ("cuda", "no")]
)
def test_a_precision_that_is_named_and_can_be_had_is_taken(kind, asked, device) -> None:
    device(kind)
    found = machine.examine(settings(mixed_precision=asked))
    assert found.mixed_precision == asked
    assert not any("mixed_precision" in note for note in found.notes)


@pytest.mark.parametrize(
    ("kind", "asked", "capable", "pictures"),
    [
        ("cpu", "auto", True, "bf16"),
        ("cpu", "auto", False, "no"),
        ("cpu", "no", True, "no"),
        ("cuda", "auto", False, "bf16"),
    ],
)
def test_class_images_are_drawn_in_bf16_where_a_processor_has_it_and_nobody_said_no(
    kind, asked, capable, pictures, device, monkeypatch
) -> None:
    device(kind)
    monkeypatch.setattr(arithmetic, "multiplies_bf16", lambda: capable)
    found = machine.examine(settings(mixed_precision=asked))
    assert (found.pictures, found.picture_dtype) == (pictures, machine.PRECISIONS[pictures])


def test_what_is_multiplied_as_tf32_is_said(device) -> None:
    device("cuda")
    assert any("TF32" in note for note in machine.examine(settings()).notes)
    assert not any("TF32" in note for note in machine.examine(settings(mixed_precision="no")).notes)


def test_xformers_is_refused_where_it_is_not_or_cannot_be(device, monkeypatch) -> None:
    device("cuda")
    monkeypatch.setattr(attention, "is_installed", lambda: False)
    with pytest.raises(InputError, match="not installed"):
        machine.examine(settings(attention="xformers"))
    monkeypatch.setattr(attention, "is_installed", lambda: True)
    monkeypatch.setattr(attention, "xformers_fault", lambda: "it was built for another torch")
    with pytest.raises(InputError, match="xformers does not work here: it was built for another"):
        machine.examine(settings(attention="xformers"))
    monkeypatch.setattr(attention, "xformers_fault", lambda: "")
    assert machine.examine(settings(attention="xformers")).attention == "xformers"
    device("cpu")
    with pytest.raises(InputError, match="NVIDIA"):
        machine.examine(settings(attention="xformers"))


def test_an_optimizer_that_cannot_run_on_the_device_is_refused(device) -> None:
    device("cpu")
    with pytest.raises(InputError, match=r"PagedAdamW8bit .* the processor"):
        machine.examine(settings(optimizer="PagedAdamW8bit"))
    assert machine.examine(settings(optimizer="adamw8bit")).mixed_precision == "no"


def test_the_device_is_the_card_if_there_is_one(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert machine.choose_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert machine.choose_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert machine.choose_device() == torch.device("cuda", 1)
