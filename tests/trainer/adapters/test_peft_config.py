"""What stands beside peft's tensors decides how strong they are: what cannot be understood is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from checkpoints import write
from PIL import Image

from dreambooth.shared.errors import InputError
from dreambooth.trainer.adapters.merging import MergedFile
from dreambooth.trainer.adapters.peft_config import PEFT_CONFIG, PEFT_FILE
from dreambooth.trainer.adapters.reading import open_adapter, problems
from dreambooth.trainer.models.inspection import inspect
from dreambooth.trainer.sampling import generate

LAYER = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
TENSORS = {f"{LAYER}.lora_A.weight": torch.ones(2, 8), f"{LAYER}.lora_B.weight": torch.ones(8, 2)}
BROKEN = {
    "no JSON": ("{", "no JSON object"),
    "no object": ("[]", "no JSON object"),
    "no text": (b"\xff\xfe", "no JSON object"),
    "another kind": ({"peft_type": "LOHA", "lora_alpha": 2}, "its peft_type is 'LOHA'"),
    "no number": ({"lora_alpha": "x"}, "the alpha of lora_alpha is 'x'"),
    "NaN": ('{"lora_alpha": NaN}', "the alpha of lora_alpha is nan"),
    "truth": ({"lora_alpha": True}, "the alpha of lora_alpha is True"),
    "no patterns": ({"alpha_pattern": [1]}, "its alpha_pattern is"),
    "a pattern": ({"alpha_pattern": {"to_q": "x"}}, "the alpha of to_q is 'x'"),
}


def folder(place: Path, config: object = None) -> Path:
    write(place / PEFT_FILE, TENSORS)
    if config is not None:
        text = config if isinstance(config, (str, bytes)) else json.dumps(config)
        (place / PEFT_CONFIG).write_bytes(text.encode() if isinstance(text, str) else text)
    return place


@pytest.mark.parametrize("name", BROKEN)
def test_a_configuration_that_cannot_be_understood_is_refused(name, tmp_path) -> None:
    config, said = BROKEN[name]
    for read in (open_adapter, inspect):
        with pytest.raises(InputError, match=said) as refused:
            read(folder(tmp_path, config))
        assert refused.value.where == str(tmp_path / PEFT_CONFIG) and refused.value.remedy


def test_one_in_diffusers_metadata_is_refused_too(tmp_path) -> None:
    path = write(tmp_path / "a.safetensors", TENSORS, {"lora_adapter_metadata": '{"unet.lora_alpha": "x"}'})
    with pytest.raises(InputError, match="the alpha of lora_alpha is 'x'") as refused:
        open_adapter(path)
    assert str(path) in refused.value.where and "lora_adapter_metadata" in refused.value.where


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": 8, "lora_alpha": 8}, "its configuration says rank 8, and {layer} has rank 2"),
        (
            {"r": 2, "rank_pattern": {"attn1.to_q": 4}},
            "its configuration says rank 4, and {layer} has rank 2",
        ),
        ({"r": 8, "rank_pattern": {"attn1.to_q": 2}}, ""),
        ({"r": 8, "rank_pattern": {"attn[12].to_q": 2}}, ""),
        ({"r": 2, "use_dora": True}, "its configuration says DoRA (use_dora), and {layer} has no magnitude"),
        ({"r": 2, "use_dora": False}, ""),
        ({"r": None, "rank_pattern": None}, ""),
    ],
)
def test_a_configuration_of_other_tensors_makes_it_unusable(config, said, tmp_path) -> None:
    file = open_adapter(folder(tmp_path, config))
    expected = [said.format(layer=LAYER)] if said else []
    assert list(problems(file)) == expected
    assert inspect(tmp_path).adapter.unusable == "".join(f"damaged: {problem}" for problem in expected)


def test_a_folder_without_one_is_used_with_a_note(tmp_path) -> None:
    assert PEFT_CONFIG in open_adapter(folder(tmp_path)).notes[0]
    assert f"note           no alpha is told for {tmp_path.name}" in str(inspect(tmp_path))
    assert open_adapter(folder(tmp_path, {"peft_type": "LORA", "lora_alpha": 2})).notes == ()


def test_a_picture_comes_with_that_note(tmp_path, monkeypatch, capsys) -> None:
    identified = SimpleNamespace(prediction_type="epsilon", family=SimpleNamespace(clip_skip=True))
    configs = {"text_encoder": {"num_hidden_layers": 2}}
    source = object.__new__(MergedFile)
    source.adapters = [open_adapter(folder(tmp_path))]
    model = SimpleNamespace(identified=identified, configs=configs, components={}, source=source)
    monkeypatch.setattr(generate, "load_model", lambda *arguments, **named: model)
    monkeypatch.setattr(generate, "_picture", lambda *arguments: Image.new("RGB", (64, 64)))
    picture = ("--size", "64", "--out", tmp_path / "dog.png", "--lora", f"{folder(tmp_path)}:0.5")
    assert tiny.dreambooth("generate", "base.safetensors", "a dog", *picture) == 0
    assert f"note: no alpha is told for {tmp_path.name}" in capsys.readouterr().err
