import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from checkpoints import same, write
from ldm_layout import SCHEDULE, TINY_SD1, TINY_SD2, TINY_SDXL, tensors

from dreambooth.shared.errors import DreamboothError, InputError
from dreambooth.trainer.families.names import ema_name
from dreambooth.trainer.models.convert import canonical_state, convert, export_single_file, load_model
from dreambooth.trainer.models.place_base import BASE, CLIP_CONFIG
from dreambooth.trainer.weights import open_weights
from dreambooth.trainer.weights.base import file_sha256

UNET, TEXT = "model.diffusion_model.", "cond_stage_model."
TRAINED = ("unet", "text_encoder", "text_encoder_2")


def extended(weights):
    """A file with what real ones hold besides."""
    return {
        "unknown.thing": torch.arange(3.0),
        **weights,
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(5, dtype=torch.int32),
        **{ema_name(name): value + 1 for name, value in weights.items() if name.startswith(UNET)},
    }


def changed(model, by=1.0):
    """The trained components' tensors, each moved by a constant."""
    return {
        component: {
            name: value + by
            for name, value in canonical_state(component, model.components[component]).items()
        }
        for component in TRAINED
        if component in model.components
    }


def export(dst, model, trained, *, dtype=torch.float32, metadata=None, overwrite=False):
    return export_single_file(
        dst, model, trained, output_dtype=dtype, metadata=metadata or {}, overwrite=overwrite
    )


def read(path):
    file = open_weights(path)
    return {name: file.read(name) for name in file.tensors}


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("layout", [TINY_SD1, TINY_SD2, TINY_SDXL])
def test_what_was_trained_is_replaced_and_everything_else_is_the_bases(tmp_path, layout, suffix):
    weights = extended(tensors(layout))
    base = write(
        tmp_path / f"base{suffix}", weights, extras={"global_step": 3} if suffix == ".ckpt" else None
    )
    model = load_model(base, prediction_type="epsilon")
    written = export(tmp_path / f"out{suffix}", model, changed(model))
    found = read(written.path)
    kept = {name: value for name, value in weights.items() if not name.startswith("model_ema.")}
    assert list(found) == list(kept)
    bound = {
        binding.original
        for component, bindings in model.description.bindings.items()
        for binding in bindings
        if component in TRAINED
    }
    for name, value in kept.items():
        expected = value + 1.0 if name in bound else value
        assert same(found[name], expected), name
    if suffix == ".ckpt":
        assert open_weights(written.path).extras == {"global_step": 3}


