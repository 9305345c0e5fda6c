from dataclasses import replace

import pytest
import torch
from checkpoints import described
from ldm_layout import SMALL_SD1, SMALL_SD2, SMALL_SDXL, shapes

from dreambooth.shared.errors import InputError
from dreambooth.trainer.families import FAMILIES, Identified
from dreambooth.trainer.families.detect import identify, is_false_mark, marks_of
from dreambooth.trainer.families.ldm_yaml import Stated

SD1, SD2, SDXL = shapes(SMALL_SD1), shapes(SMALL_SD2), shapes(SMALL_SDXL)
MARK = {"v_pred": torch.ones(1)}
SAYS_V = Stated("the file a.yaml beside it says so", prediction_type="v_prediction")
SAYS_EPSILON = replace(SAYS_V, prediction_type="epsilon")


def never():
    raise AssertionError("the UNet was run")


@pytest.mark.parametrize(
    ("layout", "family"),
    [
        (SMALL_SD1, "sd1"),
        (replace(SMALL_SD1, in_channels=9), "sd1-inpaint"),
        (SMALL_SD2, "sd2"),
        (replace(SMALL_SD2, in_channels=9), "sd2-inpaint"),
        (SMALL_SDXL, "sdxl"),
    ],
)
def test_the_family_is_told_by_text_encoder_and_channels(layout, family):
    assert identify(described(shapes(layout))).family.name == family


def test_the_old_names_of_the_text_encoder_are_known():
    for wanted, family in ((SD1, "sd1"), (SDXL, "sdxl")):
        old = {
            name.replace("transformer.text_model.", "transformer."): shape for name, shape in wanted.items()
        }
        assert identify(described(old)).family.name == family


def test_each_source_of_the_prediction_type_wins_over_the_next():
    v, eps = {"modelspec.prediction_type": "v"}, {"modelspec.prediction_type": "epsilon"}
    marked = described(SD2, v, **MARK)
    cases = [
        (identify(marked, "epsilon", stated=SAYS_V, probe=never), "epsilon", "setting"),
        (identify(marked, stated=SAYS_EPSILON, probe=never), "epsilon", "a.yaml"),
        (identify(described(SD2, eps, **MARK), probe=never), "epsilon", "modelspec.prediction_type"),
        (identify(described(SD2, **MARK), probe=never), "v_prediction", "v_pred"),
        (identify(described(SD2), probe=lambda: "v_prediction"), "v_prediction", "last timestep"),
        (identify(described(SD2), probe=lambda: "epsilon"), "epsilon", "follows the noise"),
        (identify(described(SD1), probe=never), "epsilon", "Stable Diffusion 1.x predicts noise"),
    ]
    for found, prediction_type, told_by in cases:
        assert found.prediction_type == prediction_type and told_by in found.told_by


def test_a_yaml_that_says_nothing_of_it_leaves_it_to_the_next():
    found = identify(described(SD1, {"modelspec.prediction_type": "v"}), stated=Stated("the yaml"))
    assert found.prediction_type == "v_prediction" and "metadata" in found.told_by


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"modelspec.prediction_type": "v"}, "v_prediction"),
        ({"modelspec.prediction_type": "v_prediction"}, "v_prediction"),
        ({"modelspec.prediction_type": "something else"}, "epsilon"),
        ({"ss_base_model_version": "sd_v1_v"}, "v_prediction"),
        ({"ss_base_model_version": "sd_v1"}, "epsilon"),
    ],
)
def test_metadata_tells_in_the_words_of_modelspec_and_of_kohya(metadata, expected):
    assert identify(described(SD1, metadata)).prediction_type == expected


def test_zero_terminal_snr_is_told_by_its_mark_the_metadata_or_the_schedule():
    assert not identify(described(SD1)).zero_terminal_snr
    marked = identify(described(SD1, ztsnr=torch.ones(1)))
    assert marked.zero_terminal_snr and marked.prediction_type == "v_prediction"
    assert identify(described(SD1, {"ss_zero_terminal_snr": "True"})).zero_terminal_snr
    assert identify(described(SD1), stated=Stated("", zero_terminal_snr=True)).zero_terminal_snr
    assert identify(described(SD1, alphas_cumprod=torch.linspace(1, 0, 1000))).zero_terminal_snr
    assert not identify(described(SD1, alphas_cumprod=torch.linspace(1, 0.0047, 1000))).zero_terminal_snr


def test_the_inpainting_models_are_not_run():
    inpainting = described(shapes(replace(SMALL_SD2, in_channels=9)))
    assert identify(inpainting, probe=never).prediction_type == "epsilon"


def test_an_unknown_prediction_type_is_an_error_of_the_setting():
    with pytest.raises(InputError, match="'v' is no prediction type") as caught:
        identify(described(SD1), "v")
    assert caught.value.where == "prediction_type" and "v_prediction" in caught.value.remedy


