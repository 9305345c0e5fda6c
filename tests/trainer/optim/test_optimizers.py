import math
from dataclasses import replace

import pytest
import torch
from optional import skip_without
from training_rig import CPU

from dreambooth.shared.errors import InputError
from dreambooth.shared.settings import TrainingSettings
from dreambooth.trainer.optim import optimizers
from dreambooth.trainer.optim.optimizer_table import TABLE
from dreambooth.trainer.optim.optimizers import (
    ParameterGroup,
    Stepper,
    averages,
    group_memory,
    has_fused_adamw,
    lay_alike,
    page_again,
)

ADAMW = TrainingSettings(learning_rate=1e-2, adam_weight_decay=0.1)
NOT_FUSED = replace(ADAMW, optimizer_args={"fused": "no", "foreach": "yes"})
EIGHT_BIT = replace(ADAMW, optimizer="adamw8bit")
KINDS = {"fused": ADAMW, "foreach": NOT_FUSED, "8 bit": EIGHT_BIT}
every_kind = pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)


def parameters(seed=0) -> list[torch.nn.Parameter]:
    """Two for the UNet, large enough for 8 bits, and one for the text encoder, small."""
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((64, 80), (4100,), (3, 5))]


def build_optimizer(settings, groups, device):
    skip_without(settings.optimizer)
    return optimizers.build_optimizer(settings, groups, device)


def stepper(given, settings=ADAMW, *, norm=1.0, scaler=None, rates=(1e-2, 3e-3)) -> Stepper:
    groups = [
        ParameterGroup("unet", given[:2], rates[0]),
        ParameterGroup("text_encoder", given[2:], rates[1]),
    ]
    return Stepper(build_optimizer(settings, groups, CPU), norm, scaler)


def gradients(step: int, size: float) -> list[torch.Tensor]:
    torch.manual_seed(100 + step)
    return [size * torch.randn(shape) for shape in ((64, 80), (4100,), (3, 5))]


def give(given, step: int, size=1.0) -> None:
    for parameter, gradient in zip(given, gradients(step, size), strict=True):
        parameter.grad = gradient.clone()


def copies(given) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in given]


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


LOSS = torch.tensor(0.5)


# ---- the table's rows ---------------------------------------------------------------------------------------------


# a processor has nothing to page to
unpaged = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
RATES = {"prodigy": 1.0, "dadaptadam": 1.0, "lion": 1e-3, "lion8bit": 1e-3}


@unpaged
@pytest.mark.parametrize("name", TABLE)
def test_every_optimizer_that_can_be_chosen_learns(name):
    """A least-squares problem whose solution is known: the loss falls below half of what it was."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(70, 70))
    inputs, wanted = torch.randn(200, 70), torch.randn(70, 70) / 8
    # D-Adaptation begins with an estimate of 1e-6, which it doubles at most some steps: given a nearer one
    settings = TrainingSettings(
        optimizer=name, optimizer_args={"d0": "1e-2"} if TABLE[name].own_rate else {}, adam_weight_decay=0.0
    )
    rate = RATES.get(name, 1e-2)
    stepping = Stepper(build_optimizer(settings, [ParameterGroup("unet", [weight], rate)], CPU), 0.0, None)
    losses = []
    for _ in range(60):
        loss = (inputs @ (weight - wanted)).square().mean()
        loss.backward()
        losses.append(loss.item())
        assert stepping.step(loss.detach())
    assert losses[-1] < losses[0] / 2


def test_betas_reach_those_that_are_adams_kin_and_weight_decay_all():
    for name, row in TABLE.items():
        settings = TrainingSettings(optimizer=name, adam_beta1=0.8, adam_beta2=0.95, adam_weight_decay=0.3)
        (group,) = build_optimizer(settings, [ParameterGroup("unet", parameters(), 1e-3)], CPU).param_groups
        assert group["weight_decay"] == 0.3
        assert (group.get("betas") == (0.8, 0.95)) is ("betas" in row.takes)


def test_weight_decay_is_decoupled_everywhere():
    """Without a gradient's direction to scale it, one step of decay alone shrinks a weight by rate times decay."""
    for name in ("adamw", "lion", "adafactor", "came", "prodigy", "dadaptadam"):
        settings = TrainingSettings(optimizer=name, adam_weight_decay=0.5)
        if TABLE[name].own_rate:
            settings = replace(settings, optimizer_args={"d0": "1e-2"})
        kept, free = (torch.nn.Parameter(torch.full((64, 64), 2.0)) for _ in range(2))
        for weight, decay in ((kept, 0.5), (free, 0.0)):
            group = ParameterGroup("unet", [weight], 1.0 if TABLE[name].own_rate else 1e-2)
            optimizer = build_optimizer(replace(settings, adam_weight_decay=decay), [group], CPU)
            weight.grad = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
            optimizer.step()
        # Adam-like steps from zero state, either way: what is left is the decay
        torch.testing.assert_close(free - kept, torch.full((64, 64), 2.0 * 1e-2 * 0.5), rtol=2e-2, atol=1e-4)


