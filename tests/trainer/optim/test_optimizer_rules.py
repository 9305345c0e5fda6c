from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from optional import skip_without

from dreambooth.shared.errors import InputError
from dreambooth.shared.settings import PriorSettings, ResultSettings, Settings, TrainingSettings
from dreambooth.trainer.optim import optimizer_class, optimizer_rules
from dreambooth.trainer.optim.optimizer_rules import (
    check_device,
    check_fused_backward,
    check_weights_dtype,
    notes_on,
)
from dreambooth.trainer.optim.optimizer_table import TABLE


def settings(name: str, **values) -> Settings:
    return Settings(training=replace(TrainingSettings(optimizer=name), **values))


def check_optimizer(given: Settings) -> None:
    skip_without(given.training.optimizer)
    optimizer_rules.check_optimizer(given)


@pytest.mark.parametrize("name", [*TABLE, "torch.optim.SGD"])
def test_every_optimizer_goes_with_the_defaults(name):
    check_optimizer(settings(name))


def test_the_library_is_asked_for_before_anything_else(monkeypatch):
    monkeypatch.setattr(optimizer_class, "is_installed", lambda module: False)
    with pytest.raises(InputError, match="schedulefree, which is not installed"):
        optimizer_rules.check_optimizer(settings("adamwschedulefree", lr_scheduler="cosine"))


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"lr_scheduler": "cosine"}, "lr_scheduler"),
        ({"lr_scheduler": "constant_with_warmup"}, "lr_scheduler"),
        ({"lr_warmup_steps": 10}, "lr_warmup_steps"),
        ({"use_ema": True}, "use_ema"),
        ({"adam_beta1": 0.0}, "adam_beta1"),
    ],
)
def test_what_a_schedule_free_optimizer_takes_the_place_of_is_refused_with_both_names(values, where):
    with pytest.raises(InputError) as refused:
        check_optimizer(settings("adamwschedulefree", **values))
    assert refused.value.where == where
    assert "adamwschedulefree" in refused.value.what and where in refused.value.what
    check_optimizer(settings("adamw", **values))


def test_its_own_warm_up_is_an_argument():
    check_optimizer(settings("adamwschedulefree", optimizer_args={"warmup_steps": "10"}))


@pytest.mark.parametrize("name", ["prodigy", "dadaptadam"])
def test_a_rate_that_is_found_is_one_for_all(name):
    with pytest.raises(InputError) as refused:
        check_optimizer(settings(name, learning_rate=1.0, text_encoder_learning_rate=0.5))
    assert refused.value.where == "text_encoder_learning_rate"
    assert name in refused.value.what and "(0.5)" in refused.value.what
    for values in (
        {"text_encoder_learning_rate": 1.0},
        {},
        {"text_encoder_learning_rate": 0.5, "train_text_encoder": False},
    ):
        check_optimizer(settings(name, learning_rate=1.0, **values))
    check_optimizer(settings("adamw", learning_rate=1.0, text_encoder_learning_rate=0.5))


def test_arguments_are_tried_before_the_start():
    with pytest.raises(InputError) as refused:
        check_optimizer(settings("came", optimizer_args={"betas": "2, 2, 2"}))
    assert refused.value.where == "optimizer_args" and "CAME refuses" in refused.value.what


@pytest.mark.parametrize(
    ("values", "precision", "processes", "said"),
    [
        ({"optimizer": "prodigy"}, "bf16", 1, "prodigy"),
        ({"optimizer": "adamwschedulefree"}, "no", 1, "adamwschedulefree"),
        ({"optimizer": "torch.optim.SGD"}, "no", 1, "torch.optim.SGD"),
        ({"gradient_accumulation_steps": 2}, "bf16", 1, "gradient_accumulation_steps 2"),
        ({"train_batch_size": 2, "forward_batch_size": 3}, "bf16", 1, "forward_batch_size 3"),
        ({}, "fp16", 1, "mixed_precision fp16"),
        ({}, "bf16", 2, "2 processes"),
    ],
)
def test_what_needs_the_gradients_that_are_dropped_is_refused_with_both_names(
    values, precision, processes, said
):
    training = replace(TrainingSettings(fused_backward="yes"), **values)
    with pytest.raises(InputError) as refused:
        check_fused_backward(Settings(training=training), precision, processes)
    assert refused.value.where == "fused_backward"
    assert said in refused.value.what and "fused_backward" in refused.value.what
    without = replace(training, fused_backward="no")
    check_fused_backward(Settings(training=without), precision, processes)


