from __future__ import annotations

import json

import pytest
import torch

from dreambooth.shared.errors import InputError
from dreambooth.trainer import eightbit
from dreambooth.trainer.eightbit import Verdict, instead
from dreambooth.trainer.eightbit.instead import alternatives, check_8bit
from dreambooth.trainer.optim.optimizer_table import kind_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BROKEN = Verdict(
    False, "its library does not load", f"install another; or {eightbit.OTHERWISE}", cause="mismatch"
)


def kept(name: str) -> float:
    """Of one layer of 1.28 billion weights."""
    return kind_of(name).bytes_of((32_000, 40_000))


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch):
    """What each class's real step gives; asked for are (class, device)."""
    given: dict[str, Verdict] = {}
    asked: list[tuple[str, str]] = []

    def examine(target=eightbit.ADAMW, *, device="auto"):
        asked.append((target, device))
        return given.get(target.partition(".")[0], BROKEN)

    monkeypatch.setattr(eightbit, "examine", examine)
    monkeypatch.setattr(instead, "is_installed", lambda name: "torchao" in given)
    return given, asked


def test_what_keeps_32_bits_needs_no_proof(verdicts):
    assert check_8bit("adamw", CPU, kept) is None and check_8bit("torch.optim.SGD", CPU, kept) is None
    assert verdicts[1] == []


@pytest.mark.parametrize(
    ("name", "made_of"),
    [("adamw8bit", "AdamW8bit"), ("lion8bit", "Lion8bit"), ("pagedadamw8bit", "PagedAdamW8bit")],
)
def test_the_very_class_that_was_chosen_is_proved_on_the_very_device(verdicts, name, made_of):
    given, asked = verdicts
    given["bitsandbytes"] = Verdict(True, "works")
    assert check_8bit(name, CUDA, kept) == Verdict(True, "works")
    assert asked == [(f"bitsandbytes.optim.{made_of}", "cuda")]


def test_when_it_does_not_work_the_choice_is_among_what_does_with_its_cost(verdicts):
    with pytest.raises(InputError) as refused:
        check_8bit("adamw8bit", CUDA, kept)
    error = refused.value
    assert error.where == "optimizer" and "its library does not load" in error.what
    assert error.remedy.startswith("install another; or choose another optimizer: ")
    assert "adamw (keeps 10.24 GB of this model)" in error.remedy
    assert "torchao.optim.AdamW8bit (keeps 2.6 GB of this model, after " in error.remedy
    told = error.more["eight_bit"]
    assert (told["works"], told["cause"], told["text"]) == (False, "mismatch", BROKEN.text)
    assert [other["optimizer"] for other in told["alternatives"]] == [
        "adafactor",
        "adamw",
        "torchao.optim.AdamW8bit",
    ]
    assert json.loads(json.dumps(error.more)) == error.more


def test_torchao_is_offered_without_conditions_only_if_its_own_step_works(verdicts):
    given, asked = verdicts
    given["torchao"] = Verdict(True, "works")
    *_, last = alternatives("adamw8bit", CPU, kept)
    assert (last["optimizer"], last["install"]) == ("torchao.optim.AdamW8bit", "")
    assert asked == [("torchao.optim.AdamW8bit", "cpu")]
    given["torchao"] = BROKEN
    assert [other["optimizer"] for other in alternatives("adamw8bit", CPU, kept)] == ["adafactor", "adamw"]


def test_torchao_is_no_alternative_to_itself_and_none_on_an_apple_gpu(verdicts):
    for name, device in (("torchao.optim.AdamW8bit", CPU), ("adamw8bit", torch.device("mps"))):
        assert [other["optimizer"] for other in alternatives(name, device, kept)] == ["adafactor", "adamw"]


def test_where_only_another_optimizer_helps_that_is_all_that_is_said(verdicts):
    verdicts[0]["bitsandbytes"] = Verdict(False, "no", eightbit.OTHERWISE)
    with pytest.raises(InputError) as refused:
        check_8bit("adamw8bit", CPU, kept)
    assert refused.value.remedy.startswith("choose another optimizer: adafactor")
