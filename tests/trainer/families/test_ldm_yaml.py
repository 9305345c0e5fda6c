import pytest
import yaml
from checkpoints import described
from ldm_layout import FULL_SD1, FULL_SD2, SMALL_SD1, SMALL_SD2, shapes

from dreambooth.shared.errors import InputError
from dreambooth.trainer.families import FAMILIES, Identified
from dreambooth.trainer.families.description import describe
from dreambooth.trainer.families.ldm_yaml import needs_yaml, read_yaml, with_parameterization, yaml_text

MINIMAL = """
model:
  params:
    cond_stage_config: {target: x}
    unet_config: {params: {num_heads: 8}}
"""


def identified(family, prediction_type="epsilon"):
    return Identified(FAMILIES[family], prediction_type, "")


def text_of(layout, found):
    return yaml_text(found, describe(described(shapes(layout)), found).configs)


def beside(tmp_path, text):
    (tmp_path / "model.yaml").write_text(text)
    return read_yaml(tmp_path / "model.safetensors")


def test_without_a_file_nothing_is_said(tmp_path):
    assert read_yaml(tmp_path / "model.safetensors") is None


def test_no_parameterization_means_epsilon_as_in_ldm(tmp_path):
    stated = beside(tmp_path, MINIMAL)
    assert stated.prediction_type == "epsilon" and "model.yaml" in stated.told_by
    assert stated.heads(640) == 8 and not stated.last_text_layer


def test_v_heads_by_width_and_the_last_layer_are_read(tmp_path):
    stated = beside(
        tmp_path,
        """
model:
  params:
    parameterization: "v"
    cond_stage_config: {params: {layer: last}}
    unet_config: {params: {num_head_channels: 64}}
""",
    )
    assert (stated.prediction_type, stated.heads(640), stated.last_text_layer) == ("v_prediction", 10, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: [1", "no YAML file"),
        ("just: this", "no model.params"),
        ("a text", "no model.params"),
        (MINIMAL.replace("cond_stage_config", "parameterization: x0\n    cond_stage_config"), "'x0'"),
        (MINIMAL.replace("num_heads: 8", "num_heads: eight"), "num_heads is 'eight'"),
        (MINIMAL.replace("num_heads: 8", "num_heads: 0"), "num_heads is 0"),
        (MINIMAL.replace("unet_config", "other_config"), "no unet_config.params"),
        (MINIMAL + "!!python/object/apply:os.system ['true']", "no YAML file"),
    ],
)
def test_a_broken_config_is_an_error_that_names_it(tmp_path, text, expected):
    with pytest.raises(InputError) as caught:
        beside(tmp_path, text)
    assert expected in caught.value.what and caught.value.where == str(tmp_path / "model.yaml")
    assert caught.value.remedy


def test_only_files_that_the_webui_would_guess_need_one():
    assert needs_yaml(identified("sd2")) and needs_yaml(identified("sd2-inpaint"))
    assert needs_yaml(identified("sd1", "v_prediction"))
    assert not needs_yaml(identified("sd1")) and not needs_yaml(identified("sd1-inpaint"))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("family", "layout"), [("sd1", SMALL_SD1), ("sd2", SMALL_SD2)])
def test_what_is_written_reads_back_as_it_was_meant(tmp_path, family, layout, prediction_type):
    stated = beside(tmp_path, text_of(layout, identified(family, prediction_type)))
    assert stated.prediction_type == prediction_type and not stated.last_text_layer
    assert all(stated.heads(width) == FAMILIES[family].heads(width) for width in (64, 128))


def test_the_published_config_of_the_second_generation_is_written():
    """The values are those of Stability's v2-inference-v.yaml."""
    params = yaml.safe_load(text_of(FULL_SD2, identified("sd2", "v_prediction")))["model"]["params"]
    assert params["parameterization"] == "v" and params["scale_factor"] == 0.18215
    assert (params["linear_start"], params["linear_end"], params["timesteps"]) == (0.00085, 0.012, 1000)
    assert params["conditioning_key"] == "crossattn" and params["use_ema"] is False
    unet = params["unet_config"]["params"]
    assert unet["model_channels"] == 320 and unet["channel_mult"] == [1, 2, 4, 4]
    assert unet["num_head_channels"] == 64 and "num_heads" not in unet and unet["context_dim"] == 1024
    assert unet["use_linear_in_transformer"] is True and set(unet["attention_resolutions"]) == {4, 2, 1}
    assert unet["num_res_blocks"] == 2 and unet["legacy"] is False and unet["use_spatial_transformer"] is True
    vae = params["first_stage_config"]["params"]
    assert (
        vae["embed_dim"] == 4 and vae["ddconfig"]["ch"] == 128 and vae["ddconfig"]["ch_mult"] == [1, 2, 4, 4]
    )
    text = params["cond_stage_config"]
    assert text["target"].endswith("FrozenOpenCLIPEmbedder") and text["params"] == {
        "freeze": True,
        "layer": "penultimate",
    }


def test_the_first_generations_config_names_heads_and_inpainting():
    content = yaml.safe_load(text_of(FULL_SD1, identified("sd1-inpaint", "v_prediction")))["model"]
    assert content["target"].endswith("LatentInpaintDiffusion")
    assert content["params"]["conditioning_key"] == "hybrid" and content["params"]["finetune_keys"] is None
    assert content["params"]["unet_config"]["params"]["num_heads"] == 8
    assert content["params"]["cond_stage_config"]["target"].endswith("FrozenCLIPEmbedder")


def test_another_prediction_type_is_written_into_a_copied_config_and_else_not_a_letter_changes():
    said = MINIMAL + "    # a comment\n"
    assert with_parameterization(said, "epsilon") == said
    changed = yaml.safe_load(with_parameterization(said, "v_prediction"))
    assert changed["model"]["params"].pop("parameterization") == "v"
    assert changed == yaml.safe_load(said)


def test_sizes_that_ldm_cannot_say_are_refused():
    found = identified("sd2")
    configs = describe(described(shapes(SMALL_SD2)), found).configs
    odd = {**configs, "unet": {**configs["unet"], "block_out_channels": (64, 96, 96, 96)}}
    with pytest.raises(InputError, match="no multiples of the first"):
        yaml_text(found, odd)
