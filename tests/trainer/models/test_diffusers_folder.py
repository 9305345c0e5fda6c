import json
import shutil

import pytest
import torch
from checkpoints import same, write
from ldm_layout import TINY_SD1, TINY_SD2, TINY_SDXL, tensors
from safetensors.torch import load_file, save_file

from dreambooth.shared.errors import InputError
from dreambooth.trainer.models.convert import canonical_state, convert, load_model
from dreambooth.trainer.models.diffusers_folder import EXTRAS, open_folder
from dreambooth.trainer.weights import open_weights

UNET = "model.diffusion_model."


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def weights(request):
    found = tensors({"sd1": TINY_SD1, "sd2": TINY_SD2, "sdxl": TINY_SDXL}[request.param])
    return {**found, "v_pred": torch.empty(0)} if request.param == "sdxl" else found


@pytest.fixture
def folder(tmp_path, weights):
    convert(write(tmp_path / "a.safetensors", weights), tmp_path / "folder", prediction_type="v_prediction")
    return tmp_path / "folder"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def text_encoder(folder):
    return folder / "text_encoder" / "model.safetensors"


def test_a_folder_reads_like_the_file_it_was_made_from(folder, weights):
    found = open_folder(folder)
    assert found.format == "diffusers" and list(found.tensors) == list(weights)
    assert all(same(found.read(name), value) for name, value in weights.items())
    name = UNET + "out.2.weight"
    out = torch.empty(weights[name].shape, dtype=torch.float16)
    found.read_into(name, out)
    assert torch.equal(out, weights[name].half())


def test_a_folder_of_somebody_else_has_no_side_file_and_keeps_what_it_has(folder, weights):
    (folder / EXTRAS).unlink()
    found = load_model(folder, prediction_type="auto")
    assert found.identified.prediction_type == "v_prediction"
    kept = [name for name in weights if name in found.source.tensors]
    assert all(same(found.source.read(name), weights[name]) for name in kept)
    lost = set(weights) - set(kept)
    assert not found.description.missing and not any(name.startswith((UNET, "first_stage")) for name in lost)


@pytest.mark.parametrize("prefixed", [True, False])
def test_text_encoders_of_every_version_of_transformers_load(folder, weights, prefixed):
    expected = canonical_state("text_encoder", load_model(folder).components["text_encoder"])
    state = {
        name.removeprefix("text_model."): value for name, value in load_file(text_encoder(folder)).items()
    }
    if prefixed:
        state = {f"text_model.{name}": value for name, value in state.items()}
        state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(state, text_encoder(folder), metadata={"format": "pt"})
    found = canonical_state("text_encoder", load_model(folder).components["text_encoder"])
    assert found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in expected)


def test_old_names_of_the_vaes_attention_load(folder, weights):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = {}
    for name, value in load_file(path).items():
        for new, was in old.items():
            name = name.replace(new, was)
        state[name] = value
    assert sum(".query." in name for name in state) == 4
    save_file(state, path, metadata={"format": "pt"})
    found = open_folder(folder)
    assert all(same(found.read(name), weights[name]) for name in weights)


def test_bin_files_and_fp16_variants_are_read(folder, weights):
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(vae), vae.with_suffix(".bin"))
    vae.unlink()
    text = text_encoder(folder)
    torch.save(load_file(text), text.with_name("pytorch_model.bin"))
    text.unlink()
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_suffix(".fp16.safetensors"))
    found = open_folder(folder)
    assert all(same(found.read(name), weights[name]) for name in weights)


def test_a_component_that_was_trained_elsewhere_since_is_what_is_read(folder, weights):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: (value + 1).half() for name, value in load_file(path).items()}, path)
    found = open_folder(folder)
    assert same(found.read(UNET + "out.2.bias"), (weights[UNET + "out.2.bias"] + 1).half())
    assert list(found.tensors) == list(weights)


def test_heads_come_from_the_config(folder, weights):
    edit(folder / "unet" / "config.json", lambda config: config.update(attention_head_dim=2))
    assert load_model(folder, components=()).configs["unet"]["attention_head_dim"] == 2


def test_zero_terminal_snr_is_read_from_the_scheduler(folder, weights):
    place = folder / "scheduler" / "scheduler_config.json"
    edit(place, lambda config: config.update(rescale_betas_zero_snr=True))
    found = load_model(folder, components=()).identified
    assert found.zero_terminal_snr and "scheduler" in found.told_by


def refused(folder):
    with pytest.raises(InputError) as caught:
        load_model(folder, components=())
    return f"{caught.value.where}: {caught.value.what}"


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        (
            "model_index.json",
            lambda c: c.update(text_encoder=[None, None], text_encoder_2=["transformers", "a"]),
            "the refiner of Stable Diffusion XL",
        ),
        (
            "model_index.json",
            lambda c: [c.pop("unet"), c.update(_class_name="FluxPipeline")],
            "holds a FluxPipeline, which is not supported",
        ),
        ("unet/config.json", lambda c: c.update(down_block_types=["AttnDownBlock2D"] * 2), "AttnDownBlock2D"),
        ("unet/config.json", lambda c: c.pop("cross_attention_dim"), "lacks cross_attention_dim"),
        ("vae/config.json", lambda c: c.update(down_block_types=["Odd"]), "Odd"),
        ("text_encoder/config.json", lambda c: c.update(hidden_act="relu"), "relu"),
        ("scheduler/scheduler_config.json", lambda c: c.update(prediction_type="sample"), "'sample'"),
        ("unet/config.json", lambda c: c.update(layers_per_block=2), "it has no model.diffusion_model"),
    ],
)
def test_a_folder_of_another_kind_is_refused_with_its_reason(folder, weights, file, change, expected):
    edit(folder / file, change)
    assert expected in refused(folder)


def test_the_inpainting_form_of_sdxl_is_refused_by_name(tmp_path):
    convert(write(tmp_path / "a.safetensors", tensors(TINY_SDXL)), tmp_path / "folder")
    unet = tmp_path / "folder" / "unet"
    edit(unet / "config.json", lambda config: config.update(in_channels=9))
    weights = load_file(unet / "diffusion_pytorch_model.safetensors")
    weights["conv_in.weight"] = torch.zeros(32, 9, 3, 3)
    save_file(weights, unet / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    assert "inpainting form of Stable Diffusion XL" in refused(tmp_path / "folder")


def test_half_of_the_text_encoders_is_one_message(tmp_path):
    convert(write(tmp_path / "a.safetensors", tensors(TINY_SDXL)), tmp_path / "folder")
    shutil.rmtree(tmp_path / "folder" / "text_encoder_2")
    assert "text_encoder_2" in refused(tmp_path / "folder")


@pytest.mark.parametrize("file", ["unet/config.json", "vae/config.json", "text_encoder/config.json"])
def test_missing_and_broken_configs_are_named(folder, weights, file):
    (folder / file).write_text("{")
    assert str(folder / file) in refused(folder)
    (folder / file).unlink()
    assert str(folder / file) in refused(folder)


def test_missing_weights_are_named(folder, weights):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert "holds no weights" in refused(folder) and "unet" in refused(folder)


def test_a_damaged_side_file_is_named_with_the_way_out(folder, weights):
    save_file({"x": torch.ones(1)}, folder / EXTRAS)
    assert "side file is damaged" in refused(folder)
    (folder / EXTRAS).unlink()
    load_model(folder, components=())


def test_the_side_file_holds_only_what_the_folder_cannot(folder, weights):
    kept = set(open_weights(folder / EXTRAS).tensors)
    assert kept and not any(name.startswith((UNET, "first_stage_model.")) for name in kept)