def test_the_rate_that_is_told_is_the_one_that_was_found():
    given = parameters()
    stepping = stepper(given, TrainingSettings(optimizer="prodigy"), norm=0.0, rates=(0.5, 0.5))
    assert stepping.rate == pytest.approx(0.5 * 1e-6)
    for _ in range(8):
        give(given, 0)  # always the same way: the estimate grows
        stepping.step(LOSS)
    (found, _) = (group["d"] for group in stepping.optimizer.param_groups)
    assert found > 1e-6
    assert stepping.rate == pytest.approx(0.5 * found)


def test_only_what_is_no_argument_is_a_groups_memory():
    given = parameters()
    stepping = stepper(given, TrainingSettings(optimizer="prodigy"), rates=(1.0, 1.0))
    give(given, 0)
    stepping.step(LOSS)
    found = group_memory(stepping.optimizer, stepping.optimizer.param_groups[0])
    assert set(found) == {"d", "d_max", "d_numerator", "d_denom", "d_hat", "k"}
    assert group_memory(stepper(parameters()).optimizer, {"lr": 1, "fused": True, "betas": (0, 0)}) == {}


class Paging(torch.optim.SGD):
    """As bitsandbytes' paged ones: large states lie in buffers of their own kind, until they are loaded."""

    is_paged = True

    def get_state_buffer(self, parameter, dtype):
        buffer = torch.zeros(parameter.shape, dtype=dtype)
        buffer.is_paged = parameter.numel() > 100
        return buffer


def test_a_loaded_state_lies_in_memory_as_its_parameter_does():
    """torch's own loading leaves it in the order that was saved."""
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
    bias = torch.nn.Parameter(torch.randn(4))
    optimizer = torch.optim.AdamW([weight, bias])
    saved = {name: torch.randn(4, 3, 3, 3) for name in ("exp_avg", "exp_avg_sq")}
    plain = {name: torch.randn(4) for name in saved}
    states = {0: {"step": torch.tensor(3.0), **saved}, 1: {"step": torch.tensor(3.0), **plain}}
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    kept = optimizer.state[bias]["exp_avg"]
    lay_alike(optimizer)
    for name, tensor in saved.items():
        assert optimizer.state[weight][name].stride() == weight.stride() != tensor.stride()
        assert torch.equal(optimizer.state[weight][name], tensor)
    assert optimizer.state[bias]["exp_avg"] is kept


