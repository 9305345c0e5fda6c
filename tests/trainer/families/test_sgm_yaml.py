import pytest
import yaml
from checkpoints import described
from ldm_layout import FULL_SDXL, shapes

from dreambooth.shared.errors import InputError
from dreambooth.trainer.families import FAMILIES, Identified
from dreambooth.trainer.families.description import describe
from dreambooth.trainer.families.ldm_yaml import needs_yaml, read_yaml, with_parameterization, yaml_text
from dreambooth.trainer.families.sgm_yaml import is_sgm, scaling_of


def identified(prediction_type):
    return Identified(FAMILIES["sdxl"], prediction_type, "")


def text_of(prediction_type):
    found = identified(prediction_type)
    return yaml_text(found, describe(described(shapes(FULL_SDXL)), found).configs)


def beside(tmp_path, text):
    (tmp_path / "model.yaml").write_text(text)
    return read_yaml(tmp_path / "model.safetensors")


def test_only_v_needs_one():
    assert needs_yaml(identified("v_prediction")) and not needs_yaml(identified("epsilon"))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_what_is_written_reads_back_as_it_was_meant(tmp_path, prediction_type):
    stated = beside(tmp_path, text_of(prediction_type))
    assert stated.prediction_type == prediction_type and "model.yaml" in stated.told_by
    assert [stated.heads(width) for width in (320, 640, 1280)] == [5, 10, 20]


def test_the_published_config_is_written():
    """The values are those of Stability's sd_xl_base.yaml, but for the scaling and weighting of v-prediction."""
    model = yaml.safe_load(text_of("v_prediction"))["model"]
    assert model["target"] == "sgm.models.diffusion.DiffusionEngine"
    params = model["params"]
    assert params["scale_factor"] == 0.13025 and params["disable_first_stage_autocast"] is True
    denoiser = params["denoiser_config"]["params"]
    assert denoiser["scaling_config"] == {"target": "sgm.modules.diffusionmodules.denoiser_scaling.VScaling"}
    assert denoiser["weighting_config"]["target"].endswith("denoiser_weighting.VWeighting")
    assert denoiser["num_idx"] == 1000
    assert params["network_config"]["params"] == {
        "adm_in_channels": 2816,
        "num_classes": "sequential",
        "use_checkpoint": False,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "attention_resolutions": [2, 4],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 4],
        "num_head_channels": 64,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "transformer_depth": [1, 2, 10],
        "context_dim": 2048,
        "spatial_transformer_attn_type": "softmax-xformers",
        "legacy": False,
    }
    embedders = params["conditioner_config"]["params"]["emb_models"]
    assert [embedder["input_key"] for embedder in embedders] == [
        "txt",
        "txt",
        "original_size_as_tuple",
        "crop_coords_top_left",
        "target_size_as_tuple",
    ]
    assert embedders[0]["params"] == {"layer": "hidden", "layer_idx": 11}
    assert embedders[1]["params"]["arch"] == "ViT-bigG-14"
    assert all(embedder["params"] == {"outdim": 256} for embedder in embedders[2:])
    vae = params["first_stage_config"]["params"]["ddconfig"]
    assert (vae["ch"], vae["ch_mult"], vae["z_channels"]) == (128, [1, 2, 4, 4], 4)


def test_another_prediction_type_is_written_into_a_copied_config_and_else_not_a_letter_changes():
    said = text_of("epsilon") + "# a comment\n"
    assert with_parameterization(said, "epsilon") == said
    changed = yaml.safe_load(with_parameterization(said, "v_prediction"))
    assert changed == yaml.safe_load(text_of("v_prediction"))


def test_a_scaling_that_is_not_known_is_an_error_that_names_it(tmp_path):
    with pytest.raises(InputError, match="'EDMScaling'; only EpsScaling and VScaling") as caught:
        beside(tmp_path, text_of("epsilon").replace("EpsScaling", "EDMScaling"))
    assert caught.value.where == str(tmp_path / "model.yaml")


def test_a_config_without_a_scaling_is_told_from_one_with_it():
    assert scaling_of({"denoiser_config": {"params": None}}) == ""
    assert is_sgm({"denoiser_config": {}, "network_config": {}}) and not is_sgm({"unet_config": {}})