def test_exporting_nothing_trained_gives_the_base_bit_for_bit(tmp_path):
    weights = tensors(TINY_SD1, dtype=torch.float16)
    model = load_model(write(tmp_path / "base.safetensors", weights), dtype=torch.float32)
    states = {name: canonical_state(name, module) for name, module in model.components.items()}
    for trained in ({}, states):
        found = read(
            export(tmp_path / "out.safetensors", model, trained, dtype=torch.float16, overwrite=True).path
        )
        assert all(same(found[name], value) for name, value in weights.items()) and len(found) == len(weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_take_the_dtype_and_buffers_integers_and_unknown_tensors_never_do(tmp_path, dtype):
    weights = extended(tensors(TINY_SD2))
    model = load_model(write(tmp_path / "base.safetensors", weights), prediction_type="epsilon")
    found = read(export(tmp_path / "out.safetensors", model, changed(model), dtype=dtype).path)
    untouched = {"unknown.thing", *SCHEDULE}
    for name, value in found.items():
        assert value.dtype == (torch.float32 if name in untouched else dtype)
    assert same(
        found["first_stage_model.decoder.conv_in.weight"],
        weights["first_stage_model.decoder.conv_in.weight"].to(dtype),
    )
    assert same(found["unknown.thing"], weights["unknown.thing"])
    trained = changed(model)["unet"]["conv_in.weight"]
    assert same(found[UNET + "input_blocks.0.0.weight"], trained.to(dtype))


def test_the_position_ids_stay_integers(tmp_path):
    model = load_model(write(tmp_path / "base.safetensors", tensors(TINY_SD1)))
    found = read(export(tmp_path / "out.safetensors", model, {}, dtype=torch.float16).path)
    name = TEXT + "transformer.text_model.embeddings.position_ids"
    assert same(found[name], torch.arange(77)[None])


def test_the_old_names_of_the_base_are_kept(tmp_path):
    weights = {
        name.replace("transformer.text_model.", "transformer."): value
        for name, value in tensors(TINY_SD1).items()
    }
    model = load_model(write(tmp_path / "base.safetensors", weights))
    assert list(read(export(tmp_path / "out.safetensors", model, changed(model)).path)) == list(weights)


def test_averaged_weights_that_were_left_out_are_said(tmp_path):
    model = load_model(write(tmp_path / "base.safetensors", extended(tensors(TINY_SD1))))
    written = export(tmp_path / "out.safetensors", model, {})
    assert "averaged (EMA)" in written.notes[0]
    assert open_weights(written.path).metadata["dreambooth.ema"] == written.notes[0]
    plain = load_model(write(tmp_path / "plain.safetensors", tensors(TINY_SD1)))
    written = export(tmp_path / "out.safetensors", plain, {}, overwrite=True)
    assert written.notes == () and "dreambooth.ema" not in open_weights(written.path).metadata


def test_a_base_that_was_loaded_with_its_averaged_weights_is_written_with_them(tmp_path):
    weights = extended(tensors(TINY_SD1))
    model = load_model(write(tmp_path / "base.safetensors", weights), use_ema_weights=True)
    found = read(export(tmp_path / "out.safetensors", model, {}).path)
    assert same(found[UNET + "out.2.bias"], weights[UNET + "out.2.bias"] + 1)
    assert not any(name.startswith("model_ema.") for name in found)


def test_another_vae_is_used_but_never_written(tmp_path):
    weights = tensors(TINY_SD1)
    other = write(tmp_path / "other.safetensors", tensors(TINY_SD1, seed=9))
    model = load_model(write(tmp_path / "base.safetensors", weights), vae=other)
    found = read(export(tmp_path / "out.safetensors", model, changed(model)).path)
    assert all(
        same(found[name], value) for name, value in weights.items() if name.startswith("first_stage_model.")
    )


def test_names_that_the_base_has_not_are_a_fault_of_the_program(tmp_path):
    model = load_model(write(tmp_path / "base.safetensors", tensors(TINY_SD2)), prediction_type="epsilon")
    with pytest.raises(DreamboothError, match="conv_inn"):
        export(tmp_path / "out.safetensors", model, {"unet": {"conv_inn.weight": torch.ones(1)}})
    part = {"encoder.layers.0.self_attn.q_proj.weight": torch.ones(64, 64)}
    with pytest.raises(DreamboothError, match="k_proj"):
        export(tmp_path / "out.safetensors", model, {"text_encoder": part})


def test_metadata_names_the_base_and_what_the_caller_says_wins(tmp_path):
    about = {
        "modelspec.license": "CC0",
        "modelspec.resolution": "64x64",
        "ss_steps": "7",
        "modelspec.title": "old",
    }
    base = write(tmp_path / "base.safetensors", tensors(TINY_SD1), about)
    said = {"modelspec.date": "2026-01-01T00:00:00Z", "dreambooth.run_id": "abc"}
    found = open_weights(
        export(tmp_path / "mine.safetensors", load_model(base), {}, metadata=said).path
    ).metadata
    assert found == {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.title": "mine",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "epsilon",
        "modelspec.date": "2026-01-01T00:00:00Z",
        "modelspec.license": "CC0",
        "dreambooth.base": "base.safetensors",
        "dreambooth.base_sha256": file_sha256(base),
        "dreambooth.run_id": "abc",
    }


def test_an_existing_file_is_left_alone_unless_overwriting_is_asked_for(tmp_path):
    model = load_model(write(tmp_path / "base.safetensors", tensors(TINY_SD1)))
    (tmp_path / "out.safetensors").write_bytes(b"precious")
    with pytest.raises(InputError, match="exists already"):
        export(tmp_path / "out.safetensors", model, {})
    assert (tmp_path / "out.safetensors").read_bytes() == b"precious"


def yaml_of(path):
    return path.with_suffix(".yaml")


def test_a_yaml_stands_beside_every_result_that_the_webui_would_guess(tmp_path):
    sd1 = write(tmp_path / "sd1.safetensors", tensors(TINY_SD1))
    sd2 = write(tmp_path / "sd2.safetensors", tensors(TINY_SD2))
    plain = export(tmp_path / "a.safetensors", load_model(sd1), {})
    assert plain.beside == () and not yaml_of(plain.path).exists()
    for source, prediction_type, line in (
        (sd1, "v_prediction", "v"),
        (sd2, "epsilon", "eps"),
        (sd2, "v_prediction", "v"),
    ):
        model = load_model(source, prediction_type=prediction_type)
        written = export(tmp_path / "b.safetensors", model, {}, overwrite=True)
        assert written.beside == (yaml_of(written.path),)
        assert f"parameterization: {line}\n" in written.beside[0].read_text()
        again = load_model(written.path, components=()).identified
        assert again.prediction_type == prediction_type and "b.yaml" in again.told_by


def test_the_bases_yaml_is_copied_with_what_a_setting_changes(tmp_path):
    base = write(tmp_path / "base.safetensors", tensors(TINY_SD1))
    text = "# mine\nmodel: {params: {cond_stage_config: {}, unet_config: {params: {num_heads: 4}}}}\n"
    yaml_of(base).write_text(text)
    assert export(tmp_path / "a.safetensors", load_model(base), {}).beside[0].read_text() == text
    model = load_model(base, prediction_type="v_prediction")
    written = export(tmp_path / "b.safetensors", model, {})
    assert load_model(written.path, components=()).identified.prediction_type == "v_prediction"
    assert load_model(written.path, components=()).configs["unet"]["attention_head_dim"] == 4


def test_a_yaml_of_somebody_else_is_not_replaced(tmp_path):
    model = load_model(
        write(tmp_path / "base.safetensors", tensors(TINY_SD2)), prediction_type="v_prediction"
    )
    (tmp_path / "out.yaml").write_text("theirs: true\n")
    with pytest.raises(InputError, match=r"another \.yaml has this name") as caught:
        export(tmp_path / "out.safetensors", model, {})
    assert caught.value.where == str(tmp_path / "out.yaml")
    assert not (tmp_path / "out.safetensors").exists()
    assert (tmp_path / "out.yaml").read_text() == "theirs: true\n"
    (tmp_path / "out.safetensors").touch()
    with pytest.raises(InputError, match=r"another \.yaml has this name"):
        export(tmp_path / "out.safetensors", model, {}, overwrite=True)  # of a training's settings, say
    assert (tmp_path / "out.yaml").read_text() == "theirs: true\n"


def test_the_bases_own_yaml_is_not_replaced_even_when_asked(tmp_path):
    base = write(tmp_path / "m.ckpt", tensors(TINY_SD2))
    beside = base.with_suffix(".yaml")
    made = export(tmp_path / "made.safetensors", load_model(base, prediction_type="epsilon"), {})
    shutil.copyfile(made.beside[0], beside)
    text = beside.read_bytes()
    model = load_model(base, prediction_type="v_prediction")
    (tmp_path / "m.safetensors").touch()
    with pytest.raises(InputError, match="base model's own") as refused:
        export(tmp_path / "m.safetensors", model, {}, overwrite=True)
    assert refused.value.where == str(beside) and beside.read_bytes() == text


def test_a_failed_export_leaves_no_yaml_behind(tmp_path, monkeypatch):
    model = load_model(write(tmp_path / "base.safetensors", tensors(TINY_SD2)), prediction_type="epsilon")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DreamboothError, match="disk is full"):
        export(tmp_path / "out.safetensors", model, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors"]


def test_a_folder_is_a_base_like_any_other(tmp_path):
    weights = tensors(TINY_SD2)
    convert(
        write(tmp_path / "base.safetensors", weights), tmp_path / "folder", prediction_type="v_prediction"
    )
    model = load_model(tmp_path / "folder")
    written = export(tmp_path / "out.safetensors", model, changed(model))
    found = read(written.path)
    assert list(found) == list(weights) and model.identified.prediction_type == "v_prediction"
    assert same(found[UNET + "out.2.bias"], weights[UNET + "out.2.bias"] + 1)
    about = open_weights(written.path).metadata
    assert about["dreambooth.base"] == "folder" and "dreambooth.base_sha256" not in about
    assert json.dumps(about)


def test_a_base_without_a_layer_of_its_own_is_not_given_one(tmp_path):
    weights = tensors(replace(TINY_SD2, text_layers=3))
    weights = {
        name: value
        for name, value in weights.items()
        if not name.endswith(("text_projection", "logit_scale"))
    }
    model = load_model(write(tmp_path / "base.safetensors", weights), prediction_type="epsilon")
    assert model.configs["text_encoder"]["num_hidden_layers"] == 3
    assert list(read(export(tmp_path / "out.safetensors", model, changed(model)).path)) == list(weights)


def test_a_trained_v_sdxl_has_its_marks_and_its_yaml(tmp_path):
    base = write(tmp_path / "base.safetensors", tensors(TINY_SDXL) | {"ztsnr": torch.empty(0)})
    model = load_model(base)
    written = export(tmp_path / "out.safetensors", model, changed(model), dtype=torch.float16)
    found = read(written.path)
    assert {"v_pred", "ztsnr"} <= set(found) and set(found) - {"v_pred"} == set(read(base))
    assert [path.name for path in written.beside] == ["out.yaml"]
    assert {value.dtype for name, value in found.items() if name.startswith("conditioner.")} == {
        torch.float16,
        torch.int64,
    }
    again = load_model(written.path, components=()).identified
    assert again.prediction_type == "v_prediction" and again.zero_terminal_snr


def test_an_epsilon_sdxl_needs_neither_marks_nor_yaml(tmp_path):
    model = load_model(write(tmp_path / "base.safetensors", tensors(TINY_SDXL)))
    written = export(tmp_path / "out.safetensors", model, changed(model))
    assert not written.beside and not {"v_pred", "ztsnr"} & set(read(written.path))
    metadata = open_weights(written.path).metadata
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert metadata["modelspec.resolution"] == "1024x1024"
    assert metadata["modelspec.implementation"].endswith("generative-models")


def test_what_is_made_straight_from_the_small_base_has_the_folder_that_its_yaml_names(tmp_path):
    folder = tmp_path / "Modelle für alle"
    folder.mkdir()
    model = load_model(BASE, components=())
    for name in ("a", "a-2"):
        written = export(folder / f"{name}.safetensors", model, {}, dtype=torch.float16)
        assert written.beside == (folder / f"{name}.yaml",)
        about = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
        named = about["model"]["params"]["cond_stage_config"]["params"]["version"]
        assert named == (folder / "small-base-clip").as_posix(), "one for all of them"
    assert (folder / "small-base-clip" / "config.json").read_bytes() == CLIP_CONFIG.read_bytes()
    assert (folder / "small-base-clip" / "vocab.json").is_file()
    assert (folder / "a.yaml").read_bytes() == (folder / "a-2.yaml").read_bytes()
