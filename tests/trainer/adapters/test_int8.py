"""A base in 8 bit: how far it is from the full one, and that an adapter on it is trained as on any other."""

from __future__ import annotations

import copy
import json

import models
import pytest
import tiny
import tiny_sdxl
import torch
from safetensors.torch import load_file
from tiny import config, dreambooth
from torch import nn
from watching import events, is_finite, run_in

from dreambooth.shared.config import load_settings
from dreambooth.shared.errors import InputError
from dreambooth.shared.settings import ModelSettings, ResultSettings, Settings
from dreambooth.trainer.adapters.attached import attach
from dreambooth.trainer.adapters.kinds import KINDS
from dreambooth.trainer.adapters.layers import shape_of
from dreambooth.trainer.models.convert import load_model
from dreambooth.trainer.models.int8 import (
    NOTE,
    Int8Conv2d,
    Int8Linear,
    dequantised,
    int8_weights,
    quantise,
    quantised,
    stored_dtype,
    with_base_precision,
)
from dreambooth.trainer.planning import plan

CPU = torch.device("cpu")
PLAIN = {
    "linear": lambda: nn.Linear(48, 40),
    "linear without bias": lambda: nn.Linear(48, 40, bias=False),
    "convolution": lambda: nn.Conv2d(16, 24, 3, 2, 1),
    "convolution of one pixel": lambda: nn.Conv2d(16, 24, 1),
}


def both(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """A layer in 8 bit, and a plain one with the very weights that it computes with."""
    torch.manual_seed(0)
    plain = PLAIN[name]().to(dtype).requires_grad_(False)
    made = (Int8Linear if isinstance(plain, nn.Linear) else Int8Conv2d)(plain, dtype, CPU)
    plain.weight.copy_(made.weight)
    return made, plain


def fed(layer: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    shape = (3, 5, 48) if isinstance(layer, nn.Linear) else (2, 16, 9, 9)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


@pytest.mark.parametrize("shape", [(7, 30), (5, 4, 3, 3)])
def test_a_weight_differs_by_at_most_a_254th_of_its_channels_largest(shape) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3)).half()
    weight[2] = 0
    codes, scale = quantised(weight)
    assert codes.dtype == torch.int8 and codes.shape == weight.shape
    found = dequantised(codes, scale, torch.float32)
    largest = weight.float().abs().flatten(1).amax(1)
    error = (found - weight.float()).abs().flatten(1).amax(1)
    assert (error <= largest / 254 * 1.00001).all() and error[0] > largest[0] / 400
    assert (codes.flatten(1).abs().amax(1) == torch.where(largest > 0, 127, 0)).all()
    assert not found[2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PLAIN)
