"""Which family an adapter is for: its tensors are believed before its metadata."""

from __future__ import annotations

from pathlib import Path

import models
import pytest
import torch
from checkpoints import write
from safetensors.torch import load_file

from dreambooth.shared.errors import InputError
from dreambooth.trainer.adapters.merging import Request
from dreambooth.trainer.adapters.reading import open_adapter
from dreambooth.trainer.models.convert import convert, load_model
from dreambooth.trainer.models.inspection import inspect

UP, DOWN = "lora_up.weight", "lora_down.weight"


def test_the_family_is_told_by_metadata_and_by_names(tmp_path: Path) -> None:
    for family, told in (("sd1-inpaint", "sd1"), ("sd2", "sd2"), ("sdxl", "sdxl")):
        _, path = models.trained(tmp_path, family)
        assert open_adapter(path).family == told
        bare = write(tmp_path / "bare.safetensors", load_file(path))
        assert open_adapter(bare).family == (told if told == "sdxl" else "")


def test_where_metadata_say_another_family_the_tensors_are_believed_and_that_is_said(tmp_path: Path) -> None:
    _, path = models.trained(tmp_path, "sdxl")
    held = load_file(path)
    write(
        path, held, {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"}
    )
    said = (
        "its metadata says that it is for Stable Diffusion 1.x, and its tensors are for Stable Diffusion XL"
    )
    assert open_adapter(path).family == "sdxl" and said in open_adapter(path).notes[0]
    assert said in str(inspect(path))
    done = convert(models.base(tmp_path, "sdxl"), tmp_path / "out.safetensors", adapters=[Request(path)])
    assert any(said in note for note in done.notes)
    flux = write(tmp_path / "flux.safetensors", held, {"modelspec.architecture": "flux-1-dev/lora"})
    assert "for Flux, and its tensors are for Stable Diffusion XL" in open_adapter(flux).notes[0]
    with pytest.raises(
        InputError, match=r"it is for Stable Diffusion XL, and the model is Stable Diffusion 1\.x"
    ):
        load_model(models.base(tmp_path, "sd1"), adapters=[Request(path)])


@pytest.mark.parametrize(
    ("layer", "width", "family"),
    [
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768, "sd1"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v", 1024, "sd2"),
        ("lora_unet_output_blocks_3_1_transformer_blocks_0_attn2_to_k", 2048, "sdxl"),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q", 768, ""),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k", 1024, ""),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 640, ""),
        ("transformer.blocks.0.attn2.to_k", 2048, ""),
    ],
)
def test_the_width_of_the_text_tells_the_family(layer, width, family, tmp_path: Path) -> None:
    down, up = f"{layer}.{DOWN}", f"{layer}.{UP}"
    held = {down: torch.ones(2, width), up: torch.ones(320, 2)}
    assert open_adapter(write(tmp_path / "a.safetensors", held)).family == family
    for version, told in (("sd_v2", "sd2"), ("", "")):
        file = open_adapter(write(tmp_path / "b.safetensors", held, {"ss_base_model_version": version}))
        assert file.family == (family or told) and len(file.notes) == (
            family in ("sd1", "sdxl") and bool(told)
        )
