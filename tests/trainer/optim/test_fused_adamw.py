import copy
import io

import pytest
import torch

from dreambooth.trainer.optim.fused_adamw import FusedAdamW
from dreambooth.trainer.optim.optimizers import has_fused_adamw

pytestmark = pytest.mark.skipif(
    not has_fused_adamw(torch.device("cpu")), reason="this torch has the kernel on cards alone"
)
SHAPES = ((6, 5), (40,), (3, 2, 2), ())
NEVER, NOW = torch.zeros(()), torch.ones(())


def made(**options) -> tuple[list[torch.nn.Parameter], torch.optim.AdamW]:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    groups = [{"params": parameters[:2], "lr": 1e-2}, {"params": parameters[2:], "lr": 3e-3}]
    return parameters, torch.optim.AdamW(groups, weight_decay=0.1, fused=True, **options)


def give(parameters, step: int, without=()) -> None:
    torch.manual_seed(step + 1)
    for index, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape)
        parameter.grad = None if index in without else gradient


def torch_step(optimizer, divisor, failed) -> None:
    optimizer.grad_scale, optimizer.found_inf = divisor, failed
    optimizer.step()


def check_same(ours, theirs, optimizer, other) -> None:
    assert all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))
    one, two = optimizer.state_dict(), other.state_dict()
    assert one["param_groups"] == two["param_groups"]
    assert one["state"].keys() == two["state"].keys()
    for index in one["state"]:
        assert one["state"][index].keys() == two["state"][index].keys()
        for name, value in one["state"][index].items():
            assert value.dtype == two["state"][index][name].dtype
            assert torch.equal(value, two["state"][index][name])


@pytest.mark.parametrize(
    "options", [{}, {"amsgrad": True}, {"maximize": True}, {"betas": (0.5, 0.7), "eps": 1e-3}]
)
def test_steps_and_state_are_torchs_bit_for_bit(options):
    (ours, optimizer), (theirs, other) = made(**options), made(**options)
    fused = FusedAdamW(optimizer)
    for step in range(6):
        divisor = torch.tensor(1.0 + step) if step % 2 else None
        failed = NOW if step == 3 else NEVER
        without = (1,) if step in (2, 3) else (2, 3) if step == 4 else ()
        for parameters in (ours, theirs):
            give(parameters, step, without)
        if step == 5:
            optimizer.param_groups[0]["lr"] = other.param_groups[0]["lr"] = 5e-4
        fused.step(divisor=divisor, failed=failed)
        torch_step(other, divisor, failed)
        check_same(ours, theirs, optimizer, other)


def test_a_failed_step_counts_nothing_and_changes_nothing():
    parameters, optimizer = made()
    fused = FusedAdamW(optimizer)
    give(parameters, 0)
    fused.step(divisor=None, failed=NEVER)
    before = copy.deepcopy((list(parameters), optimizer.state_dict()["state"]))
    give(parameters, 1)
    parameters[0].grad[0, 0] = torch.nan
    fused.step(divisor=None, failed=NOW)
    assert all(torch.equal(one, two) for one, two in zip(parameters, before[0], strict=True))
    for index, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before[1][index][name]) for name, value in state.items())
        assert float(state["step"]) == 1


def test_a_state_that_was_loaded_is_gone_on_with():
    (ours, optimizer), (theirs, other) = made(), made()
    fused = FusedAdamW(optimizer)
    for step in range(2):
        for parameters in (ours, theirs):
            give(parameters, step)
        fused.step(divisor=None, failed=NEVER)
        torch_step(other, None, NEVER)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    for step in range(2, 4):  # this way is left again
        give(ours, step + 50)
        fused.step(divisor=None, failed=NEVER)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        for one, two in zip(ours, theirs, strict=True):
            one.copy_(two)
    for step in range(2, 4):
        for parameters in (ours, theirs):
            give(parameters, step)
        fused.step(divisor=None, failed=NEVER)
        torch_step(other, None, NEVER)
        check_same(ours, theirs, optimizer, other)


def test_it_serves_the_fused_adamw_alone():
    parameter = torch.nn.Parameter(torch.zeros(3))
    assert FusedAdamW.serves(torch.optim.AdamW([parameter], fused=True))
    assert not FusedAdamW.serves(torch.optim.AdamW([parameter], foreach=True))
    assert not FusedAdamW.serves(torch.optim.Adam([parameter], fused=True))
    assert not FusedAdamW.serves(torch.optim.SGD([parameter], lr=0.1))
