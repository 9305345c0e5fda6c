import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import described
from ldm_layout import FULL_SD1, FULL_SD2, FULL_SDXL, SMALL_SD1, SMALL_SD2, SMALL_SDXL, TINY_SDXL, shapes

from dreambooth.trainer.families.description import describe
from dreambooth.trainer.families.detect import identify
from dreambooth.trainer.families.names import TEXT_MODEL, Binding, ema_name
from dreambooth.trainer.models.loading import empty_module

LAYOUTS = {
    "SD1": FULL_SD1,
    "SD1 inpainting": replace(FULL_SD1, in_channels=9),
    "SD2": FULL_SD2,
    "SD2 inpainting": replace(FULL_SD2, in_channels=9),
    "small SD1": SMALL_SD1,
    "small SD2": SMALL_SD2,
    "SDXL": FULL_SDXL,
    "small SDXL": SMALL_SDXL,
    "tiny SDXL": TINY_SDXL,
    "SDXL, four levels": replace(SMALL_SDXL, multiples=(1, 2, 2, 4), attention=(2, 8), depths=(1, 3, 1, 2)),
    "one layer, three levels": replace(SMALL_SD1, blocks=1, multiples=(1, 2, 3), attention=(1, 2)),
    "three layers": replace(SMALL_SD1, blocks=3, vae_blocks=1),
    "two levels, attention everywhere": replace(SMALL_SD1, multiples=(1, 2), attention=(1, 2)),
    "attention only below": replace(SMALL_SD1, attention=(4, 8)),
    "five levels of one width": replace(SMALL_SD1, multiples=(1, 1, 1, 1, 1), vae_multiples=(1, 1, 1, 1)),
    "a narrowing width": replace(SMALL_SD1, multiples=(1, 3, 2, 1), vae_multiples=(1, 3, 2)),
}
PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "facts" / "layouts"
UNUSED_IN_SD2 = {
    "text_projection",
    "logit_scale",
    *(
        f"transformer.resblocks.{{last}}.{leaf}"
        for leaf in (
            "ln_1.weight",
            "ln_1.bias",
            "ln_2.weight",
            "ln_2.bias",
            "attn.in_proj_weight",
            "attn.in_proj_bias",
            "attn.out_proj.weight",
            "attn.out_proj.bias",
            "mlp.c_fc.weight",
            "mlp.c_fc.bias",
            "mlp.c_proj.weight",
            "mlp.c_proj.bias",
        )
    ),
}


