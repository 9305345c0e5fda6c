"""What is counted without memory is what the same passes ask for with it; and it follows settings as it should."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch.nn import functional

from dreambooth.shared.config import load_settings
from dreambooth.trainer.engine import Denoiser
from dreambooth.trainer.machine import Machine
from dreambooth.trainer.memory import passes
from dreambooth.trainer.memory.counting import Count
from dreambooth.trainer.memory.models import in_training, sharing, telling
from dreambooth.trainer.memory.passes import sampling_step, training_step, vae_pass
from dreambooth.trainer.memory.phases import CLASS_IMAGES, RESULT_SAMPLES, SAMPLES, Memory
from dreambooth.trainer.models import text
from dreambooth.trainer.models.convert import load_model
from dreambooth.trainer.planning.plan import Plan, make_plan

FLOAT = {"unet": torch.float32, "text_encoder": torch.float32}


def planned(folder: Path, **values: Any) -> Plan:
    return make_plan(load_settings(tiny.config(folder, **values)))


def on_a_card(plan: Plan) -> Plan:
    return replace(plan, machine=Machine(torch.device("cuda"), "a card", "bf16", "sdpa", "bf16"))


def really_asked_for(images: int, side: int, chunks: int = 1) -> int:
    """The peak of a real step of the tiny model on the processor, beside its weights."""
    model = load_model(tiny.base())
    family = model.identified.family
    encoders = text.encoders_of(model.components, family)
    denoiser = Denoiser(model.components["unet"], encoders, family, 1).train().requires_grad_(True)
    inputs = torch.randn(images, 4, side // 8, side // 8), torch.zeros(images, dtype=torch.int64)
    ids = torch.full((images, chunks, 77), 49407)
    with Count() as count:
        for tensor in (*denoiser.parameters(), *denoiser.buffers()):
            count.hold(tensor)
        there = count.live
        prediction = denoiser(*inputs, ids)
        functional.mse_loss(prediction, torch.randn_like(prediction)).backward()
    return count.peak - there


@pytest.mark.parametrize(("images", "side"), [(1, 128), (3, 64)])
def test_a_counted_step_asks_for_what_a_real_one_does(images: int, side: int, tmp_path: Path) -> None:
    counted = training_step(planned(tmp_path), FLOAT, (side, side)).peak(images, passes=1, fused=False)
    assert counted == pytest.approx(really_asked_for(images, side), rel=0.03)


def test_long_captions_take_as_many_chunks_as_they_need_and_may_have(tmp_path: Path) -> None:
    photos = tiny.write_photos(tmp_path / "photos")
    concept = {
        "instance_prompt": "[filewords]",
        "class_prompt": "photo of cat",
        "instance_data_dir": str(photos),
    }
    for photo in photos.iterdir():
        photo.with_suffix(".txt").write_text("photo of sks cat")
    assert planned(tmp_path, concepts=[concept]).chunks == 1
    (photos / "photo 0.txt").write_text("a cat, " * 60)
    plan = planned(tmp_path, concepts=[concept], max_prompt_chunks=4)
    assert plan.chunks == 3
    assert planned(tmp_path, concepts=[concept], max_prompt_chunks=2).chunks == 2
    counted = training_step(plan, FLOAT, (64, 64)).peak(8, passes=1, fused=False)
    assert counted == pytest.approx(really_asked_for(8, 64, chunks=3), rel=0.03)
    assert counted > 1.05 * training_step(replace(plan, chunks=1), FLOAT, (64, 64)).peak(
        8, passes=1, fused=False
    )


@pytest.mark.parametrize("images", [5, 13, 61])
def test_one_count_tells_what_a_count_with_so_many_images_tells(
    images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = on_a_card(planned(tmp_path))
    told = (
        training_step(plan, FLOAT, (128, 128)),
        sampling_step(plan.base, torch.float32, None, (128, 128), wanted=False),
    )
    monkeypatch.setattr(passes, "telling", lambda modules: images)
    exact = (
        training_step(plan, FLOAT, (128, 128)),
        sampling_step(plan.base, torch.float32, None, (128, 128), wanted=False),
    )
    for fused in (False, True):
        peaks = [step.peak(images, passes=1, fused=fused) for step, _ in (told, exact)]
        assert peaks[0] == pytest.approx(peaks[1], rel=0.002)
    assert told[1].at(images) == pytest.approx(exact[1].at(images), rel=0.002)


def test_a_number_of_images_that_divides_a_weight_tells_nothing() -> None:
    weights = [torch.nn.Linear(37, 3, bias=False), torch.nn.Linear(41 * 43, 1)]
    assert telling(weights) == 47


def test_models_are_made_once_for_a_plan_and_kept_no_longer(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    with sharing():
        kept = in_training(plan, FLOAT)
        twice = replace(plan.settings, training=replace(plan.settings.training, gradient_checkpointing="yes"))
        assert in_training(replace(plan, settings=twice), FLOAT) is kept
        assert kept.unet.is_gradient_checkpointing and kept.text_encoders[0]._checkpointing
        assert in_training(plan, FLOAT) is kept
        assert not kept.unet.is_gradient_checkpointing and not kept.text_encoders[0]._checkpointing
        assert in_training(plan, dict.fromkeys(FLOAT, torch.bfloat16)) is not kept
        assert not gc.isenabled()
    assert gc.isenabled() and in_training(plan, FLOAT) is not kept


def test_a_steps_memory_follows_images_passes_and_when_gradients_are_used(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    step = training_step(plan, FLOAT, (128, 128))
    weights = sum(plan.trained.values())
    assert 4 * weights <= step.gradients < 4.1 * weights
    assert step.peak(8, passes=1, fused=False) > step.peak(1, passes=1, fused=False) > step.gradients
    assert step.peak(1, passes=1, fused=True) < step.peak(1, passes=1, fused=False)
    assert step.peak(1, passes=2, fused=False) > step.peak(1, passes=1, fused=False)
    per_image = step.peak(64, passes=1, fused=True) - step.peak(32, passes=1, fused=True)
    assert step.peak(96, passes=1, fused=True) == pytest.approx(
        step.peak(64, passes=1, fused=True) + per_image, rel=0.01
    )


def test_blocks_that_are_computed_twice_hold_less_the_more_of_them_there_are(tmp_path: Path) -> None:
    peaks = [
        training_step(planned(tmp_path, gradient_checkpointing=count), FLOAT, (256, 256)).peak(
            4, passes=1, fused=True
        )
        for count in ("no", "4", "yes")
    ]
    assert peaks[0] > peaks[1] > peaks[2]


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
@pytest.mark.parametrize("narrow", [False, True])
def test_an_adapter_takes_gradients_of_its_own_numbers_alone(kind: str, narrow: bool, tmp_path: Path) -> None:
    result = "lycoris" if kind in ("loha", "lokr") else "lora"
    plan = planned(tmp_path, output_kind=result, adapter=kind, max_train_steps=1)
    plan = on_a_card(plan) if narrow else plan
    step = training_step(plan, FLOAT, (64, 64))
    assert (
        sum(plan.trained.values()) * 4
        <= step.gradients
        < sum(plan.trained.values()) * 4 + 512 * 2 * len(plan.adapter.layers)
    )


def test_pictures_take_more_the_larger_and_the_more_they_are(tmp_path: Path) -> None:
    base = planned(tmp_path).base
    step = sampling_step(base, torch.float32, None, (128, 128), wanted=False)
    assert step.at(4) > step.at(2) > 0
    half = sampling_step(base, torch.bfloat16, None, (128, 128), wanted=False)
    assert half.at(4) == pytest.approx(step.at(4) / 2, rel=0.1)
    cast = sampling_step(base, torch.float32, torch.bfloat16, (128, 128), wanted=True)
    weights = sum(tensor.numel() for tensor in load_model(tiny.base()).components["unet"].parameters())
    assert cast.at(1) > half.at(1) + weights, "autocast keeps the weights that it casts"
    longer = sampling_step(base, torch.float32, None, (128, 128), wanted=False, chunks=3)
    assert longer.at(4) > step.at(4)
    decode, encode = (vae_pass(base, torch.float32, (128, 128), decode=decode) for decode in (True, False))
    assert vae_pass(base, torch.float32, (256, 256), decode=True) > 3 * decode > 0 and encode > 0


def test_what_lies_on_the_card_is_what_settings_say(tmp_path: Path) -> None:
    def lines(**values: Any) -> dict[str, int]:
        phases = {phase.name: phase for phase in Memory(on_a_card(planned(tmp_path, **values))).phases(2**60)}
        return {line.text: line.bytes for line in phases["training"].lines}

    unet = sum(tensor.numel() for tensor in load_model(tiny.base()).components["unet"].parameters())
    plain = lines(train_text_encoder=False)
    assert plain["UNet, trained, float32"] == 4 * unet and plain["optimizer (AdamW)"] == 8 * unet
    assert not any("text encoder" in text or "VAE" in text for text in plain), "what is kept on disk rests"
    assert lines(train_text_encoder=False, use_ema=True)["average of the weights (EMA), float32"] == 4 * unet
    assert "VAE, float32" in lines(cache_latents=False)
    assert "text encoder, trained, float32" in lines()
    assert lines(output_kind="lora")["UNet, bfloat16"] == 2 * unet


def test_pictures_that_do_not_fit_with_all_components_there_are_made_with_one_after_the_other(
    tmp_path: Path,
) -> None:
    memory = Memory(on_a_card(planned(tmp_path, num_validation_images=1)))
    together = {phase.name: phase for phase in memory.phases(2**60)}
    apart = {phase.name: phase for phase in memory.phases(0)}
    for name in (CLASS_IMAGES, SAMPLES, RESULT_SAMPLES):
        assert apart[name].in_turn and not together[name].in_turn
        assert apart[name].bytes < together[name].bytes or name == SAMPLES
    assert apart[SAMPLES].bytes <= together[SAMPLES].bytes, (
        "where the decoder is the fullest moment, there is no difference"
    )
    assert memory.phases(together[SAMPLES].bytes)[-2] == together[SAMPLES]