def test_loaded_states_of_a_paged_optimizer_are_paged_again():
    weights = [torch.nn.Parameter(torch.zeros(20, 10)), torch.nn.Parameter(torch.zeros(5))]
    optimizer = Paging(weights, lr=1.0)
    for number, weight in enumerate(weights, 1):
        optimizer.state[weight] = {
            "step": 3, "state1": torch.full(weight.shape, number, dtype=torch.uint8), "absmax1": torch.ones(2),
        }  # fmt: skip
    page_again(optimizer)
    for number, weight in enumerate(weights, 1):
        state = optimizer.state[weight]
        assert state["state1"].is_paged is (number == 1) and state["state1"].dtype == torch.uint8
        assert bool((state["state1"] == number).all()) and not hasattr(state["absmax1"], "is_paged")
    there = [optimizer.state[weight]["state1"] for weight in weights]
    page_again(optimizer)
    assert optimizer.state[weights[0]]["state1"] is there[0]
    plain = torch.optim.SGD(weights, lr=1.0)
    plain.state[weights[0]] = {"state1": there[1]}
    page_again(plain)
    assert plain.state[weights[0]]["state1"] is there[1]


def test_a_schedule_free_optimizer_is_built_to_be_trained():
    optimizer = build_optimizer(
        TrainingSettings(optimizer="adamwschedulefree"), [ParameterGroup("unet", parameters(), 1e-3)], CPU
    )
    assert averages(optimizer) and optimizer.param_groups[0]["train_mode"] is True
    assert not averages(stepper(parameters()).optimizer)


def test_a_class_by_its_import_path_takes_its_own_arguments_alone():
    settings = TrainingSettings(
        optimizer="torch.optim.SGD", optimizer_args={"momentum": "0.9"}, adam_weight_decay=0.3
    )
    optimizer = build_optimizer(settings, [ParameterGroup("unet", parameters(), 1e-3)], CPU)
    assert type(optimizer) is torch.optim.SGD
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-3, 0.9, 0)


def test_what_a_library_prints_when_it_is_built_is_not_printed(capsys):
    build_optimizer(TrainingSettings(optimizer="prodigy"), [ParameterGroup("unet", parameters(), 1.0)], CPU)
    assert capsys.readouterr() == ("", "")


# ---- AdamW and clipping ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [ADAMW, NOT_FUSED], ids=["fused", "foreach"])
@pytest.mark.parametrize(("norm", "size"), [(1.0, 1.0), (1.0, 1e-4), (30.0, 1.0), (0.0, 1.0)])
def test_steps_are_those_of_torch_adamw_behind_clip_grad_norm(settings, norm, size):
    ours, theirs = parameters(), parameters()
    stepping = stepper(ours, settings, norm=norm)
    assert bool(stepping.optimizer.param_groups[0]["fused"]) is (settings is ADAMW and has_fused_adamw(CPU))
    plain = torch.optim.AdamW(
        [{"params": theirs[:2], "lr": 1e-2}, {"params": theirs[2:], "lr": 3e-3}],
        betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, foreach=False, fused=False,
    )  # fmt: skip
    clipped = []
    for step in range(6):
        give(ours, step, size)
        give(theirs, step, size)
        assert stepping.step(LOSS) is True
        before = math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in theirs))
        clipped.append(0 < norm < before)
        if norm:
            torch.nn.utils.clip_grad_norm_(theirs, norm)
        plain.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-7)
        assert all(parameter.grad is None for parameter in ours)
    assert all(clipped) is (norm > 0 and size == 1.0)
    assert not stepping.failed


@every_kind
def test_parameters_without_a_gradient_stay_and_count_nothing(settings):
    given = parameters()
    stepping = stepper(given, settings)
    for step in range(3):
        before = copies(given)
        give(given, step)
        given[2].grad = None
        stepping.step(LOSS)
        assert torch.equal(given[2], before[2])
        assert not torch.equal(given[0], before[0])


