"""Blocks that are computed again hold less memory, and change no bit."""

from __future__ import annotations

import pytest
import tiny
import tiny_sdxl
import torch
from held import Held
from tiny import config, dreambooth
from training_rig import ALL_UNITS, make_rig, tiny_unet
from watching import same_tensors

from dreambooth.shared.config import load_settings, settings_from
from dreambooth.shared.errors import InputError
from dreambooth.shared.settings import Settings, TrainingSettings
from dreambooth.trainer.adapters.layers import Adapted
from dreambooth.trainer.models.checkpointing import (
    again,
    checkpoint_units,
    checkpointable_units,
    count_units,
    draws,
    units_of,
    wanted,
    with_checkpointing,
)
from dreambooth.trainer.models.convert import load_model


def unet_of_sd1s_form(width: int = 32) -> torch.nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(1)
    return UNet2DConditionModel(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width), cross_attention_dim=32, norm_num_groups=8
    )


def predicted(unet: torch.nn.Module, side: int = 16) -> torch.Tensor:
    torch.manual_seed(2)
    context = torch.randn(1, 77, 32)
    return unet(torch.randn(1, 4, side, side), torch.tensor([7]), context, return_dict=False)[0]


def gradients(unet: torch.nn.Module) -> list[torch.Tensor]:
    unet.zero_grad()
    predicted(unet).square().mean().backward()
    return [parameter.grad.clone() for parameter in unet.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_transformer_blocks_of_the_largest_resolution_come_first() -> None:
    paths = [unit.path for unit in checkpointable_units(unet_of_sd1s_form())]
    assert len(paths) == 16 + 21  # transformer blocks; residual blocks without the middle's first
    assert all(
        "transformer_blocks" in path and path.startswith(("down_blocks.0", "up_blocks.3"))
        for path in paths[:5]
    )
    assert paths[-1] in ("mid_block.resnets.1", "down_blocks.3.resnets.0", "down_blocks.3.resnets.1")


def test_a_unit_holds_what_it_is_said_to_hold() -> None:
    unet, side, found = unet_of_sd1s_form(), 64, {}
    with Held() as held:
        for unit in checkpointable_units(unet):
            unit.module.register_forward_pre_hook(lambda *_, path=unit.path: found.update({path: -held.now}))
            unit.module.register_forward_hook(
                lambda *_, path=unit.path: found.update({path: found[path] + held.now})
            )
        prediction = predicted(unet, side)
    assert prediction.requires_grad
    for unit in checkpointable_units(unet):
        assert found[unit.path] == pytest.approx(4 * unit.holds * side**2, rel=0.2), unit.path


def test_each_further_unit_holds_less_and_no_gradient_changes() -> None:
    unet = tiny_unet()
    kept, all_units = [], len(checkpointable_units(unet))
    plain = gradients(unet)
    for count in range(all_units + 1):
        checkpoint_units(unet, count)
        with Held() as held:
            loss = predicted(unet).square().mean()
            kept.append(held.now)
        loss.backward()
        assert same(gradients(unet), plain), count
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == len(kept)
    assert kept[-1] < kept[0] / 2


def test_it_can_be_switched_on_and_off_in_a_living_run(tmp_path) -> None:
    """With all that looks at gradients: the step within the backward pass, and a text encoder."""
    bits = []
    for counts in ((0, 0, 0), (ALL_UNITS, 3, 0)):
        rig = make_rig(
            tmp_path,
            trained=("unet", "text_encoder"),
            training=TrainingSettings(learning_rate=1e-3, fused_backward="yes"),
        )
        for step, count in enumerate(counts):
            checkpoint_units(rig.model.components["unet"], count)
            rig.train(step, step + 1)
        bits.append(rig.bits())
    assert bits[0].keys() == bits[1].keys()
    assert all(torch.equal(bits[0][name], bits[1][name]) for name in bits[0])


def test_autocast_is_the_same_the_second_time() -> None:
    unet, found = tiny_unet(), []
    for count in (0, ALL_UNITS):
        checkpoint_units(unet, count)
        with torch.autocast("cpu", torch.bfloat16):
            loss = predicted(unet).square().mean()
        unet.zero_grad()
        loss.backward()
        found.append([parameter.grad.clone() for parameter in unet.parameters()])
    assert same(*found)


def test_what_is_dropped_is_the_same_the_second_time() -> None:
    layer = Adapted(
        torch.nn.Linear(8, 8), "lora", {"lora_down.weight": torch.randn(2, 8), "lora_up.weight": torch.randn(8, 2)}, 1.0,
        dropout=0.5,
    )  # fmt: skip
    assert draws(layer) and not draws(torch.nn.Linear(8, 8)) and draws(torch.nn.Dropout(0.1))
    x = torch.randn(16, 8, requires_grad=True)
    found = []
    for run in (layer, lambda x: again(layer, x, keep_random_state=draws(layer))):
        torch.manual_seed(5)
        x.grad = None
        run(x).square().sum().backward()
        found.append(x.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("base", [tiny.base, tiny_sdxl.base], ids=["sd1", "sdxl"])
def test_units_are_counted_from_names_as_they_are_in_the_model(base) -> None:
    model = load_model(base(), components=("unet",))
    unet = model.components["unet"]
    assert units_of(model) == len(checkpointable_units(unet)) > 5
    assert count_units(name for name, _ in unet.named_parameters()) == units_of(model)


def resolved(asked: str) -> str:
    settings = Settings(training=TrainingSettings(gradient_checkpointing=asked))
    return with_checkpointing(
        settings, load_model(tiny.base(), components=())
    ).training.gradient_checkpointing


def test_the_setting_comes_to_none_all_or_a_number() -> None:
    most = units_of(load_model(tiny.base(), components=()))
    assert [resolved(asked) for asked in ("auto", "no", "0", "yes", str(most), "3")] == [
        "no", "no", "no", "yes", "yes", "3",
    ]  # fmt: skip
    assert wanted("3", most) == 3 and wanted("yes", most) == most
    with pytest.raises(InputError, match=f"{most} blocks") as caught:
        resolved(str(most + 1))
    assert caught.value.where == "gradient_checkpointing"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("true", "yes"),
        ("True", "yes"),
        ("on", "yes"),
        ("false", "no"),
        ("off", "no"),
        ("YES", "yes"),
        ("12", "12"),
    ],
)
def test_files_from_when_it_was_a_truth_value_are_read(written: str, read: str, tmp_path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(f"gradient_checkpointing: {written}\n", encoding="utf-8")
    assert load_settings(path).training.gradient_checkpointing == read


@pytest.mark.parametrize("wrong", ["-1", "1.5", "most", "12345"])
def test_what_is_no_number_of_blocks_is_refused(wrong: str) -> None:
    with pytest.raises(InputError, match="gradient_checkpointing"):
        settings_from({"gradient_checkpointing": wrong}, where="")


def test_a_run_with_some_blocks_gives_the_bits_of_a_run_with_none(tmp_path) -> None:
    for asked in ("no", "4"):
        (tmp_path / asked).mkdir()
        assert dreambooth("train", config(tmp_path / asked, gradient_checkpointing=asked)) == 0
    assert same_tensors(*(tmp_path / asked / "out" / "sks.safetensors" for asked in ("no", "4")))
