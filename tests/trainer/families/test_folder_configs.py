from dataclasses import replace

import pytest
from checkpoints import described
from ldm_layout import FULL_SD1, FULL_SD2, FULL_SDXL, SMALL_SD1, SMALL_SD2, SMALL_SDXL, shapes

from dreambooth.trainer.families import FAMILIES
from dreambooth.trainer.families.folder_configs import text_from_config, unet_from_config, vae_from_config
from dreambooth.trainer.families.topology import (
    UnknownTopology,
    clip_topology,
    openclip_topology,
    text_config,
    unet_config,
    unet_topology,
    vae_config,
    vae_topology,
)

CONFIG = {"block_out_channels": [32], "down_block_types": ["DownBlock2D"], "in_channels": 4}


@pytest.mark.parametrize("layout", [FULL_SD1, SMALL_SD1, replace(SMALL_SD1, blocks=1, multiples=(1, 2))])
def test_a_config_says_the_same_as_the_shapes_it_was_made_from(layout):
    tensors = described(shapes(layout)).tensors
    unet = unet_topology(tensors, FAMILIES["sd1"].heads)
    again, heads = unet_from_config(unet_config(unet))
    assert again == unet and {heads(level.width) for level in unet.levels} == {8}
    vae = vae_topology(tensors)
    assert vae_from_config(vae_config(vae, 0.18215)) == vae
    text = clip_topology(tensors, "cond_stage_model.transformer.text_model.")
    assert text_from_config(text_config(text)) == text


@pytest.mark.parametrize("layout", [FULL_SD2, SMALL_SD2])
def test_and_so_for_the_second_generation_whose_heads_differ_by_level(layout):
    tensors = described(shapes(layout)).tensors
    unet = unet_topology(tensors, FAMILIES["sd2"].heads)
    again, heads = unet_from_config(unet_config(unet))
    assert again == unet and all(heads(level.width) == level.width // 64 for level in unet.levels)
    text = openclip_topology(tensors, "cond_stage_model.model.")
    assert text_from_config(text_config(text)) == text and text.layers == layout.text_layers - 1


@pytest.mark.parametrize("layout", [FULL_SDXL, SMALL_SDXL])
def test_and_so_for_sdxl_whose_unet_is_told_sizes_and_whose_second_encoder_is_projected(layout):
    tensors = described(shapes(layout)).tensors
    unet = unet_topology(tensors, FAMILIES["sdxl"].heads)
    assert unet_from_config(unet_config(unet, layout.second_width))[0] == unet
    text = openclip_topology(tensors, "conditioner.embedders.1.model.", pooled=True)
    assert text_from_config(text_config(text)) == text
    assert (text.layers, text.projection) == (layout.second_layers, layout.second_width)


@pytest.mark.parametrize("pooled", [0, 95, 1280])
def test_a_unet_that_is_told_something_else_than_six_sizes_is_refused(pooled):
    unet = unet_topology(described(shapes(SMALL_SDXL)).tensors, FAMILIES["sdxl"].heads)
    with pytest.raises(UnknownTopology, match="144 numbers"):
        unet_config(unet, pooled)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "lacks block_out_channels"),
        (CONFIG | {"down_block_types": ["AttnDownBlock2D"]}, "AttnDownBlock2D"),
        (CONFIG | {"down_block_types": ["DownBlock2D"] * 2}, "blocks"),
        (CONFIG | {"layers_per_block": [2, 2], "attention_head_dim": 8}, "1 levels"),
        (CONFIG | {"layers_per_block": 2, "attention_head_dim": "8"}, "1 levels"),
        (
            CONFIG
            | {"layers_per_block": 2, "attention_head_dim": 8, "cross_attention_dim": 32}
            | {"addition_embed_type": "image"},
            "'image'",
        ),
    ],
)
def test_a_config_of_another_kind_of_model_is_refused(config, expected):
    with pytest.raises(UnknownTopology, match=expected):
        unet_from_config(config)


def test_a_vae_of_another_kind_is_refused():
    with pytest.raises(UnknownTopology, match="AttnDownEncoderBlock2D"):
        vae_from_config({"down_block_types": ["AttnDownEncoderBlock2D"]})


def test_a_text_encoder_with_another_activation_is_refused():
    with pytest.raises(UnknownTopology, match="gelu_new"):
        text_from_config({"hidden_size": 32, "hidden_act": "gelu_new"})
