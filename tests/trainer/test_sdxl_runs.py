"""Whole runs of SDXL: what they leave, that they go on to the same bits, and what is refused before they start."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import tiny_sdxl
import torch
from checkpoints import write
from ldm_layout import tensors
from tiny import config, dreambooth, tree
from watching import at_event, events, is_finite, metadata, raw, run_in, same_tensors

from dreambooth.shared.config import load_settings
from dreambooth.trainer import control, run
from dreambooth.trainer.models.convert import load_model
from dreambooth.trainer.planning.plan import make_plan
from dreambooth.trainer.weights import open_weights

UNET, FIRST, SECOND = "model.diffusion_model.", "conditioner.embedders.0.", "conditioner.embedders.1."


def settings(folder: Path, kind: str = "epsilon", **values) -> Path:
    return config(folder, model=str(tiny_sdxl.base(kind)), **values)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run that trains all and went through without a stop."""
    folder = tmp_path_factory.mktemp("sdxl")
    wanted = settings(folder, num_validation_images=1, text_encoder_stop=0.75, random_flip=True)
    assert dreambooth("train", wanted) == 0
    return folder


def test_the_result_is_the_base_with_the_trained_tensors_replaced(finished) -> None:
    base, result = raw(tiny_sdxl.base()), raw(finished / "out" / "sks.safetensors")
    assert list(result) == list(base), "no key lost, none invented"
    assert all(base[name][:2] == result[name][:2] for name in base), "no dtype and no shape changed"
    changed = {name for name in base if base[name] != result[name]}
    assert {name for name in base if name.startswith(UNET)} - changed == set()
    of_first = {name for name in changed if name.startswith(FIRST)}
    assert of_first and not any(".layers.1." in name or "final_layer_norm" in name for name in of_first)
    of_second = {name for name in changed if name.startswith(SECOND)}
    assert f"{SECOND}model.text_projection" in of_second and f"{SECOND}model.ln_final.weight" in of_second
    assert changed == {name for name in changed if name.startswith(UNET)} | of_first | of_second
    assert f"{SECOND}model.logit_scale" not in changed
    assert is_finite(finished / "out" / "sks.safetensors")


def test_the_run_says_what_it_trained_and_made_its_pictures(finished) -> None:
    found = run_in(finished)
    change = json.loads(found.result.read_bytes())["weight_change"]
    assert list(change) == ["unet", "text_encoder", "text_encoder_2"]
    assert all(part["changed"] > 0 for part in change.values())
    (planned,) = events(found, "plan")
    assert planned["trained"] == ["UNet", "text encoder", "second text encoder"]
    assert planned["family"] == "Stable Diffusion XL"
    assert any("VAE works in float32" in note for note in planned["notes"])
    assert {event["step"] for event in events(found, "sample")} >= {4}
    assert not events(found, "warning")
    about = metadata(finished / "out" / "sks.safetensors")
    assert about["modelspec.architecture"] == "stable-diffusion-xl-v1-base"


def test_what_was_written_is_as_large_as_the_plan_said(finished) -> None:
    (planned,) = events(run_in(finished), "plan")
    files = {file["what"].split()[0]: file["size"] for file in planned["files"]}
    assert files["the"] == pytest.approx((finished / "out" / "sks.safetensors").stat().st_size, rel=0.01)
    states = sum(path.stat().st_size for path in run_in(finished).states.rglob("*") if path.is_file())
    assert files["states"] / 2 == pytest.approx(states, rel=0.01), "two at most"


def test_kept_captions_fit_into_what_the_plan_said(tmp_path) -> None:
    wanted = settings(tmp_path, train_text_encoder=False, max_train_steps=1)
    (planned,) = [file for file in make_plan(load_settings(wanted)).files if file.what.startswith("encoded")]
    assert dreambooth("train", wanted) == 0
    cache = sum(path.stat().st_size for path in planned.path.rglob("*") if path.is_file())
    assert cache <= planned.size <= 2.1 * cache


