from __future__ import annotations

import math

import pytest
import torch

from dreambooth.shared.settings import TrainingSettings
from dreambooth.trainer.optim.optimizers import ParameterGroup, Stepper, build_optimizer
from dreambooth.trainer.optim.rounding import StochasticRounding, as_float32, rounded

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_value_becomes_one_of_its_two_neighbours():
    torch.manual_seed(0)
    values = torch.randn(20_000) * 10.0 ** torch.randint(-20, 20, (20_000,))
    found = rounded(values, generator())
    assert found.dtype == torch.bfloat16
    down = (values.view(torch.int32) & -65536).view(torch.float32)  # towards zero
    up = ((values.view(torch.int32) & -65536) + 65536).view(torch.float32)
    assert ((found.float() == down) | (found.float() == up)).all()
    assert (found.float() == down).any() and (found.float() == up).any()


@pytest.mark.parametrize("value", [1.001, -1.001, 0.05 + 1e-5, -3e-9, 1234.5])
def test_on_average_nothing_is_lost(value):
    found = rounded(torch.full((200_000,), value), generator()).double()
    gap = float(found.max() - found.min())
    assert gap > 0
    # the standard error of the mean of a two-valued variable is at most half the gap by the root of the count
    assert abs(float(found.mean()) - value) < 4 * gap / 2 / math.sqrt(200_000)


def test_what_bfloat16_can_hold_stays_and_so_does_what_is_not_finite():
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, 3.0e38, math.inf, -math.inf])
    assert torch.equal(rounded(exact, generator()).float(), exact.to(torch.bfloat16).float())
    assert rounded(torch.tensor([math.nan]), generator()).isnan().all()


def test_the_bits_are_those_of_seed_step_and_tensor_alone():
    values = torch.linspace(-1, 1, 1000)

    def drawn(seed: int, step: int, tensor: int, before: int = 0) -> torch.Tensor:
        rounding = StochasticRounding(seed, CPU)
        rounding.begin(step)
        for other in range(before):
            rounding.write(torch.empty(7, dtype=torch.bfloat16), torch.ones(7), 90 + other)
        target = torch.empty(1000, dtype=torch.bfloat16)
        rounding.write(target, values, tensor)
        return target

    assert torch.equal(drawn(1, 2, 3), drawn(1, 2, 3, before=5))
    for other in (drawn(0, 2, 3), drawn(1, 3, 3), drawn(1, 2, 4)):
        assert not torch.equal(drawn(1, 2, 3), other)


def test_steps_far_below_bfloat16s_own_still_move_the_weights():
    """1e-5 beside 1, where bfloat16's own step is 0.0078: to the nearest nothing would ever happen."""
    settings = TrainingSettings(optimizer="adamw", adam_weight_decay=0.0)
    weight = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = build_optimizer(settings, [ParameterGroup("unet", [weight], 1e-5)], CPU)
    stepping = Stepper(optimizer, 0.0, None, rounding=StochasticRounding(0, CPU))
    for step in range(200):
        stepping.begin(step)
        weight.grad = torch.ones_like(weight)
        stepping.step(torch.tensor(1.0))
    assert float(weight.detach().float().mean()) == pytest.approx(1 - 200 * 1e-5, abs=4e-4)
    assert weight.dtype == torch.bfloat16
    assert optimizer.state[weight]["exp_avg"].dtype == torch.float32


def test_what_is_loaded_beside_bfloat16_weights_stays_float32():
    weight = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([weight])
    saved = {"step": torch.tensor(1.0), "exp_avg": torch.full((3, 2), 1.001), "exp_avg_sq": torch.ones(3, 2)}
    content = {"state": {0: saved}, "param_groups": optimizer.state_dict()["param_groups"]}
    with as_float32(optimizer):
        optimizer.load_state_dict(content)
    assert torch.equal(optimizer.state[weight]["exp_avg"], saved["exp_avg"])
    assert weight.shape == (3, 2) and weight.dtype == torch.bfloat16
