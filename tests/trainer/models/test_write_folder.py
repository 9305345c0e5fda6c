import json
import os
import sys
from dataclasses import replace

import pytest
import torch
from checkpoints import same, write
from ldm_layout import TINY_SD1, TINY_SD2, TINY_SDXL, tensors
from safetensors import safe_open
from safetensors.torch import load_file

from dreambooth.trainer.models.convert import canonical_state, convert, load_model

LAYOUTS = {
    "sd1": TINY_SD1,
    "sd1-inpaint": replace(TINY_SD1, in_channels=9),
    "sd2": TINY_SD2,
    "sd2-inpaint": replace(TINY_SD2, in_channels=9),
    "sdxl": TINY_SDXL,
}


def folder_of(tmp_path, layout, prediction_type="epsilon", **options):
    path = write(tmp_path / "a.safetensors", tensors(layout, dtype=torch.float16))
    convert(path, tmp_path / "folder", prediction_type=prediction_type, **options)
    return tmp_path / "folder", path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", LAYOUTS)
def test_diffusers_and_transformers_read_the_folder_with_the_weights_of_the_file(tmp_path, family, caplog):
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    folder, path = folder_of(tmp_path, LAYOUTS[family])
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float16)
    kind = "Inpaint" if "inpaint" in family else "XL" if family == "sdxl" else ""
    assert type(pipeline).__name__ == f"StableDiffusion{kind}Pipeline"
    model = load_model(path, dtype=torch.float16, prediction_type="epsilon")
    for component, module in model.components.items():
        theirs = getattr(pipeline, component)
        module = module.to(torch.float16)  # SDXL's VAE comes in float32
        expected, found = canonical_state(component, module), canonical_state(component, theirs)
        assert found.keys() == expected.keys()
        assert all(same(found[name], expected[name]) for name in expected), component
    assert not [record for record in caplog.records if "newly initialized" in record.getMessage()]
    assert pipeline.unet.config.in_channels == LAYOUTS[family].in_channels
    assert pipeline.vae.config.scaling_factor == (0.13025 if family == "sdxl" else 0.18215)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_their_text_encoder_says_the_same_as_ours(tmp_path, family):
    from transformers.models.clip.modeling_clip import CLIPTextModel

    folder, path = folder_of(tmp_path, LAYOUTS[family])
    theirs = CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32)
    ours = load_model(path, components=("text_encoder",), prediction_type="epsilon").components[
        "text_encoder"
    ]
    ids = torch.randint(1, 99, (2, 77))
    with torch.no_grad():
        expected, found = theirs(input_ids=ids).last_hidden_state, ours(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_their_second_text_encoder_says_and_pools_the_same_as_ours(tmp_path):
    from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

    folder, path = folder_of(tmp_path, TINY_SDXL)
    place = folder / "text_encoder_2"
    theirs = CLIPTextModelWithProjection.from_pretrained(place, torch_dtype=torch.float32)
    ours = load_model(path, components=("text_encoder_2",)).components["text_encoder_2"]
    ids = torch.randint(1, 99, (3, 77))
    for row, end in enumerate((1, 20, 76)):  # the end token is the vocabulary's last
        ids[row, end] = 299
        ids[row, end + 1 :] = 0
    with torch.no_grad():
        expected = theirs(input_ids=ids, output_hidden_states=True)
        found = ours(input_ids=ids, output_hidden_states=True)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.hidden_states[-2], expected.hidden_states[-2], rtol=1e-4, atol=1e-5)
    names = set(load_file(place / "model.safetensors"))
    assert "text_projection.weight" in names and "text_model.final_layer_norm.weight" in names


def test_sdxls_folder_says_what_its_pipelines_need(tmp_path):
    folder, _ = folder_of(tmp_path, TINY_SDXL)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["force_zeros_for_empty_prompt"] is True and "safety_checker" not in index
    assert json.loads((folder / "vae" / "config.json").read_text())["force_upcast"] is True
    assert json.loads((folder / "unet" / "config.json").read_text())["sample_size"] == 128


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "name", "pad"),
    [
        ("sd1", "tokenizer", 49407),
        ("sd2", "tokenizer", 0),
        ("sdxl", "tokenizer", 49407),
        ("sdxl", "tokenizer_2", 0),
    ],
)
def test_their_tokenizer_gives_the_ids_that_the_family_was_trained_with(tmp_path, family, name, pad):
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder_of(tmp_path, LAYOUTS[family])[0] / name)
    ids = tokenizer("photo of a sks dog", padding="max_length", max_length=77).input_ids
    assert ids == [49406, 1125, 539, 320, 48136, 1929, 49407, *[pad] * 70]


def test_the_text_encoders_names_have_the_prefix_that_every_version_reads(tmp_path):
    folder, _ = folder_of(tmp_path, TINY_SD2)
    names = load_file(folder / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in names)
    for component in ("unet", "vae", "text_encoder"):
        (path,) = (folder / component).glob("*.safetensors")
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}  # without it transformers refuses the file


@pytest.mark.parametrize(
    ("family", "prediction_type", "side"),
    [
        ("sd1", "epsilon", 64),
        ("sd1", "v_prediction", 64),
        ("sd2", "epsilon", 64),
        ("sd2", "v_prediction", 96),
        ("sdxl", "v_prediction", 128),
    ],
)
def test_the_scheduler_says_what_the_unet_predicts(tmp_path, family, prediction_type, side):
    folder, _ = folder_of(tmp_path, LAYOUTS[family], prediction_type)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == prediction_type and scheduler["rescale_betas_zero_snr"] is False
    assert (scheduler["beta_start"], scheduler["beta_end"]) == (0.00085, 0.012)
    assert (scheduler["beta_schedule"], scheduler["steps_offset"]) == ("scaled_linear", 1)
    assert json.loads((folder / "unet" / "config.json").read_text())["sample_size"] == side


def test_zero_terminal_snr_is_written_for_the_scheduler(tmp_path):
    path = write(tmp_path / "a.safetensors", tensors(TINY_SD1) | {"ztsnr": torch.ones(1)})
    convert(path, tmp_path / "folder")
    scheduler = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["rescale_betas_zero_snr"] is True and scheduler["timestep_spacing"] == "trailing"


def test_a_dtype_is_written_into_the_config_too(tmp_path):
    folder, _ = folder_of(tmp_path, TINY_SD1, dtype="bfloat16")
    assert json.loads((folder / "text_encoder" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert {
        value.dtype for value in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").values()
    } == {torch.bfloat16}


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX's")
def test_permissions_are_those_of_any_new_file_and_folder(tmp_path):
    folder, _ = folder_of(tmp_path, TINY_SD1)
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "file").touch()
    usual = {
        os.path.isdir: (tmp_path / "usual").stat().st_mode,
        os.path.isfile: (tmp_path / "usual" / "file").stat().st_mode,
    }
    for place in [folder, *folder.rglob("*")]:
        assert place.stat().st_mode == next(mode for kind, mode in usual.items() if kind(place))