def test_the_norm_is_that_of_all_groups_together():
    """Clipping is by one factor: Adam alone would not show it, momentum-free SGD does."""
    given = parameters()
    before = copies(given)
    stepping = Stepper(torch.optim.SGD(given, lr=1.0), 1.0, None)
    give(given, 0)
    stepping.step(LOSS)
    moved = torch.cat([(b - p.detach()).flatten() for b, p in zip(before, given, strict=True)])
    assert float(moved.norm()) == pytest.approx(1.0, rel=1e-3)
    whole = torch.cat([gradient.flatten() for gradient in gradients(0, 1.0)])
    torch.testing.assert_close(moved, whole / whole.norm(), rtol=1e-2, atol=1e-6)


# ---- 8 bits ------------------------------------------------------------------------------------------------------


def test_adamw8bit_keeps_eight_bits_for_large_tensors_and_goes_the_same_way():
    ours, theirs = parameters(), parameters()
    stepping, plain = stepper(ours, EIGHT_BIT), stepper(theirs)
    for step in range(5):
        give(ours, step)
        give(theirs, step)
        stepping.step(LOSS)
        plain.step(LOSS)
    states = [stepping.optimizer.state[parameter] for parameter in ours]
    kinds = [(state["state1"].dtype, state["state2"].dtype) for state in states]
    assert kinds == [(torch.uint8, torch.uint8)] * 2 + [(torch.float32, torch.float32)]
    moved, expected = (
        (p.detach() - start) for p, start in zip((ours[0], theirs[0]), parameters()[:1] * 2, strict=True)
    )
    assert not torch.equal(moved, expected)
    assert torch.nn.functional.cosine_similarity(moved.flatten(), expected.flatten(), dim=0) > 0.99


# ---- what is not finite ------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "one gradient"])
def test_what_is_not_finite_never_reaches_the_weights_then_or_later(settings, bad, where):
    given = parameters()
    stepping = stepper(given, settings)
    give(given, 0)
    stepping.step(LOSS)
    assert float(stepping.failed) == 0
    weights = copies(given)
    moments = [value.clone() for state in stepping.optimizer.state.values() for value in state.values()
               if isinstance(value, torch.Tensor)]  # fmt: skip
    give(given, 1)
    loss = LOSS
    if where == "loss":
        loss = torch.tensor(bad)
    else:
        given[1].grad[4000] = bad
    assert stepping.step(loss) is True
    assert float(stepping.failed) == 1
    give(given, 2)
    stepping.step(LOSS)  # a good step comes too late
    assert float(stepping.failed) == 1
    assert same(copies(given), weights)
    after = [value for state in stepping.optimizer.state.values() for value in state.values()
             if isinstance(value, torch.Tensor)]  # fmt: skip
    assert same(after, moments)


# ---- rates -------------------------------------------------------------------------------------------------------


def test_each_group_has_its_own_rate_and_all_follow_the_factor():
    stepping = stepper(parameters(), rates=(4e-3, 1e-3))
    assert stepping.rate == 4e-3
    stepping.set_rates(lambda rate: 0.5 if rate == 4e-3 else 0.25)
    assert [group["lr"] for group in stepping.optimizer.param_groups] == [2e-3, 2.5e-4]
    stepping.set_rates(lambda rate: 0.1)
    assert [group["lr"] for group in stepping.optimizer.param_groups] == pytest.approx([4e-4, 1e-4])


# ---- fp16's loss scaler ------------------------------------------------------------------------------------------


with_scaler = pytest.mark.skipif(
    not hasattr(torch.amp, "GradScaler"), reason="this torch scales on cards alone"
)


def scaling(given, settings=ADAMW, scale=1024.0):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    scaler.scale(torch.zeros(()))  # a scaler makes its scale at its first use
    return stepper(given, settings, scaler=scaler), scaler


@with_scaler
@pytest.mark.parametrize("settings", [ADAMW, NOT_FUSED], ids=["fused", "foreach"])
def test_scaled_gradients_make_the_steps_that_unscaled_ones_make(settings):
    ours, theirs = parameters(), parameters()
    (stepping, scaler), plain = scaling(ours, settings), stepper(theirs, NOT_FUSED)
    for step in range(4):
        give(ours, step, size=scaler.get_scale())
        give(theirs, step)
        assert stepping.step(LOSS) is True
        plain.step(LOSS)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-7)