UNET = "model.diffusion_model."
WHOLE = {
    UNET + "input_blocks.0.0.weight": (320, 4, 3, 3),
    "first_stage_model.a": (1,),
    "cond_stage_model.a": (1,),
}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "a LoRA"),
        (["unet.down_blocks.0.attn1.to_q.lora_A.weight"], "a LoRA"),
        (["lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a"], "a LoRA"),
        (
            ["conditioner.embedders.1.model.ln_final.weight", UNET + "input_blocks.0.0.weight"],
            "only one of its two text encoders",
        ),
        (
            ["conditioner.embedders.0.transformer.text_model.a", UNET + "input_blocks.0.0.weight"],
            "only one of its two text encoders",
        ),
        (["edm_mean", "edm_std", UNET + "input_blocks.0.0.weight"], "EDM model"),
        ([UNET + "clf.1.weight"], "Stable Cascade"),
        (
            [UNET + "input_blocks.0.0.weight", UNET + "label_emb.0.0.weight", "first_stage_model.a"],
            "without a text encoder",
        ),
        (["conditioner.embedders.0.model.ln_final.weight", UNET + "input_blocks.0.0.weight"], "refiner"),
        ([UNET + "x_embedder.proj.weight"], "Stable Diffusion 3"),
        (["double_blocks.0.img_attn.qkv.weight"], "Flux"),
        (["control_model.input_hint_block.0.weight"], "ControlNet"),
        (["depth_model.model.a", *WHOLE], "depth model"),
        ([UNET + "label_emb.0.0.weight", *WHOLE], "unCLIP"),
        (["cond_stage_model.roberta.embeddings.word_embeddings.weight", *WHOLE], "AltDiffusion"),
        (["emb_params"], "textual inversion"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight"], "a VAE alone"),
        (["first_stage_model.encoder.conv_in.weight"], "a VAE alone"),
        (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "diffusers folder (a UNet)"),
        (["text_model.embeddings.token_embedding.weight"], "diffusers folder (a text encoder)"),
        (["input_blocks.0.0.weight", "time_embed.0.weight"], "a UNet alone"),
        (
            [UNET + "input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"],
            "without a text encoder",
        ),
        ([UNET + "input_blocks.0.0.weight", "cond_stage_model.transformer.a"], "without a VAE"),
        ([], "this file holds no tensors"),
        (["fc.weight", "fc.bias"], "no Stable Diffusion checkpoint: its tensors are called fc.weight"),
    ],
)
def test_what_cannot_be_trained_is_named_with_what_to_do(names, expected):
    weights = described({name: WHOLE.get(name, (320, 4, 3, 3)) for name in names})
    with pytest.raises(InputError) as caught:
        identify(weights)
    assert expected in caught.value.what and caught.value.where == "model.safetensors" and caught.value.remedy


@pytest.mark.parametrize(("channels", "expected"), [(9, "inpainting form"), (8, "InstructPix2Pix form")])
def test_sdxls_other_forms_are_named(channels, expected):
    wanted = SDXL | {UNET + "input_blocks.0.0.weight": (64, channels, 3, 3)}
    with pytest.raises(InputError, match=f"{expected} of Stable Diffusion XL"):
        identify(described(wanted))


def test_sdxl_is_told_to_predict_v_by_its_marks():
    found = identify(described(SDXL, v_pred=torch.ones(1), ztsnr=torch.ones(1)))
    assert found.prediction_type == "v_prediction" and found.zero_terminal_snr
    assert identify(described(SDXL), probe=never).prediction_type == "epsilon"
    stale = {"modelspec.prediction_type": "epsilon"}
    found = identify(described(SDXL, stale, v_pred=torch.ones(1)))
    assert found.prediction_type == "v_prediction" and "v_pred" in found.told_by


def test_the_marks_are_those_that_a_checkpoint_needs_to_be_known():
    v = Identified(FAMILIES["sdxl"], "v_prediction", "")
    assert marks_of(v) == ("v_pred",)
    assert marks_of(replace(v, zero_terminal_snr=True)) == ("v_pred", "ztsnr")
    assert marks_of(replace(v, prediction_type="epsilon")) == ()
    assert marks_of(replace(v, family=FAMILIES["sd2"])) == ()


def test_a_mark_is_false_where_it_says_something_else():
    epsilon = Identified(FAMILIES["sdxl"], "epsilon", "")
    v = replace(epsilon, prediction_type="v_prediction")
    assert is_false_mark("v_pred", epsilon) and is_false_mark("ztsnr", v)
    assert not is_false_mark("v_pred", v) and not is_false_mark("betas", epsilon)
    assert not is_false_mark("v_pred", replace(epsilon, family=FAMILIES["sd1"]))


@pytest.mark.parametrize(
    ("channels", "expected"), [(8, "InstructPix2Pix"), (5, "depth"), (7, "upscaler"), (6, "6 channels")]
)
def test_other_numbers_of_channels_are_named(channels, expected):
    wanted = SD1 | {UNET + "input_blocks.0.0.weight": (32, channels, 3, 3)}
    with pytest.raises(InputError, match=expected):
        identify(described(wanted))
