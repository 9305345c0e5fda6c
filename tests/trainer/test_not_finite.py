"""What is said of a NaN: the likely cause, and what can be done about it."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
from tiny import config

from dreambooth.shared.config import load_settings
from dreambooth.shared.errors import FailsAgain, InputError
from dreambooth.shared.runfolder import create_run, free_name
from dreambooth.trainer.engine import NotFinite
from dreambooth.trainer.models.convert import load_model
from dreambooth.trainer.not_finite import broken_weight, explained
from dreambooth.trainer.planning.plan import Plan, make_plan


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    return make_plan(load_settings(config(tmp_path_factory.mktemp("plan"), prior_loss_weight=0)))


def with_precision(plan: Plan, precision: str) -> Plan:
    return dataclasses.replace(plan, machine=dataclasses.replace(plan.machine, mixed_precision=precision))


@pytest.mark.parametrize(
    ("precision", "advised"),
    [("fp16", "mixed_precision: bf16 or no"), ("bf16", "mixed_precision: no"), ("no", "")],
)
def test_after_the_first_step_the_rate_is_to_be_lower_and_no_precision_is_advised_that_is_used(
    precision, advised, plan
) -> None:
    found = explained(NotFinite(1), with_precision(plan, precision))
    assert isinstance(found, FailsAgain) and found.change == "learning_rate=0.0001"
    assert "a lower learning_rate" in found.remedy
    assert advised in found.remedy and ("mixed_precision" in found.remedy) == bool(advised)


@pytest.mark.parametrize(("precision", "change"), [("bf16", "mixed_precision=no"), ("no", "model=FILE")])
def test_a_first_step_of_a_sound_model_is_no_matter_of_the_rate(precision, change, plan) -> None:
    found = explained(NotFinite(0), with_precision(plan, precision))
    assert isinstance(found, FailsAgain) and found.change == change and "learning_rate" not in found.remedy
    assert "before anything was learned" in found.what and found.where == str(tiny.base())


def test_the_adapter_that_a_run_goes_on_from_is_named_where_the_model_is_sound(plan) -> None:
    adapters = dataclasses.replace(plan.settings.adapters, init_from="strong.safetensors")
    started = dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, adapters=adapters))
    found = explained(NotFinite(0), started)
    assert isinstance(found, FailsAgain) and found.change == "init_from="
    assert found.where == "strong.safetensors" and found.setting == "init_from"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.diffusion_model.out.2.bias", torch.inf),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", torch.nan),
    ],
)
def test_a_broken_model_is_named_by_its_tensor(name, value, plan, tmp_path) -> None:
    tensors = tiny.tensors()
    tensors[name][-1] = value
    base = load_model(tiny.save(tensors, tmp_path / "a.safetensors"), components=())
    assert broken_weight(base) == name and broken_weight(plan.base) == ""
    found = explained(NotFinite(0), dataclasses.replace(plan, base=base))
    assert isinstance(found, InputError) and name in found.what and found.setting == "model"
    assert isinstance(explained(NotFinite(1), dataclasses.replace(plan, base=base)), FailsAgain)


def test_a_free_name_is_the_next_number_that_no_run_has(tmp_path) -> None:
    run = create_run(tmp_path, "cat", "")
    assert free_name(run) == "cat-2"
    second = create_run(tmp_path, "cat", "")
    assert second.name == "cat-2" and free_name(run) == "cat-3" == free_name(second)
