"""Weights in the precision in which they are written: what has no room in it is refused, not written as infinite."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from checkpoints import write
from ldm_layout import TINY_SD1, tensors
from safetensors.torch import load_file
from tiny import config, dreambooth
from watching import run_in

from dreambooth.trainer.models.convert import convert
from dreambooth.trainer.weights.casting import Overflow, is_finite, narrowed

WEIGHT = "model.diffusion_model.out.2.weight"


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
@pytest.mark.parametrize(
    ("values", "expected"), (([], True), ([1.0, -2], True), ([1, math.nan], False), ([-math.inf, 1], False))
)
def test_a_number_that_is_none_is_found(values, expected, dtype) -> None:
    assert is_finite(torch.tensor(values, dtype=dtype)) == expected


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_of_all_numbers_of_two_bytes_those_that_are_none_are_found(dtype) -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    finite = torch.isfinite(every)
    assert is_finite(every[finite])
    assert not any(is_finite(number) for number in every[~finite])


def test_what_has_no_room_is_refused_and_what_was_infinite_before_is_as_it_was() -> None:
    for large in (65_520.0, -1e5):
        with pytest.raises(Overflow, match="a holds numbers that are too large for float16"):
            narrowed("a", torch.tensor([1, large]), torch.float16)
    with pytest.raises(Overflow):
        narrowed("a", torch.tensor([math.inf, 1e5]), torch.float16)
    assert narrowed("a", torch.tensor([65_504.0]), torch.float16).tolist() == [65_504]
    assert narrowed("a", torch.tensor([math.inf]), torch.float16).tolist() == [math.inf]
    assert narrowed("a", torch.tensor([1e5]), torch.float32).tolist() == [1e5]


@pytest.mark.parametrize("name", ("out.safetensors", "out.ckpt", "folder"))
def test_a_checkpoint_that_does_not_fit_is_not_written(name, tmp_path) -> None:
    weights = tensors(TINY_SD1, dtype=torch.float32)
    weights[WEIGHT] = torch.full_like(weights[WEIGHT], 1e5)
    path = write(tmp_path / "base.safetensors", weights)
    with pytest.raises(Overflow, match=rf"{WEIGHT} holds numbers .* float16") as refused:
        convert(path, tmp_path / name, dtype="float16")
    assert refused.value.exit_code == 2 and "--dtype float32 or bfloat16" in refused.value.remedy
    assert [place.name for place in tmp_path.iterdir()] == ["base.safetensors"]
    convert(path, tmp_path / name, dtype="bfloat16")


def test_a_checkpoint_that_is_broken_already_is_converted_as_it_is(tmp_path) -> None:
    weights = tensors(TINY_SD1, dtype=torch.float32)
    weights[WEIGHT] = torch.full_like(weights[WEIGHT], math.nan)
    path = write(tmp_path / "base.safetensors", weights)
    convert(path, tmp_path / "out.safetensors", dtype="float16")
    assert load_file(tmp_path / "out.safetensors")[WEIGHT].isnan().all()


def test_a_run_whose_result_does_not_fit_writes_it_once_its_precision_is_another(tmp_path, capsys) -> None:
    found = tiny.tensors(dtype=torch.float32)
    unused = "first_stage_model.decoder.conv_out.bias"  # no picture is made
    found[unused] = torch.full_like(found[unused], 1e5)
    base = tiny.save(found, tmp_path / "base.safetensors")
    settings = config(
        tmp_path, model=str(base), max_train_steps=1, prior_loss_weight=0, train_text_encoder=False
    )
    assert dreambooth("train", settings) == 1
    said, run = capsys.readouterr().err, run_in(tmp_path)
    assert f"output_dtype: {unused} holds numbers that are too large for float16\n" in said
    assert f"set output_dtype: float32 in {run.config}; then" in said
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".claimed-by-a-run"]
    assert dreambooth("export", run.path) == 1
    capsys.readouterr()
    text = run.config.read_text(encoding="utf-8")
    run.config.write_text(text.replace("output_dtype: float16", "output_dtype: float32"), encoding="utf-8")
    assert dreambooth("resume", run.path) == 0
    assert torch.equal(load_file(tmp_path / "out" / "sks.safetensors")[unused], found[unused])
