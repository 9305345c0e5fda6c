from __future__ import annotations

import pytest
import torch
from optional import skip_without

from dreambooth.shared.settings import TrainingSettings
from dreambooth.trainer.optim.optimizer_table import TABLE
from dreambooth.trainer.optim.optimizers import ParameterGroup, build_optimizer, group_memory
from dreambooth.trainer.optim.rounding import StochasticRounding
from dreambooth.trainer.optim.tensor_steps import TensorSteps

CPU = torch.device("cpu")
SHAPES = ((64, 80), (4100,), (3, 5))


def made(name: str, dtype: torch.dtype = torch.float32):
    skip_without(name)
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    groups = [ParameterGroup("unet", weights[:2], 1e-2), ParameterGroup("text_encoder", weights[2:], 1e-3)]
    return weights, build_optimizer(TrainingSettings(optimizer=name), groups, CPU)


def gradients(step: int) -> list[torch.Tensor]:
    torch.manual_seed(100 + step)
    return [torch.randn(shape) for shape in SHAPES]


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.fused_backward])
def test_tensor_by_tensor_is_together_bit_for_bit_in_any_order(name):
    (ours, single), (theirs, whole) = made(name), made(name)
    steps = TensorSteps(single)
    for step in range(4):
        drawn = gradients(step)
        order = list(enumerate(steps.parameters))
        for number, (group, parameter) in order if step % 2 else reversed(order):
            steps.step(group, parameter, drawn[number].clone())
        steps.finish()
        for parameter, gradient in zip(theirs, drawn, strict=True):
            parameter.grad = gradient.clone()
        whole.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert all(parameter.grad is None for parameter in ours)
    for one, other in zip(single.param_groups, whole.param_groups, strict=True):
        assert group_memory(single, one) == group_memory(whole, other)
        assert len(one["params"]) == len(other["params"])


@pytest.mark.parametrize("name", ["adamw", "adafactor", "adamw8bit"])
def test_bfloat16_weights_are_stepped_in_float32_and_rounded(name):
    """Each is one of the neighbours of what float32 weights would have become."""
    (ours, single), (theirs, whole) = made(name, torch.bfloat16), made(name, torch.bfloat16)
    with torch.no_grad():
        for parameter in theirs:
            parameter.data = parameter.data.float()
    rounding = StochasticRounding(0, CPU)
    steps = TensorSteps(single, rounding)
    places = [parameter.data_ptr() for parameter in ours]
    rounding.begin(0)
    for number, (group, parameter) in enumerate(steps.parameters):
        steps.step(group, parameter, gradients(0)[number].to(torch.bfloat16))
    for parameter, gradient in zip(theirs, gradients(0), strict=True):
        parameter.grad = gradient.to(torch.bfloat16).float()
    whole.step()
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.bfloat16
        gap = other.abs() * 2.0**-7 + 1e-30
        assert ((one.float() - other).abs() <= gap).all()
        assert not torch.equal(one, other.to(torch.bfloat16)), "not to the nearest"
    assert [parameter.data_ptr() for parameter in ours] == places


def test_an_error_leaves_the_optimizer_whole():
    weights, optimizer = made("adamw")
    optimizer.step = lambda: (_ for _ in ()).throw(RuntimeError("no"))
    groups = optimizer.param_groups
    with pytest.raises(RuntimeError):
        TensorSteps(optimizer).step(0, weights[0], torch.ones(64, 80))
    assert optimizer.param_groups is groups and weights[0].grad is None