@pytest.mark.parametrize(("weight", "most"), [(1.0, 4), (0.0, 2), (1.0, 0)])
def test_a_batch_that_is_not_cut_goes_with_fused_backward(weight, most):
    training = TrainingSettings(fused_backward="yes", train_batch_size=2, forward_batch_size=most)
    check_fused_backward(
        Settings(training=training, prior=PriorSettings(prior_loss_weight=weight)), "bf16", 1
    )


@pytest.mark.parametrize(
    ("values", "kind", "precision", "said"),
    [
        ({}, "checkpoint", "no", "mixed_precision is no"),
        ({}, "checkpoint", "fp16", "mixed_precision is fp16"),
        ({"optimizer": "prodigy"}, "checkpoint", "bf16", "optimizer prodigy"),
        ({}, "lora", "bf16", "output_kind lora"),
    ],
)
def test_bfloat16_weights_are_refused_with_what_they_do_not_go_with(values, kind, precision, said):
    training = replace(TrainingSettings(weights_dtype="bfloat16"), **values)
    chosen = Settings(training=training, result=ResultSettings(output_kind=kind))
    with pytest.raises(InputError) as refused:
        check_weights_dtype(chosen, precision)
    assert refused.value.where == "weights_dtype"
    assert said in refused.value.what and "weights_dtype is bfloat16" in refused.value.what
    check_weights_dtype(Settings(training=TrainingSettings(weights_dtype="bfloat16")), "bf16")
    check_weights_dtype(replace(chosen, training=replace(training, weights_dtype="float32")), precision)


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.fused_backward])
def test_it_goes_with_every_optimizer_that_takes_tensors_one_by_one(name):
    check_fused_backward(settings(name, fused_backward="yes"), "bf16", 1)


def test_that_clipping_is_another_then_is_said():
    (note,) = notes_on(settings("adamw", fused_backward="yes"))
    assert "its usual share of max_grad_norm (1)" in note
    assert notes_on(settings("adamw", fused_backward="yes", max_grad_norm=0.0)) == []


@pytest.mark.parametrize(
    ("name", "rate", "said"), [("prodigy", 2e-6, True), ("prodigy", 1.0, False), ("adamw", 2e-6, False)]
)
def test_a_rate_that_is_too_small_for_a_factor_is_said(name, rate, said):
    notes = notes_on(settings(name, learning_rate=rate))
    assert any("1 is meant" in note for note in notes) is said
    assert not said or "2e-06" in notes[0]


def test_of_a_class_that_nobody_tried_it_is_said_what_is_not_known():
    (note,) = notes_on(settings("torch.optim.SGD", learning_rate=1e-3))
    assert "torch.optim.SGD" in note and "not known" in note


@pytest.mark.parametrize(
    ("name", "device", "works"),
    [
        ("pagedadamw8bit", "cpu", False),
        ("pagedadamw8bit", "mps", False),
        ("pagedadamw8bit", "cuda", True),
        ("adamw8bit", "mps", False),
        ("adamw8bit", "cpu", True),
        ("lion8bit", "cuda", True),
        ("adafactor", "mps", True),
        ("torch.optim.SGD", "mps", True),
    ],
)
def test_an_optimizer_is_refused_on_a_device_that_it_cannot_run_on(name, device, works):
    if works:
        check_device(name, torch.device(device))
        return
    with pytest.raises(InputError) as refused:
        check_device(name, torch.device(device))
    assert refused.value.where == "optimizer"
    assert TABLE[name].title in refused.value.what
    assert {"cpu": "the processor", "mps": "an Apple GPU"}[device] in refused.value.what
    assert "adamw" in refused.value.remedy and name not in refused.value.remedy.split()
