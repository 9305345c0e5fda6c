"""The parts of a training as a plan has them built."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dreambooth.shared.settings import CaptionSettings, ImageSettings, Settings, TrainingSettings
from dreambooth.trainer import arithmetic
from dreambooth.trainer.assembly import layout, rest, rest_later, set_up_arithmetic
from dreambooth.trainer.families import FAMILIES


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled()
    floats = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.use_deterministic_algorithms(before)
    torch.set_float32_matmul_precision(floats[0])
    torch.backends.cudnn.allow_tf32 = floats[1]


def _plan(device: str = "cpu", compute: torch.dtype = torch.float32, adapter: object = None, **training):
    machine = SimpleNamespace(device=torch.device(device), compute_dtype=compute)
    settings = Settings(training=TrainingSettings(**training))
    return SimpleNamespace(settings=settings, machine=machine, adapter=adapter)


@pytest.mark.parametrize("asked", [True, False])
def test_deterministic_kernels_are_used_where_the_setting_asks_for_them(asked):
    torch.use_deterministic_algorithms(False)
    set_up_arithmetic(_plan(deterministic=asked))
    assert torch.are_deterministic_algorithms_enabled() is asked


@pytest.mark.parametrize(
    ("device", "compute", "precision"),
    [
        ("cuda", torch.bfloat16, "high"),
        ("cuda", torch.float32, "highest"),
        ("cpu", torch.bfloat16, "highest"),
    ],
)
def test_float32_is_multiplied_as_tf32_beside_narrower_numbers_on_a_card(device, compute, precision):
    set_up_arithmetic(_plan(device, compute))
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 is (precision == "high")


@pytest.mark.parametrize(
    ("device", "compute", "adapter", "optimizer", "turned"),
    [
        ("cuda", torch.bfloat16, None, "adamw", True),
        ("cuda", torch.bfloat16, None, "adamw8bit", False),
        ("cuda", torch.bfloat16, "a LoRA", "adamw8bit", True),
        ("cuda", torch.float32, None, "adamw", False),
        ("cpu", torch.bfloat16, None, "adamw", False),
    ],
)
def test_channels_come_last_on_a_card_unless_a_saved_state_could_not_be_put_back_in_order(
    device, compute, adapter, optimizer, turned, monkeypatch
):
    monkeypatch.setattr(arithmetic, "steps_any_order", lambda: True)
    found = layout(_plan(device, compute, adapter, optimizer=optimizer))
    assert found is (torch.channels_last if turned else torch.preserve_format)


def test_an_older_torch_s_fused_step_gets_whole_models_in_the_usual_order(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu121")
    assert layout(_plan("cuda", torch.bfloat16)) is torch.preserve_format
    assert layout(_plan("cuda", torch.bfloat16, "a LoRA")) is torch.channels_last
    monkeypatch.setattr(torch, "__version__", "2.6.0")
    assert layout(_plan("cuda", torch.bfloat16)) is torch.channels_last


def test_what_the_processor_is_asked_for_bf16_may_be_missing(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not arithmetic.multiplies_bf16()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert arithmetic.multiplies_bf16()


class _Module(torch.nn.Module):
    """Notes where it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def to(self, device: str) -> None:
        self.sent.append(device)


def _sent(act, family: str = "sdxl", **values) -> list[str]:
    """The components that `act` sends to the computer's memory."""
    names = FAMILIES[family].components
    components = {name: _Module() for name in names}
    model = SimpleNamespace(components=components, identified=SimpleNamespace(family=FAMILIES[family]))
    plan = SimpleNamespace(
        settings=Settings(
            training=TrainingSettings(**values.pop("training", {})),
            images=ImageSettings(**values.pop("images", {})),
            captions=CaptionSettings(**values.pop("captions", {})),
        ),
        **{"trains_text": False, "processes": 1, **values},
    )
    found = act(plan, model)
    if found is not None:
        found()
    assert all(module.sent in ([], ["cpu"]) for module in components.values())
    return [name for name, module in components.items() if module.sent]


def test_what_the_steps_do_not_need_leaves_the_card():
    texts = ["text_encoder", "text_encoder_2"]
    assert sorted(_sent(rest)) == sorted([*texts, "vae"])
    assert sorted(_sent(rest, "sd1")) == ["text_encoder", "vae"]
    assert _sent(rest, trains_text=True) == ["vae"]
    assert _sent(rest, captions={"shuffle_tags": True}) == ["vae"]
    assert sorted(_sent(rest, images={"cache_latents": False})) == texts


def test_text_encoders_that_have_stopped_leave_it_too_unless_an_average_or_other_processes_want_them():
    texts = ["text_encoder", "text_encoder_2"]
    assert sorted(_sent(rest_later)) == texts
    assert _sent(rest_later, training={"use_ema": True}) == []
    assert _sent(rest_later, training={"optimizer": "adamwschedulefree"}) == []
    assert _sent(rest_later, processes=2) == []


def test_the_doctor_is_told_what_of_it_is_used(monkeypatch):
    card = torch.device("cuda")
    monkeypatch.setattr(arithmetic, "steps_any_order", lambda: False)
    assert arithmetic.summary(card, torch.bfloat16) == [
        "TF32 for what stays in float32",
        "convolutions with channels last (all but whole models)",
    ]
    assert arithmetic.summary(card, torch.float32) == []
    monkeypatch.setattr(arithmetic, "multiplies_bf16", lambda: True)
    assert arithmetic.summary(torch.device("cpu"), torch.float32) == ["class images are drawn in bf16"]
