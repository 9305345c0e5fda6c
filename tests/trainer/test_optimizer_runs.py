"""Optimizers in whole runs, as the command line drives them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from optional import skip_without
from safetensors.torch import load_file
from tiny import config, dreambooth
from watching import run_in

from dreambooth.trainer import eightbit
from dreambooth.trainer.eightbit import Verdict
from dreambooth.trainer.models.convert import load_model
from dreambooth.trainer.models.loading import canonical_state
from dreambooth.trainer.saving.checkpoint import load_state

UNET_ALONE = {"train_text_encoder": False, "prior_loss_weight": 0, "max_train_steps": 4}


def test_a_schedule_free_run_exports_its_average_in_the_middle_and_at_the_end(tmp_path: Path) -> None:
    skip_without("adamwschedulefree")
    settings = config(
        tmp_path, optimizer="adamwschedulefree", export_steps=2, checkpointing_steps=2, output_dtype="float32",
        learning_rate=1e-3, checkpoints_total_limit=2, **UNET_ALONE,
    )  # fmt: skip
    assert dreambooth("train", settings) == 0
    states = run_in(tmp_path).states
    for step, name in ((2, "sks-2"), (4, "sks")):
        state = load_state(states, step)
        exported = canonical_state(
            "unet", load_model(tmp_path / "out" / f"{name}.safetensors").components["unet"]
        )
        average, trained = state.averages["unet"], state.weights["unet"]
        assert all(torch.equal(exported[key], average[key]) for key in average)
        assert any(not torch.equal(trained[key], average[key]) for key in average)
        assert "unet.weights.safetensors" in {path.name for path in (states / f"step-{step}").iterdir()}
        assert load_file(states / f"step-{step}" / "unet.average.safetensors").keys() == average.keys()


def told(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out)


def test_the_plan_carries_the_verdict_on_an_8_bit_optimizer(tmp_path, monkeypatch, capsys) -> None:
    skip_without("adamw8bit")
    verdict = Verdict(True, "a real 8-bit step works", version="0.50.2", device="cpu")
    monkeypatch.setattr(eightbit, "examine", lambda *_, **__: verdict)
    settings = config(tmp_path, **UNET_ALONE)
    assert dreambooth("plan", settings, "optimizer=AdamW8bit", "--json") == 0
    plan = told(capsys)
    assert plan["eight_bit"] == verdict.as_json() and verdict.text in plan["notes"]
    assert dreambooth("plan", settings, "--json") == 0
    assert "eight_bit" not in told(capsys)


def test_where_it_does_not_work_the_plan_says_why_and_what_does(tmp_path, monkeypatch, capsys) -> None:
    verdict = Verdict(False, "an 8-bit step failed", "reinstall it; or something else", cause="no_binary")
    monkeypatch.setattr(eightbit, "examine", lambda *_, **__: verdict)
    settings = config(tmp_path, **UNET_ALONE)
    assert dreambooth("plan", settings, "optimizer=lion8bit", "--json") == 2
    answer = told(capsys)
    assert answer["error"]["where"] == "optimizer" and "an 8-bit step failed" in answer["error"]["text"]
    assert answer["eight_bit"]["cause"] == "no_binary" and not answer["eight_bit"]["works"]
    assert {"adamw", "adafactor"} <= {other["optimizer"] for other in answer["eight_bit"]["alternatives"]}


def test_arguments_of_an_8_bit_optimizer_are_tried_once_it_is_proved(tmp_path, monkeypatch, capsys) -> None:
    skip_without("adamw8bit")
    monkeypatch.setattr(eightbit, "examine", lambda *_, **__: Verdict(True, "works"))
    settings = config(tmp_path, **UNET_ALONE, optimizer="adamw8bit", optimizer_args={"momentum": "1"})
    assert dreambooth("plan", settings) == 2
    assert "AdamW8bit has no argument `momentum`" in capsys.readouterr().err
