import pytest
import torch
from diffusers.optimization import get_scheduler

from dreambooth.shared.settings import SCHEDULERS
from dreambooth.trainer.optim.schedules import SHAPES, Schedule

RATE = 3e-4


def theirs(name: str, steps: int, warmup: int, cycles: int, power: float, rate: float) -> list[float]:
    """The rates of diffusers' scheduler, asked step after step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=steps, num_cycles=cycles, power=power
    )
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def ours(name: str, steps: int, warmup: int, cycles: int, power: float, rate: float) -> list[float]:
    schedule = Schedule(name, steps, warmup, cycles, power)
    return [rate * schedule.factor(step, rate) for step in range(steps)]


def test_every_scheduler_that_can_be_chosen_has_its_shape():
    assert set(SHAPES) == set(SCHEDULERS)


@pytest.mark.parametrize("warmup", [0, 1, 7, 40])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_all_rates_of_all_steps_are_those_of_diffusers(name, warmup):
    for steps in (1, 40, 41):
        expected = theirs(name, steps, warmup, 1, 1.0, RATE)
        assert ours(name, steps, warmup, 1, 1.0, RATE) == pytest.approx(expected, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("cycles", [1, 2, 3, 5])
def test_cosine_starts_again_as_often_as_diffusers_does(cycles):
    name = "cosine_with_restarts"
    expected = theirs(name, 60, 6, cycles, 1.0, RATE)
    assert ours(name, 60, 6, cycles, 1.0, RATE) == pytest.approx(expected, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("power", [0.01, 0.5, 2.0, 10.0])
def test_polynomials_fall_with_the_power_that_is_asked_for(power):
    expected = theirs("polynomial", 60, 6, 1, power, RATE)
    assert ours("polynomial", 60, 6, 1, power, RATE) == pytest.approx(expected, rel=1e-12)


def test_a_constant_rate_knows_no_warmup():
    assert ours("constant", 5, 3, 1, 1.0, RATE) == [RATE] * 5


def test_a_polynomial_below_its_own_end_keeps_the_rate():
    """diffusers refuses such a rate; a run that asks for one is better served by what it asked for."""
    assert ours("polynomial", 4, 0, 1, 1.0, 5e-8) == [5e-8] * 4


@pytest.mark.parametrize("name", SCHEDULERS)
def test_steps_behind_the_end_are_harmless(name):
    schedule = Schedule(name, 10, 2, 3, 2.0)
    assert all(0 <= schedule.factor(step, RATE) <= 1 for step in range(10, 30))
