from __future__ import annotations

import math

import pytest
import torch
from optional import skip_without

from dreambooth.shared.settings import TrainingSettings
from dreambooth.trainer.optimizer_table import TABLE
from dreambooth.trainer.optimizers import ParameterGroup, Stepper, build_optimizer, group_memory

CPU = torch.device("cpu")
ABLE = [name for name, row in TABLE.items() if row.fused_backward]


def network() -> torch.nn.Module:
    """Two layers that bitsandbytes keeps in 8 bits, their biases, and one that is used twice."""
    torch.manual_seed(0)
    return torch.nn.ModuleDict(
        {
            "first": torch.nn.Linear(24, 200),
            "twice": torch.nn.Linear(200, 200),
            "last": torch.nn.Linear(200, 3),
        }
    )


def loss_of(net: torch.nn.Module, step: int) -> torch.Tensor:
    torch.manual_seed(100 + step)
    hidden = torch.tanh(net["first"](torch.randn(6, 24)))
    for _ in range(2):
        hidden = torch.tanh(net["twice"](hidden))
    return net["last"](hidden).square().mean()


def stepper(net: torch.nn.Module, settings: TrainingSettings, *, fused: bool, norm: float = 0.0) -> Stepper:
    groups = [
        ParameterGroup("unet", [*net["first"].parameters(), *net["twice"].parameters()], 1e-2),
        ParameterGroup("text_encoder", list(net["last"].parameters()), 1e-3),
    ]
    skip_without(settings.optimizer)
    return Stepper(build_optimizer(settings, groups, CPU), norm, None, fused_backward=fused)


def train(net: torch.nn.Module, stepping: Stepper, steps: int = 4) -> list[float]:
    losses = []
    for step in range(steps):
        stepping.set_rates(lambda rate, step=step: 1.0 - step / 10)
        loss = loss_of(net, step)
        loss.backward()
        losses.append(loss.item())
        assert stepping.step(loss.detach())
    return losses


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", ABLE)
def test_without_clipping_the_bits_are_those_of_a_step_after_the_backward_pass(name):
    settings = TrainingSettings(optimizer=name)
    nets = [network(), network()]
    steppers = [stepper(net, settings, fused=fused) for net, fused in zip(nets, (True, False), strict=True)]
    losses = [train(net, stepping) for net, stepping in zip(nets, steppers, strict=True)]
    assert losses[0] == losses[1]
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)
    memories = [[group_memory(s.optimizer, group) for group in s.optimizer.param_groups] for s in steppers]
    assert memories[0] == memories[1]


def test_never_more_than_one_gradient_is_there(monkeypatch):
    net = network()
    stepping = stepper(net, TrainingSettings(), fused=True)
    there = []
    step = stepping.optimizer.step
    stepping.optimizer.step = lambda: (
        there.append(sum(p.grad is not None for p in net.parameters())) or step()
    )
    loss_of(net, 0).backward()
    assert there == [1] * len(list(net.parameters()))
    assert all(parameter.grad is None for parameter in net.parameters())


def test_each_tensor_is_clipped_by_itself():
    """Without momentum a step is the gradient: each tensor's is cut to the norm, whatever the others' are."""
    net, plain = network(), network()
    settings = TrainingSettings(optimizer="torch.optim.SGD")
    before = [parameter.detach().clone() for parameter in net.parameters()]
    stepping = stepper(net, settings, fused=True, norm=0.05)
    loss = loss_of(net, 0)
    loss.backward()
    stepping.step(loss.detach())
    loss_of(plain, 0).backward()
    rates = [1e-2] * 4 + [1e-3] * 2
    cut = 0
    for parameter, start, reference, rate in zip(
        net.parameters(), before, plain.parameters(), rates, strict=True
    ):
        norm = float(reference.grad.norm())
        cut += norm > 0.05
        wanted = start - rate * reference.grad * min(1.0, 0.05 / norm)
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-5, atol=1e-8)
    assert 0 < cut < 6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_what_is_not_finite_never_reaches_the_weights_and_is_told(bad, norm):
    net = network()
    stepping = stepper(net, TrainingSettings(), fused=True, norm=norm)
    train(net, stepping, steps=1)
    assert float(stepping.failed) == 0
    (loss_of(net, 1) * bad).backward()
    stepping.step(torch.tensor(1.0))
    assert float(stepping.failed) == 1
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())
    train(net, stepping, steps=1)
    assert float(stepping.failed) == 1, "it stays told"


def test_a_loss_that_is_not_finite_is_told_too():
    net = network()
    stepping = stepper(net, TrainingSettings(), fused=True)
    loss_of(net, 0).backward()
    stepping.step(torch.tensor(math.nan))
    assert float(stepping.failed) == 1