def test_a_layer_and_its_gradient_are_those_of_a_plain_one_with_its_weights(name, dtype) -> None:
    made, plain = both(name, dtype)
    found = []
    for layer in (made, plain):
        x = fed(plain, dtype)
        result = layer(x)
        result.float().square().sum().backward()
        found.append((result.detach(), x.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=1e-6 if dtype == torch.float32 else 1e-2)
    assert shape_of(made) == tuple(made.weight.shape) == tuple(plain.weight.shape)


@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_under_autocast_what_flows_is_narrow_and_the_gradient_wide(name) -> None:
    made, plain = both(name)
    found = []
    for layer in (made, plain):
        x = fed(plain)
        with torch.autocast("cpu", torch.bfloat16):
            result = layer(x)
        assert result.dtype == torch.bfloat16
        result.float().square().sum().backward()
        assert x.grad.dtype == torch.float32
        found.append(x.grad)
    torch.testing.assert_close(*found, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("name", PLAIN)
def test_nothing_is_kept_for_the_gradient_but_codes_and_scales(name) -> None:
    made, plain = both(name)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        made(fed(plain))
    assert {tensor.data_ptr() for tensor in kept} == {made.codes.data_ptr(), made.scale.data_ptr()}


def test_scales_stay_wide_whatever_the_model_is_cast_to() -> None:
    made, _ = both("linear")
    scale = made.scale.clone()
    nn.Sequential(made).to(torch.bfloat16)
    assert made.bias.dtype == torch.bfloat16 and made.codes.dtype == torch.int8
    assert torch.equal(made.scale, scale)


@pytest.mark.parametrize("base", [tiny.base, tiny_sdxl.base], ids=["sd1", "sdxl"])
def test_nearly_all_of_a_model_is_in_8_bit_and_the_ways_in_and_out_are_not(base) -> None:
    model = load_model(base(), components=("unet", "text_encoder"), dtype=torch.float16)
    for name, component in model.components.items():
        before = sum(parameter.numel() for parameter in component.parameters())
        quantise(component, torch.float32, CPU)
        codes = {path: p for path, p in component.named_parameters() if p.dtype == torch.int8}
        assert sum(p.numel() for p in codes.values()) == int8_weights(model, name)
        scales = sum(p.numel() for path, p in component.named_parameters() if path.endswith(".scale"))
        assert sum(parameter.numel() for parameter in component.parameters()) == before + scales
        assert not any(
            path.startswith(("conv_in", "conv_out", "time_embedding", "embeddings")) for path in codes
        )
        assert next(component.parameters()).dtype == torch.float32, "what is asked for the model's precision"
        assert not any(p.requires_grad for p in component.parameters())
        assert stored_dtype(model, name) == torch.float16
    assert int8_weights(model, "unet") > 0.6 * sum(
        tensor.numel()
        for name, tensor in model.components["unet"].named_parameters()
        if not name.endswith("scale")
    )


@pytest.mark.parametrize(("family", "kind"), [*(("sd1", kind) for kind in KINDS), ("sdxl", "lora")])
def test_an_adapter_on_it_is_one_on_the_base_that_it_computes_with(family, kind, tmp_path) -> None:
    made, plain = (load_model(models.base(tmp_path, family)) for _ in range(2))
    for name in models.components(made):
        quantise(made.components[name], torch.float32, CPU)
        layers = dict(made.components[name].named_modules())
        for path, layer in plain.components[name].named_modules():
            if isinstance(layers[path], (Int8Linear, Int8Conv2d)):
                layer.weight.data = layers[path].weight
    full = models.plain(family)
    predictions, gradients = [], []
    for model in (made, plain):
        values = {"adapter": kind, "output_kind": KINDS[kind].result, "target_blocks": "all"}
        attached = attach(model.components, models.planned(model, **values), 0)
        torch.testing.assert_close(models.prediction(model), full, atol=0.05, rtol=0.05)
        models.learned(attached, model)
        predictions.append(models.prediction(model))
        gradients.append(gradient_of(model))
    torch.testing.assert_close(*predictions, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


def gradient_of(model) -> torch.Tensor:
    unet = model.components["unet"]
    with torch.enable_grad():
        models.prediction.__wrapped__(model).square().mean().backward()
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    return torch.cat([parameter.grad.flatten() for parameter in trained])


def lora(folder, **values):
    given = {"output_kind": "lora", "rank": 4, "learning_rate": 1e-2, "base_precision": "int8", **values}
    return config(folder, **given)


def test_a_run_on_it_writes_the_usual_file_and_goes_on_from_one(tmp_path) -> None:
    given = {"num_validation_images": 1, "output_dtype": "float32"}
    assert dreambooth("train", lora(tmp_path, adapter="dora", prior="base_prediction", **given)) == 0
    written = tmp_path / "out" / "sks.safetensors"
    found = run_in(tmp_path)
    (planned,) = events(found, "plan")
    assert NOTE in planned["notes"]
    assert is_finite(written) and not any("codes" in name for name in load_file(written))
    assert not events(found, "warning"), "its samples are made too"
    assert [event["step"] for event in events(found, "sample")] == [0, 4]
    change = json.loads(found.result.read_bytes())["weight_change"]
    assert all(part["relative"] > 1e-4 for part in change.values())
    again = {
        "output_name": "more",
        "init_from": str(written),
        "gradient_checkpointing": "yes",
        "max_train_steps": 1,
    }
    assert dreambooth("train", lora(tmp_path, prior_loss_weight=0, adapter="dora", **again)) == 0
    assert load_file(tmp_path / "out" / "more.safetensors").keys() == load_file(written).keys()


def test_its_memory_is_counted(tmp_path) -> None:
    plans = {
        asked: plan.make_plan(load_settings(lora(tmp_path, base_precision=asked)))
        for asked in ("full", "int8")
    }
    training = {
        asked: {
            line.text: line.bytes
            for phase in made.memory.phases
            if phase.name == "training"
            for line in phase.lines
        }
        for asked, made in plans.items()
    }
    narrow = int8_weights(plans["int8"].base, "unet")
    assert training["full"]["UNet, float32"] - training["int8"]["UNet, int8"] == 3 * narrow > 0


def test_a_model_that_is_trained_whole_is_refused(tmp_path, capsys) -> None:
    whole = Settings(
        model=ModelSettings(base_precision="int8"), result=ResultSettings(output_kind="checkpoint")
    )
    with pytest.raises(InputError, match="whole model") as caught:
        with_base_precision(whole)
    assert caught.value.where == "base_precision" and "output_kind: lora" in caught.value.remedy
    assert with_base_precision(copy.deepcopy(Settings())).model.base_precision == "full"
    assert dreambooth("plan", config(tmp_path, base_precision="int8")) == 2
    assert "base_precision" in capsys.readouterr().err
    assert list(tiny.tree(tmp_path)) == ["config.yaml"]
