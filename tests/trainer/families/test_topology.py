from dataclasses import replace

import pytest
from checkpoints import described
from ldm_layout import SMALL_SD1, SMALL_SD2, shapes

from dreambooth.shared.errors import InputError
from dreambooth.trainer.families import FAMILIES, Identified
from dreambooth.trainer.families.description import describe
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
    with pytest.raises(InputError, match=r"2 tensors .* are missing: .*out\.0\.bias"):
        found.check_complete(weights)


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
