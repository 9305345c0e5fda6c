from __future__ import annotations

import math

import pytest
import torch
from optional import skip_without

from dreambooth.shared.settings import TrainingSettings
from dreambooth.trainer.optim.optimizer_table import TABLE
from dreambooth.trainer.optim.optimizers import ParameterGroup, Stepper, build_optimizer, group_memory

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


def train_one(net: torch.nn.Module, stepping: Stepper, step: int) -> float:
    stepping.begin(step)
    loss = loss_of(net, step)
    loss.backward()
    assert stepping.step(loss.detach())
    return loss.item()


def train(net: torch.nn.Module, stepping: Stepper, steps: int = 4) -> list[float]:
    losses = []
    for step in range(steps):
        stepping.set_rates(lambda rate, step=step: 1.0 - step / 10)
        losses.append(train_one(net, stepping, step))
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


def clipped_by_hand(net: torch.nn.Module, most: float, steps: int) -> list[list[float]]:
    """Trains with plain gradient descent as the module's text says it, in plain numbers; gives each step's norms as they
    were stepped with. Tensors have the optimizer's order; only the first group's are reached from the third step on."""
    parameters, rates = list(net.parameters()), [1e-2] * 4 + [1e-3] * 2
    shares, stepped = [1 / 6] * 6, []
    for step in range(steps):
        gradients = torch.autograd.grad(loss_of(net, step), parameters[: 6 if step < 2 else 4])
        norms = [float(gradient.norm()) for gradient in gradients]
        stepped.append([])
        for number, gradient in enumerate(gradients):
            cut = min(1.0, most * math.sqrt(shares[number]) / norms[number])
            stepped[-1].append(norms[number] * cut)
            with torch.no_grad():
                parameters[number] -= rates[number] * cut * gradient
        weight, whole = max(0.1, 1 / (step + 2)), sum(norm**2 for norm in norms)
        squares = [norm**2 for norm in norms] + [0.0] * (6 - len(norms))
        shares = [(1 - weight) * old + weight * new / whole for old, new in zip(shares, squares, strict=True)]
    return stepped


@pytest.mark.parametrize(("most", "at_last"), [(0.05, 0.048), (0.3, 0.135)])
def test_each_tensor_is_clipped_to_its_share_so_that_all_together_are_within_the_norm(most, at_last):
    """Also once a component is no longer trained, whose share goes to the others; 0.3 is above most of the norms. Without
    momentum a step is the gradient."""
    net, reference = network(), network()
    stepping = stepper(net, TrainingSettings(optimizer="torch.optim.SGD"), fused=True, norm=most)
    stepped = clipped_by_hand(reference, most, 14)
    for step in range(14):
        net["last"].requires_grad_(step < 2)
        train_one(net, stepping, step)
    wholes = [math.hypot(*norms) for norms in stepped]
    assert max(wholes) <= most * (1 + 1e-6) and wholes[-1] == pytest.approx(at_last, rel=0.01)
    for one, other in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_tensor_without_gradients_so_far_may_get_one():
    net = network()
    stepping = stepper(net, TrainingSettings(optimizer="torch.optim.SGD"), fused=True, norm=0.05)
    for step in range(3):
        stepping.begin(step)
        (loss_of(net, 0) * 0.0).backward()
        stepping.step(torch.tensor(0.0))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    train_one(net, stepping, 3)
    assert all(not torch.equal(one, two) for one, two in zip(before, net.parameters(), strict=True))
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_what_is_not_finite_never_reaches_the_weights_and_is_told(bad, norm):
    """Nor does what comes after it: without momentum and decay the weights stay as they are."""
    net = network()
    settings = TrainingSettings(optimizer="torch.optim.SGD")
    stepping = stepper(net, settings, fused=True, norm=norm)
    train(net, stepping, steps=1)
    assert float(stepping.failed) == 0
    (loss_of(net, 1) * bad).backward()
    stepping.step(torch.tensor(1.0))
    assert float(stepping.failed) == 1
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())
    before = [parameter.detach().clone() for parameter in net.parameters()]
    train(net, stepping, steps=1)
    assert float(stepping.failed) == 1, "it stays told"
    assert all(torch.equal(one, other) for one, other in zip(before, net.parameters(), strict=True))


def test_a_loss_that_is_not_finite_is_told_too():
    net = network()
    stepping = stepper(net, TrainingSettings(), fused=True)
    loss_of(net, 0).backward()
    stepping.step(torch.tensor(math.nan))
    assert float(stepping.failed) == 1


def test_what_clipping_remembers_is_that_of_as_many_tensors():
    nets = [network(), network()]
    first, second = (stepper(net, TrainingSettings(), fused=True, norm=0.05) for net in nets)
    train_one(nets[0], first, 0)
    assert not torch.equal(second.clipping()["shares"], first.clipping()["shares"])
    second.restore_clipping(first.clipping())
    assert torch.equal(second.clipping()["shares"], first.clipping()["shares"])
    with pytest.raises(ValueError, match="5 tensors, not of 6"):
        second.restore_clipping({"shares": torch.ones(5)})
    second.restore_clipping({})  # an older version's state
    assert torch.equal(second.clipping()["shares"], first.clipping()["shares"])
    assert stepper(network(), TrainingSettings(), fused=True, norm=0.0).clipping() == {}
    assert stepper(network(), TrainingSettings(), fused=False, norm=1.0).clipping() == {}