@pytest.mark.parametrize(
    ("event", "fields"),
    [("checkpoint", {"step": 2}), ("progress", {"name": "class images"}), ("progress", {"name": "images"})],
)
def test_a_stopped_run_goes_on_to_the_same_bits(finished, event, fields, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(run, "Inbox", functools.partial(control.Inbox, every=0.0))
    wanted = settings(tmp_path, text_encoder_stop=0.75, random_flip=True, checkpointing_steps=2)
    at_event(monkeypatch, event, lambda found: found.order("stop"), **fields)
    assert dreambooth("train", wanted) == 130
    assert dreambooth("resume", run_in(tmp_path).path) == 0
    assert same_tensors(tmp_path / "out" / "sks.safetensors", finished / "out" / "sks.safetensors")


def test_where_text_encoders_are_not_trained_their_output_is_kept_and_they_stay_byte_for_byte(
    tmp_path, monkeypatch
) -> None:
    wanted = settings(tmp_path, train_text_encoder=False)
    assert dreambooth("train", wanted) == 0
    base, result = raw(tiny_sdxl.base()), raw(tmp_path / "out" / "sks.safetensors")
    assert all(base[name] == result[name] for name in base if not name.startswith(UNET))
    kept = [path for path in (tmp_path / "runs" / "cache").rglob("*") if path.is_file()]
    assert (
        len(kept) == 5 + 2 * 2
    )  # each image's latents; of each of two captions the context and the pooled output


def test_caching_changes_no_bit(tmp_path) -> None:
    folders = [tmp_path / name for name in ("cached", "live")]
    for folder, cached in zip(folders, (True, False), strict=True):
        folder.mkdir()
        wanted = settings(folder, cache_latents=cached, train_text_encoder=False)
        assert dreambooth("train", wanted) == 0
    assert same_tensors(*(folder / "out" / "sks.safetensors" for folder in folders))


def test_a_model_of_zero_terminal_snr_is_trained_as_one_and_its_result_says_so(tmp_path) -> None:
    wanted = settings(tmp_path, "zsnr", snr_gamma=5, prior_loss_weight=0, num_validation_images=1)
    found = make_plan(load_settings(wanted))
    assert any("zero terminal SNR" in note and "has no weight" in note for note in found.notes)
    assert dreambooth("train", wanted) == 0
    result = tmp_path / "out" / "sks.safetensors"
    assert {"v_pred", "ztsnr"} <= set(open_weights(result).tensors)
    assert "VScaling" in result.with_suffix(".yaml").read_text()
    again = load_model(result, components=()).identified
    assert again.prediction_type == "v_prediction" and again.zero_terminal_snr
    assert not events(run_in(tmp_path), "warning")


def test_a_diffusers_folder_can_be_trained_and_be_the_result(tmp_path) -> None:
    folder = tmp_path / "as a folder"
    assert dreambooth("convert", tiny_sdxl.base(), folder) == 0
    wanted = config(
        tmp_path, model=str(folder), output_kind="diffusers", prior_loss_weight=0, train_text_encoder=False
    )
    assert dreambooth("train", wanted) == 0
    assert dreambooth("convert", tmp_path / "out" / "sks", tmp_path / "back.safetensors") == 0
    base, result = raw(tiny_sdxl.base()), raw(tmp_path / "back.safetensors")
    assert list(base) == list(result)
    assert {name for name in base if base[name] != result[name]} == {
        name for name in base if name.startswith(UNET)
    }


def test_a_picture_can_be_made_with_the_result(finished, tmp_path) -> None:
    out = tmp_path / "a.png"
    result = finished / "out" / "sks.safetensors"
    assert (
        dreambooth("generate", result, "photo of sks cat", "--out", out, "--size", "128x64", "--steps", "2")
        == 0
    )
    assert out.stat().st_size > 1000


# ---- what cannot be -----------------------------------------------------------------------------------------------


def with_nine_channels() -> dict[str, torch.Tensor]:
    found = tensors(tiny_sdxl.LAYOUT, dtype=torch.float16)
    name = f"{UNET}input_blocks.0.0.weight"
    return {**found, name: torch.zeros(32, 9, 3, 3, dtype=torch.float16)}


def without(*prefixes: str) -> dict[str, torch.Tensor]:
    found = tensors(tiny_sdxl.LAYOUT, dtype=torch.float16)
    return {name: tensor for name, tensor in found.items() if not name.startswith(prefixes)}


def refiner() -> dict[str, torch.Tensor]:
    found = without(FIRST)
    return {name.replace(SECOND, FIRST): tensor for name, tensor in found.items()}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (with_nine_channels, "inpainting form of Stable Diffusion XL"),
        (refiner, "refiner of Stable Diffusion XL"),
        (lambda: without(FIRST), "only one of its two text encoders"),
        (lambda: without(SECOND), "only one of its two text encoders"),
        (
            lambda: without(f"{SECOND}model.transformer.resblocks.1.mlp."),
            "4 tensors of its second text encoder are missing",
        ),
        (
            lambda: without(f"{SECOND}model.text_projection"),
            "a tensor of its second text encoder is missing, conditioner.embedders.1.model.text_projection",
        ),
    ],
    ids=["inpainting", "refiner", "no first", "no second", "half a second", "no projection"],
)
def test_other_files_are_refused_by_name_and_nothing_is_written(made, expected, tmp_path, capsys) -> None:
    path = write(tmp_path / "other.safetensors", made())
    wanted = config(tmp_path, model=str(path))
    before = tree(tmp_path)
    assert dreambooth("train", wanted) == 2
    said = capsys.readouterr().err
    assert expected in said and "Traceback" not in said
    assert tree(tmp_path) == before


@pytest.mark.parametrize("resolution", [72, 1000, 96])
def test_a_resolution_that_is_no_multiple_of_64_is_one_message(resolution, tmp_path, capsys) -> None:
    before = tree(tmp_path)
    assert dreambooth("train", settings(tmp_path, resolution=resolution)) == 2
    said = capsys.readouterr().err
    assert f"{resolution} is not a multiple of 64" in said and "resolution" in said
    assert set(tree(tmp_path)) - set(before) == {"config.yaml"}