@unpaged
@with_scaler
@pytest.mark.parametrize("name", TABLE)
def test_every_optimizer_goes_with_a_loss_scaler(name):
    ours, theirs = parameters(), parameters()
    settings = TrainingSettings(optimizer=name)
    rates = (1.0, 1.0) if TABLE[name].own_rate else (1e-2, 3e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    scaler.scale(torch.zeros(()))
    scaled, plain = (
        stepper(ours, settings, scaler=scaler, rates=rates),
        stepper(theirs, settings, rates=rates),
    )
    for step in range(3):
        give(ours, step, size=scaler.get_scale())
        give(theirs, step)
        assert scaled.step(LOSS) is True and plain.step(LOSS) is True
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@with_scaler
@pytest.mark.parametrize("settings", [ADAMW, NOT_FUSED], ids=["fused", "foreach"])
def test_an_overflow_skips_the_step_lowers_the_scale_and_is_no_failure(settings):
    given = parameters()
    stepping, scaler = scaling(given, settings)
    weights = copies(given)
    give(given, 0)
    given[0].grad[3, 3] = math.inf
    assert stepping.step(LOSS) is False
    assert same(copies(given), weights)
    assert scaler.get_scale() == 512.0
    assert not stepping.failed
    assert all(parameter.grad is None for parameter in given)
    give(given, 0, size=512.0)
    assert stepping.step(LOSS) is True
    assert not same(copies(given), weights)


@with_scaler
def test_a_loss_that_is_not_finite_is_a_failure_with_a_scaler_too():
    given = parameters()
    stepping, _ = scaling(given)
    weights = copies(given)
    give(given, 0)
    stepping.step(torch.tensor(math.nan))
    assert float(stepping.failed) == 1
    assert same(copies(given), weights)


@with_scaler
def test_a_norm_that_overflows_alone_skips_the_step_too():
    """Each gradient is finite, their squares are not: without a step there is nothing to be clipped wrongly."""
    given = parameters()
    stepping, _ = scaling(given, scale=1.0)
    weights = copies(given)
    give(given, 0, size=1e25)
    assert stepping.step(LOSS) is False
    assert same(copies(given), weights)


# ---- arguments ---------------------------------------------------------------------------------------------------


def test_settings_and_arguments_reach_the_optimizer():
    settings = replace(
        ADAMW,
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-6,
        optimizer_args={"amsgrad": "Yes", "fused": "false"},
    )
    (group,) = build_optimizer(settings, [ParameterGroup("unet", parameters(), 1e-3)], CPU).param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.95), 1e-6, 0.1)
    assert (group["amsgrad"], group["fused"], group["lr"], group["name"]) == (True, False, 1e-3, "unet")


@pytest.mark.parametrize("arguments", [{"eps": "-1"}, {"eps": "small"}, {"betas": "0.9"}])
def test_arguments_that_are_refused_are_said_to_be_wrong(arguments):
    with pytest.raises(InputError) as refused:
        build_optimizer(
            replace(ADAMW, optimizer_args=arguments), [ParameterGroup("unet", parameters(), 1e-3)], CPU
        )
    assert refused.value.where == "optimizer_args"
    assert "AdamW refuses" in refused.value.what


def test_a_torch_without_the_fused_kernel_takes_foreach(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.1.2+cpu")
    assert not has_fused_adamw(CPU) and has_fused_adamw(torch.device("cuda"))
    built = optimizers.build_optimizer(ADAMW, [ParameterGroup("unet", parameters(), 1e-3)], CPU)
    assert built.param_groups[0]["foreach"] and not built.param_groups[0]["fused"]
