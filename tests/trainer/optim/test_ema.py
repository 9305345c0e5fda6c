import pytest
import torch

from dreambooth.trainer.optim.ema import EMA, OptimizersAverage


def history(steps: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(3, 2) for _ in range(steps + 1)]


def closed_form(values: list[torch.Tensor], decay: float) -> torch.Tensor:
    """Σ of all values, each times its own share and all later decays."""
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(len(values) - 1)]
    total = torch.zeros(3, 2, dtype=torch.float64)
    for number, value in enumerate(values):
        share = 1.0 if number == 0 else 1 - decays[number - 1]
        for later in decays[number:]:
            share *= later
        total += share * value.double()
    return total


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9999])
def test_the_average_is_the_weighted_sum_of_all_weights_that_were(decay):
    values = history(30)
    weight = torch.nn.Parameter(values[0].clone())
    ema = EMA([weight], decay)
    for value in values[1:]:
        with torch.no_grad():
            weight.copy_(value)
        ema.update([weight])
    torch.testing.assert_close(ema.averages[0].double(), closed_form(values, decay), rtol=1e-5, atol=1e-6)


def test_the_decay_rises_to_the_one_that_was_asked_for():
    ema = EMA([torch.zeros(1)], 0.5)
    seen = []
    for _ in range(12):
        seen.append(ema.decay_now())
        ema.update([torch.zeros(1)])
    assert seen[:3] == pytest.approx([1 / 10, 2 / 11, 3 / 12])
    assert seen[8:] == [0.5] * 4  # (1 + 8) / (10 + 8)


def test_averages_are_float32_whatever_the_weights_are_and_begin_as_their_copies():
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    ema = EMA([weight], 0.9)
    assert ema.averages[0].dtype == torch.float32
    with torch.no_grad():
        weight.fill_(5.0)
    assert ema.averages[0].tolist() == [1.0] * 4


def test_going_on_with_the_saved_counter_gives_the_same_bits():
    values = history(10)
    whole = EMA([values[0]], 0.999)
    for value in values[1:]:
        whole.update([value])
    first = EMA([values[0]], 0.999)
    for value in values[1:5]:
        first.update([value])
    second = EMA([torch.zeros(3, 2)], 0.999)
    second.averages[0].copy_(first.averages[0])
    second.updates = first.updates
    for value in values[5:]:
        second.update([value])
    assert torch.equal(second.averages[0], whole.averages[0])


class Halving(torch.optim.SGD):
    """`eval()` halves the weights, and says so in its groups; nothing but `train()` would bring them back."""

    def eval(self) -> None:
        for group in self.param_groups:
            group["mode"] = "eval"
            for parameter in group["params"]:
                parameter.data.mul_(0.5)


def test_an_optimizers_average_is_what_its_eval_gives_and_leaves_nothing_behind():
    weight = torch.nn.Parameter(torch.tensor([0.1, 0.3]))
    optimizer = Halving([weight], lr=1.0)
    optimizer.param_groups[0]["mode"] = "train"
    storage = weight.data_ptr()
    average = OptimizersAverage([weight], optimizer)
    for _ in range(2):
        (found,) = average.averages
        assert torch.equal(found, torch.tensor([0.05, 0.15]))
        assert weight.data_ptr() == storage and torch.equal(weight, torch.tensor([0.1, 0.3]))
        assert optimizer.param_groups[0]["mode"] == "train"
    average.update([weight])
    assert average.updates == 0


def test_weights_are_put_back_when_the_optimizer_cannot_show_its_average():
    class Broken(Halving):
        def eval(self) -> None:
            super().eval()
            raise RuntimeError("no")

    weight = torch.nn.Parameter(torch.tensor([0.1]))
    with pytest.raises(RuntimeError):
        _ = OptimizersAverage([weight], Broken([weight], lr=1.0)).averages
    assert torch.equal(weight, torch.tensor([0.1]))