def laid_out(wanted):
    weights = described(wanted)
    return describe(weights, identify(weights))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_published_name_is_bound_once_and_only_what_is_unused_is_left(name):
    wanted = shapes(LAYOUTS[name])
    found = laid_out(wanted)
    originals = [binding.original for bindings in found.bindings.values() for binding in bindings]
    assert len(originals) == len(set(originals)) and not found.missing
    assert set(originals) | set(found.others) == set(wanted)
    last = LAYOUTS[name].text_layers - 1
    unused = {f"cond_stage_model.model.{leaf}".format(last=last) for leaf in UNUSED_IN_SD2}
    scale = {"conditioner.embedders.1.model.logit_scale"}
    assert set(found.others) == {"openclip": unused, "sdxl": scale, "clip": set()}[LAYOUTS[name].text]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_modules_have_exactly_the_tensors_of_the_file(name):
    wanted = shapes(LAYOUTS[name])
    found = laid_out(wanted)
    for component, bindings in found.bindings.items():
        state = empty_module(component, found.configs[component]).state_dict()
        expected = {name.removeprefix(TEXT_MODEL): tuple(value.shape) for name, value in state.items()}
        bound = {}
        for binding in bindings:
            shape = wanted[binding.original]
            if binding.flat:
                assert shape[2:] == (1, 1)
                shape = shape[:2]
            shape = tuple(reversed(shape)) if binding.transposed else shape
            for name in binding.canonical:
                bound[name] = (shape[0] // len(binding.canonical), *shape[1:])
        assert bound == expected


def test_no_two_tensors_of_a_file_become_the_same_one():
    for layout in LAYOUTS.values():
        for bindings in laid_out(shapes(layout)).bindings.values():
            canonical = [name for binding in bindings for name in binding.canonical]
            assert len(canonical) == len(set(canonical))


def test_the_full_sizes_have_the_published_number_of_tensors():
    counts = {
        name: {component: len(bindings) for component, bindings in laid_out(shapes(layout)).bindings.items()}
        for name, layout in (("SD1", FULL_SD1), ("SD2", FULL_SD2), ("SDXL", FULL_SDXL))
    }
    assert counts["SD1"] == {"unet": 686, "text_encoder": 196, "vae": 248}
    # in OpenCLIP's form 23 layers of 12 tensors, three of whose projections are one, and four beside them
    assert counts["SD2"] == {"unet": 686, "text_encoder": 23 * 12 + 4, "vae": 248}
    # with the logit scale and the positions' numbers that no module has, 2515
    assert counts["SDXL"] == {
        "unet": 1680,
        "text_encoder": 196,
        "text_encoder_2": 32 * 12 + 5,
        "vae": 248,
    }
    assert sum(counts["SDXL"].values()) + 2 == 2515


def test_the_full_size_sdxl_has_the_published_number_of_weights():
    wanted = shapes(FULL_SDXL)
    found = {
        component: sum(math.prod(wanted[binding.original]) for binding in bindings)
        for component, bindings in laid_out(wanted).bindings.items()
    }
    assert found == {
        "unet": 2_567_463_684,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "vae": 83_653_863,
    }


@pytest.mark.parametrize(
    ("file", "layout"),
    [
        ("sd1", FULL_SD1),
        ("sd1-inpainting", replace(FULL_SD1, in_channels=9)),
        ("sd2", FULL_SD2),
        ("sdxl", FULL_SDXL),
    ],
)
def test_the_layout_of_these_tests_is_the_published_one(file, layout):
    path = PUBLISHED / f"{file}.tsv"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    published = {}
    for line in path.read_text().splitlines():
        name, shape, _ = line.split("\t")
        published[name] = () if shape == "-" else tuple(map(int, shape.split("x")))
    built = shapes(layout)
    assert {name: shape for name, shape in published.items() if name in built} == built
    others = {name for name in published if name not in built}
    assert (
        all(len(published[name]) == 1 or name.endswith("position_ids") for name in others)
        and len(others) <= 9
    )


def test_the_heads_are_the_familys():
    heads = {
        name: laid_out(shapes(layout)).configs["unet"]["attention_head_dim"]
        for name, layout in LAYOUTS.items()
    }
    assert heads["SD1"] == heads["SD1 inpainting"] == heads["small SD1"] == 8
    assert heads["SD2"] == heads["SD2 inpainting"] == (5, 10, 20, 20)
    assert heads["small SD2"] == (1, 2, 2, 2)
    assert heads["SDXL"] == (5, 10, 20)


def test_the_configs_of_the_full_sizes_are_those_that_diffusers_published():
    first, second = laid_out(shapes(FULL_SD1)).configs, laid_out(shapes(FULL_SD2)).configs
    common = {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    }
    unet = common | {"cross_attention_dim": 768, "attention_head_dim": 8, "use_linear_projection": False}
    assert first["unet"] == unet | {"upcast_attention": False}
    unet = common | {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    }
    assert second["unet"] == unet | {"upcast_attention": True}
    text = first["text_encoder"]
    assert (text["num_hidden_layers"], text["num_attention_heads"], text["hidden_act"]) == (
        12,
        12,
        "quick_gelu",
    )
    text = second["text_encoder"]
    assert (text["num_hidden_layers"], text["num_attention_heads"], text["hidden_act"]) == (23, 16, "gelu")
    assert first["vae"] == second["vae"]
    assert (
        first["vae"]["block_out_channels"] == (128, 256, 512, 512)
        and first["vae"]["scaling_factor"] == 0.18215
    )


def test_the_configs_of_sdxl_are_those_that_diffusers_published():
    found = laid_out(shapes(FULL_SDXL)).configs
    assert found["unet"] == {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "upcast_attention": False,
    }
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    assert [found["text_encoder"][name] for name in names] == [768, 3072, 12, 12, "quick_gelu"]
    assert [found["text_encoder_2"][name] for name in names] == [1280, 5120, 32, 20, "gelu"]
    assert found["text_encoder_2"]["projection_dim"] == 1280
    assert found["vae"]["scaling_factor"] == 0.13025


def test_a_matrix_that_is_multiplied_from_the_right_becomes_its_transpose_and_back():
    binding = Binding("text_projection", ("text_projection.weight",), transposed=True)
    whole = torch.arange(6.0).reshape(2, 3)
    ((name, part),) = binding.split(whole)
    assert name == "text_projection.weight" and torch.equal(part, whole.T)
    assert binding.shape_in_module((2, 3)) == (3, 2) and binding.shape_in_file((3, 2)) == (2, 3)
    assert torch.equal(binding.join([part], (2, 3)), whole)


def test_the_averaged_weights_are_called_as_litema_calls_them():
    name = "model.diffusion_model.input_blocks.1.0.in_layers.0.weight"
    assert ema_name(name) == "model_ema.diffusion_modelinput_blocks10in_layers0weight"
