"""A step in parts is the same step: the same samples, losses and gradients, up to rounding."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from test_engine import (
    Catcher,
    Fixed,
    bf16,  # noqa: F401 - a fixture
    engine_for,
    half,
    relative_difference,
)
from training_rig import SD1, make_rig, tiny_text_encoder, tiny_unet

from dreambooth.trainer.engine import Denoiser, MicroBatch, TextEncoderSpan
from dreambooth.trainer.objectives import Objective, scaled_linear_alphas_cumprod
from dreambooth.trainer.parts import at_once, parts_of


def rows(part) -> tuple[int, int]:
    return tuple(0 if half is None else len(half.latents) for half in (part.instance, part.prior))


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [(1, 0)] * 4 + [(0, 1)] * 4),
        (3, [(3, 0), (1, 2), (0, 2)]),
        (4, [(4, 0), (0, 4)]),
        (8, [(4, 4)]),
        (100, [(4, 4)]),
    ],
)
def test_halves_of_one_shape_share_the_part_where_they_meet(most, expected):
    micro = MicroBatch(half(1, 4), half(2, 4))
    parts = parts_of(micro, most)
    assert [rows(part) for part in parts] == expected
    assert max(sum(rows(part)) for part in parts) <= most
    assert [sum(part.shares[place] for part in parts) for place in (0, 1)] == pytest.approx([1, 1])
    assert at_once(micro) == 8


def test_halves_of_different_shapes_are_cut_apart():
    micro = MicroBatch(half(1, 3), half(2, 3, sides=(8, 12)))
    assert [rows(part) for part in parts_of(micro, 2)] == [(2, 0), (1, 0), (0, 2), (0, 1)]
    assert [rows(part) for part in parts_of(micro, 3)] == [(3, 0), (0, 3)]
    assert at_once(micro) == 3


def test_a_part_has_all_that_its_rows_had():
    whole = half(1, 3, extra=True)
    (first, second) = parts_of(MicroBatch(whole), 2)
    assert first.prior is None and first.shares[0] == pytest.approx(2 / 3)
    assert torch.equal(first.instance.extra, whole.extra[:2])
    assert torch.equal(second.instance.condition.context, whole.condition.context[2:])
    assert torch.equal(second.instance.timesteps, whole.timesteps[2:])
    assert second.instance.sizes is None and at_once(MicroBatch(whole)) == 3


# ---- gradients ---------------------------------------------------------------------------------------------------


def step_of(micro_batches, most, *, trains_text=False, teacher=None, gamma=0.0, accelerator=None, times=1.0):
    """(losses, gradients, images of each forward) of one step."""
    unet, encoder = tiny_unet(), tiny_text_encoder()
    catcher = Catcher(unet, encoder) if trains_text else Catcher(unet)
    more = {} if accelerator is None else {"accelerator": accelerator}
    engine = engine_for(
        Denoiser(unet, [encoder] if trains_text else [], SD1, clip_skip=1),
        catcher,
        Fixed(*micro_batches),
        objective=Objective("epsilon", scaled_linear_alphas_cumprod(), snr_gamma=gamma),
        prior_weight=0.7,
        text_span=TextEncoderSpan(trains_text, 10),
        teacher=teacher,
        forward_batch=most,
        **more,
    )
    seen: list[int] = []
    unet.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    losses = engine.step(0)
    return losses, [gradient / times for gradient in catcher.gradients], seen


def check_the_same(micro_batches, most, passes, **more):
    whole, gradients, _ = step_of(micro_batches, 0, **more)
    cut, in_parts, seen = step_of(micro_batches, most, **more)
    assert seen == passes
    for name in ("total", "instance", "prior"):
        assert float(getattr(cut, name)) == pytest.approx(float(getattr(whole, name)), rel=1e-5), name
        assert not getattr(cut, name).requires_grad
    assert relative_difference(in_parts, gradients) < 2e-5
    assert float(torch.cat([g.flatten() for g in gradients]).norm()) > 1e-3


PASSES = {1: [1] * 8, 2: [2] * 4, 3: [3, 3, 2]}


@pytest.mark.parametrize("most", PASSES)
def test_a_batch_of_four_with_its_prior_is_the_same_step_in_parts(most):
    micro = MicroBatch(half(1, 4, tokens=True), half(2, 4, tokens=True))
    check_the_same([micro], most, PASSES[most], trains_text=True, gamma=5.0)


def test_halves_of_different_shapes_are_the_same_step_in_parts():
    micro = MicroBatch(half(1, 3), half(2, 3, sides=(8, 12)))
    check_the_same([micro], 2, [2, 1, 2, 1], gamma=5.0)


def test_several_micro_batches_are_each_cut():
    first, second = MicroBatch(half(1, 2), half(2, 2)), MicroBatch(half(3, 2), half(4, 2))
    check_the_same([first, second], 3, [3, 1, 3, 1])


def test_a_batch_without_a_prior_is_cut_too():
    check_the_same([MicroBatch(half(1, 3))], 2, [2, 1], gamma=5.0)


@pytest.mark.parametrize("most", [1, 3])
def test_a_teacher_is_asked_for_the_part_s_own_rows(most):
    base, asked = tiny_unet(seed=5), []

    @torch.no_grad()
    def teacher(noisy, half):
        asked.append(len(noisy))
        return base(noisy, half.timesteps, half.condition.context, return_dict=False)[0]

    micro = MicroBatch(half(1, 4), half(2, 4))
    check_the_same([micro], most, PASSES[most], teacher=teacher)
    assert asked == [4, *{1: [1] * 4, 3: [2, 2]}[most]]  # the whole, then the parts


def test_a_loss_scaler_scales_each_part():
    scale = 1024.0
    scaling = SimpleNamespace(
        num_processes=1,
        autocast=lambda: torch.autocast("cpu", enabled=False),
        backward=lambda loss: (loss * scale).backward(),
    )
    micro = MicroBatch(half(1, 4), half(2, 4))
    _, whole, _ = step_of([micro], 0)
    _, cut, _ = step_of([micro], 3, accelerator=scaling, times=scale)
    assert relative_difference(cut, whole) < 2e-5


def test_parts_in_mixed_precision_are_the_same_step_as_near_as_it_computes(tmp_path, bf16):  # noqa: F811
    def first_step(most):
        rig = make_rig(tmp_path, batch=4, trained=("unet", "text_encoder"))
        catcher = Catcher(*(rig.model.components[name] for name in rig.options.trained))
        rig.engine.stepper, rig.engine.forward_batch = catcher, most
        return rig.engine.step(1), catcher.gradients

    (whole, gradients), (cut, in_parts) = first_step(0), first_step(3)
    assert float(cut.total) == pytest.approx(float(whole.total), rel=2e-3)
    assert relative_difference(in_parts, gradients) < 0.02


def test_a_run_may_change_its_parts_between_two_steps(tmp_path):
    plain, changing = (make_rig(tmp_path, batch=4) for _ in range(2))
    losses = plain.train(0, 3)
    told = []
    for step, most in enumerate((0, 3, 1)):
        changing.engine.forward_batch = most
        told += changing.train(step, step + 1)
    assert told == pytest.approx(losses, rel=1e-4)


def test_the_log_of_a_whole_batch_has_not_changed_a_bit(tmp_path):
    """Parts that hold everything are the batch itself."""
    plain, uncut = (make_rig(tmp_path, batch=4) for _ in range(2))
    uncut.engine.forward_batch = 8
    assert uncut.train(0, 2) == plain.train(0, 2)
