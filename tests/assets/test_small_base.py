from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from dreambooth.trainer.families.names import clip_bindings, unet_bindings, vae_bindings
from dreambooth.trainer.families.topology import clip_topology, unet_topology, vae_topology
from dreambooth.trainer.models.convert import LoadedModel, load_model
from dreambooth.trainer.models.place_base import ASSETS, BASE, BASE_YAML, CLIP_CONFIG
from dreambooth.trainer.weights import WeightFile, open_weights

CLIP = "cond_stage_model.transformer.text_model."
SCHEDULE = {
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
}


@pytest.fixture(scope="module")
def base() -> WeightFile:
    return open_weights(BASE)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(BASE)


def test_it_is_small_enough_to_be_cloned_by_everybody() -> None:
    assert BASE.stat().st_size <= 24_000_000


def test_it_holds_exactly_the_tensors_of_an_sd1_file_of_its_size(base: WeightFile) -> None:
    tensors = base.tensors
    bindings = [
        *unet_bindings(unet_topology(tensors, lambda width: 8)),
        *vae_bindings(vae_topology(tensors)),
        *clip_bindings(clip_topology(tensors, CLIP)),
    ]
    expected = {binding.original for binding in bindings}
    assert set(tensors) == expected | SCHEDULE | {f"{CLIP}embeddings.position_ids"}
    assert {tensors[name].dtype for name in expected} == {torch.float16}
    assert {tensors[name].dtype for name in SCHEDULE} == {torch.float32}


def test_it_has_sd1s_topology_and_widths_that_ldm_can_load(base: WeightFile) -> None:
    unet = unet_topology(base.tensors, lambda width: 8)
    assert [(level.layers, level.depth) for level in unet.levels] == [(2, 1), (2, 1), (2, 1), (2, 0)]
    vae = vae_topology(base.tensors)
    assert (len(vae.widths), vae.layers, vae.latent_channels) == (4, 2, 4)
    widths = [level.width for level in unet.levels]
    assert all(width % 32 == 0 for width in (*widths, *vae.widths))  # GroupNorm's 32 groups
    assert all(width % widths[0] == 0 for width in widths)  # channel_mult is whole


def test_its_yaml_and_its_clip_config_say_the_same_sizes(base: WeightFile) -> None:
    params = OmegaConf.load(BASE_YAML).model.params
    unet = params.unet_config.params
    topology = unet_topology(base.tensors, lambda width: unet.num_heads)
    assert [unet.model_channels * factor for factor in unet.channel_mult] == [
        level.width for level in topology.levels
    ]
    assert (unet.context_dim, unet.num_heads) == (topology.context_width, 8)
    vae = params.first_stage_config.params.ddconfig
    assert tuple(vae.ch * factor for factor in vae.ch_mult) == vae_topology(base.tensors).widths
    assert params.scale_factor == 0.18215
    text, config = clip_topology(base.tensors, CLIP), OmegaConf.load(CLIP_CONFIG)
    assert (text.width, text.hidden, text.layers, text.heads, text.vocabulary, text.positions) == (
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.vocab_size,
        config.max_position_embeddings,
    )


def test_it_is_known_as_an_epsilon_sd1(model: LoadedModel) -> None:
    assert (model.identified.family.name, model.identified.prediction_type) == ("sd1", "epsilon")
    assert all(torch.isfinite(p).all() for part in model.components.values() for p in part.parameters())


def demo_photos() -> list[Path]:
    return sorted((ASSETS / "demo").glob("*.jpg"))


def test_the_demo_brings_a_few_small_photos() -> None:
    assert 4 <= len(demo_photos()) <= 6
    assert sum(path.stat().st_size for path in demo_photos()) <= 200_000
    assert "CC0" in (ASSETS / "demo" / "LICENSE.md").read_text(encoding="utf-8")


def test_its_vae_draws_the_demos_subject_with_at_least_25_db(model: LoadedModel) -> None:
    small = [
        Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS) for path in demo_photos()
    ]
    images = (
        torch.from_numpy(np.stack([np.asarray(image) for image in small])).permute(0, 3, 1, 2) / 127.5 - 1.0
    )
    vae = model.components["vae"]
    with torch.no_grad():
        drawn = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1.0, 1.0)
    error = (drawn - images).square().mean().item()
    assert 10.0 * math.log10(4.0 / error) >= 25.0
