"""Names in files: kohya's, held against what kohya's own rules make of diffusers' and the original's modules."""

from __future__ import annotations

import models
import pytest
import torch

from dreambooth.trainer.adapters import kinds
from dreambooth.trainer.adapters.names import foreign, kohya_name, split
from dreambooth.trainer.adapters.targets import ROLES, parse_choice, targets_of
from dreambooth.trainer.models.convert import load_model
from dreambooth.trainer.models.loading import BUILDERS, empty_module

# classes whose linear and convolutional layers kohya's LoRA takes, in diffusers' UNet
KOHYAS_CLASSES = ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")


def described(folder, family):
    model = load_model(models.base(folder, family), components=(), prediction_type="epsilon")
    return model, targets_of(model.source, model.description)


@pytest.mark.parametrize("family", ("sd1", "sd2"))
def test_the_unets_names_are_those_that_kohya_gives_diffusers_modules(tmp_path, family) -> None:
    model, targets = described(tmp_path, family)
    unet = empty_module("unet", model.configs["unet"])
    expected = set()
    for above, module in unet.named_modules():
        if type(module).__name__ in KOHYAS_CLASSES:
            for name, child in module.named_modules():
                if isinstance(child, (torch.nn.Linear, torch.nn.Conv2d)):
                    expected.add(f"lora_unet.{above}.{name}".replace(".", "_"))
    ours = {kohya_name(model.identified.family, target) for target in targets if target.component == "unet"}
    ends = {name for name in ours if "time_embedding" in name}
    assert len(ends) == 2 and ours - ends == expected


def test_sdxls_unet_has_the_originals_names(tmp_path) -> None:
    model, targets = described(tmp_path, "sdxl")
    ours = {kohya_name(model.identified.family, target) for target in targets if target.component == "unet"}
    original = {
        "lora_unet_" + name.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_")
        for name, tensor in models.weights("sdxl").items()
        if name.startswith("model.diffusion_model.") and name.endswith("weight") and tensor.dim() > 1
    }
    assert ours == original - {"lora_unet_input_blocks_0_0", "lora_unet_out_2"}
    assert "lora_unet_label_emb_0_0" in ours


@pytest.mark.parametrize(
    ("family", "component", "prefix"),
    [("sd1", "text_encoder", "lora_te_"), ("sd2", "text_encoder", "lora_te_"),
     ("sdxl", "text_encoder", "lora_te1_"), ("sdxl", "text_encoder_2", "lora_te2_")],
)  # fmt: skip
def test_text_encoders_have_transformers_names(tmp_path, family, component, prefix) -> None:
    model, targets = described(tmp_path, family)
    ours = {
        kohya_name(model.identified.family, target) for target in targets if target.component == component
    }
    layers = int(model.configs[component]["num_hidden_layers"])
    leaves = (
        "self_attn_k_proj",
        "self_attn_v_proj",
        "self_attn_q_proj",
        "self_attn_out_proj",
        "mlp_fc1",
        "mlp_fc2",
    )
    assert ours == {f"{prefix}text_model_encoder_layers_{n}_{leaf}" for n in range(layers) for leaf in leaves}


@pytest.mark.parametrize(
    ("key", "layer", "tensor"),
    [
        ("lora_unet_mid_block_proj_in.lora_down.weight", "lora_unet_mid_block_proj_in", kinds.DOWN),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", "lora_te_text_model_encoder_layers_0_mlp_fc1", "alpha"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", "unet.mid_block.attentions.0.proj_in", kinds.DOWN),
        ("base_model.model.conv_in.lora_B.default.weight", "base_model.model.conv_in", kinds.UP),
        ("unet.a.attn1.processor.to_out_lora.up.weight", "unet.a.attn1.to_out.0", kinds.UP),
        ("unet.a.attn1.processor.to_k_lora.down.weight", "unet.a.attn1.to_k", kinds.DOWN),
        ("text_encoder.q_proj.lora_linear_layer.down.weight", "text_encoder.q_proj", kinds.DOWN),
        ("lora_unet_a.hada_w2_b", "lora_unet_a", "hada_w2_b"),
        ("lora_unet_a.lokr_w2_a", "lora_unet_a", "lokr_w2_a"),
        ("lora_unet_a.dora_scale", "lora_unet_a", "dora_scale"),
    ],
)  # fmt: skip
def test_a_key_is_a_layer_and_a_tensor(key, layer, tensor) -> None:
    assert split(key) == (layer, tensor)


def test_what_belongs_to_other_kinds_is_named() -> None:
    assert split("model.diffusion_model.out.2.weight") is None
    assert foreign("lora_unet_a.oft_blocks") == "OFT or BOFT" and foreign("lora_unet_a.on_input") == "IA3"
    assert foreign("model.diffusion_model.out.2.weight") == ""


def test_every_role_has_layers_and_every_layer_one_role(tmp_path) -> None:
    _, targets = described(tmp_path, "sd1")
    assert {target.role for target in targets} == set(ROLES)
    assert {target.block for target in targets} == {
        "", *(f"down.{n}" for n in range(4)), "mid", *(f"up.{n}" for n in range(4)),
    }  # fmt: skip


def test_a_choice_takes_roles_and_blocks_of_the_unet_only(tmp_path) -> None:
    _, targets = described(tmp_path, "sd1")
    choice = parse_choice("Feed-Forward, up.1, mid")
    taken = [target for target in targets if choice.takes(target)]
    assert {target.role for target in taken} == {"feed_forward"}
    assert {target.block for target in taken if target.component == "unet"} == {"up.1", "mid"}
    assert {target.path for target in taken if target.component == "text_encoder"} == {
        f"encoder.layers.{n}.mlp.{leaf}" for n in range(2) for leaf in ("fc1", "fc2")
    }
    assert parse_choice("").roles == ("attention", "feed_forward")
    assert parse_choice("all").roles == tuple(ROLES)


@pytest.mark.parametrize("family", ("sd1", "sd2", "sdxl"))
def test_the_targets_shapes_are_those_of_the_modules(tmp_path, family) -> None:
    model, targets = described(tmp_path, family)
    found = {name: empty_module(name, model.configs[name]) for name in BUILDERS if name in model.configs}
    for target in targets:
        assert tuple(found[target.component].get_submodule(target.path).weight.shape) == target.shape, (
            target.where
        )
