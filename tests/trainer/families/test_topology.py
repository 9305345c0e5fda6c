import re
from dataclasses import replace

import pytest
from checkpoints import described
from ldm_layout import FULL_SD1, FULL_SD2, FULL_SDXL, SMALL_SD1, SMALL_SD2, SMALL_SDXL, shapes

from dreambooth.shared.errors import InputError
from dreambooth.trainer.families import FAMILIES, Identified
from dreambooth.trainer.families.description import describe
from dreambooth.trainer.families.detect import identify
from dreambooth.trainer.families.ldm_yaml import Stated
from dreambooth.trainer.families.topology import openclip_topology

SD1 = Identified(FAMILIES["sd1"], "epsilon", "")
SD2 = Identified(FAMILIES["sd2"], "epsilon", "")
UNET = "model.diffusion_model."
OPENCLIP = "cond_stage_model.model."


def changed(layout, **shape):
    return described(shapes(layout) | {name.replace("__", "."): value for name, value in shape.items()})


@pytest.mark.parametrize(
    "gone",
    [
        f"{UNET}input_blocks.0.0.weight",
        f"{UNET}middle_block.1.proj_in.weight",
        "first_stage_model.post_quant_conv.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
    ],
)
def test_a_tensor_that_tells_a_size_is_named_when_it_is_missing(gone):
    wanted = shapes(SMALL_SD1)
    del wanted[gone]
    with pytest.raises(InputError, match=gone.replace(".", r"\.")):
        describe(described(wanted), SD1)


def test_other_missing_tensors_are_counted_and_named():
    wanted = shapes(SMALL_SD1)
    gone = [f"{UNET}out.0.bias", "first_stage_model.encoder.norm_out.weight"]
    weights = described({name: shape for name, shape in wanted.items() if name not in gone})
    found = describe(weights, SD1)
    assert found.missing == tuple(gone)
    with pytest.raises(
        InputError, match=r"2 tensors of its UNet and VAE are missing, such as .*out\.0\.bias"
    ):
        found.check_complete(weights)


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize(
    ("layout", "prefix", "part"),
    [
        (SMALL_SD1, "cond_stage_model.transformer.", "text encoder"),
        (SMALL_SD2, OPENCLIP, "text encoder"),
        (SMALL_SDXL, "conditioner.embedders.0.transformer.", "first text encoder"),
        (SMALL_SDXL, "conditioner.embedders.1.model.", "second text encoder"),
    ],
)
def test_half_a_text_encoder_is_called_incomplete_whichever_half_is_missing(layout, prefix, part, every):
    wanted = shapes(layout)
    inside = [name for name in wanted if name.startswith(prefix)]
    for gone in (set(inside[::every]), set(inside[1::every]), set(inside[: len(inside) // 2])):
        file = described({name: shape for name, shape in wanted.items() if name not in gone})
        with pytest.raises(InputError) as caught:
            describe(file, identify(file, "epsilon")).check_complete(file)
        found = re.fullmatch(
            rf"it is incomplete: (\d+) tensors of its {part} are missing, such as (\S+)", caught.value.what
        )
        assert found and 0 < int(found[1]) <= len(gone) and found[2] in gone
        assert caught.value.remedy == "download the file again, or take a complete checkpoint"


def test_half_a_text_encoder_with_its_old_names_is_called_incomplete_too():
    old = {
        name.replace("transformer.text_model.", "transformer."): shape
        for name, shape in shapes(SMALL_SD1).items()
    }
    del old["cond_stage_model.transformer.embeddings.token_embedding.weight"]
    with pytest.raises(
        InputError, match=r"a tensor of its text encoder is missing, cond_stage_model\.transformer\.emb"
    ):
        describe(described(old), identify(described(old), "epsilon"))


def test_levels_whose_layers_differ_are_refused():
    wanted = shapes(SMALL_SD1)
    wanted[f"{UNET}input_blocks.2.0.in_layers.2.weight"] = (64, 32, 3, 3)
    with pytest.raises(InputError, match="differ in width or depth"):
        describe(described(wanted), SD1)


@pytest.mark.parametrize("multiples", [{"multiples": (2, 1, 2, 2)}, {"vae_multiples": (2, 1)}])
def test_a_first_convolution_of_another_width_is_refused_since_diffusers_cannot_build_it(multiples):
    with pytest.raises(InputError, match="first convolution"):
        describe(described(shapes(replace(SMALL_SD1, **multiples))), SD1)


def test_heads_that_stand_beside_the_file_win_over_the_familys():
    found = describe(described(shapes(SMALL_SD1)), SD1, Stated("", heads=lambda width: width // 16))
    assert found.configs["unet"]["attention_head_dim"] == (2, 2, 4, 4)


def layers(wanted, **options):
    return openclip_topology(described(wanted).tensors, OPENCLIP, **options).layers


def test_the_second_generations_text_encoder_is_used_up_to_the_layer_before_the_last():
    wanted = shapes(SMALL_SD2)
    assert layers(wanted) == 2 and layers(wanted, last=True) == 3
    folders = {name: shape for name, shape in wanted.items() if not name.endswith("text_projection")}
    assert layers(folders) == 3  # a file made from a diffusers folder, which never had the last one


@pytest.mark.parametrize(
    ("layout", "cut", "said"),
    [
        (FULL_SDXL, {"second_layers": 16}, "second text encoder has 16 of 32 layers"),
        (FULL_SDXL, {"text_layers": 6}, "text encoder has 6 of 12 layers"),
        (FULL_SDXL, {"text_layers": 11}, "text encoder has 11 of 12 layers"),
        (FULL_SD2, {"text_layers": 12}, "text encoder has 11 of 24 layers"),
        (FULL_SD1, {"text_layers": 6}, "text encoder has 6 of 12 layers"),
    ],
)
def test_a_text_encoder_of_the_published_width_that_lacks_layers_is_refused(layout, cut, said):
    file = described(shapes(replace(layout, **cut)))
    with pytest.raises(InputError, match=said):
        describe(file, identify(file, "epsilon"))


@pytest.mark.parametrize(("layout", "layers"), [(FULL_SDXL, (12, 32)), (FULL_SD2, (23,)), (FULL_SD1, (12,))])
def test_the_published_text_encoders_are_whole(layout, layers):
    file = described(shapes(layout))
    configs = describe(file, identify(file, "epsilon")).configs
    found = [configs[name]["num_hidden_layers"] for name in configs if name.startswith("text_encoder")]
    assert tuple(found) == layers


def test_an_encoder_without_the_last_layer_is_taken_where_nobody_uses_it():
    for layout, layers in ((FULL_SD2, 23), (FULL_SD1, 11)):
        file = described(shapes(replace(layout, text_layers=layers)))
        assert (
            describe(file, identify(file, "epsilon")).configs["text_encoder"]["num_hidden_layers"] == layers
        )
