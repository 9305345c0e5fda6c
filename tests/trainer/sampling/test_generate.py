from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sampling_models import tiny_model

from dreambooth.shared.errors import InputError, RunFailed
from dreambooth.trainer.adapters.merging import Request
from dreambooth.trainer.models.tokenizer import default_tokenizer
from dreambooth.trainer.sampling import generate as subject
from dreambooth.trainer.sampling.generate import generate, parse_size
from dreambooth.trainer.sampling.sample import SampleRequest, sample


def loaded():
    model = tiny_model("sd1", "epsilon")
    model.source = SimpleNamespace(metadata={"modelspec.resolution": "64x64"})
    model.configs = {"unet": {}, "text_encoder": {"num_hidden_layers": 2}}
    return model


@pytest.fixture
def model(monkeypatch):
    made = loaded()
    # read once by a process that ends soon: the weights stay in the file's pages
    monkeypatch.setattr(subject, "load_model", lambda path, dtype, mapped, adapters: made if mapped else None)
    monkeypatch.setattr(subject, "choose_device", lambda: torch.device("cpu"))
    return made


def test_the_picture_is_the_samplers_own_and_says_how_it_was_made(model, tmp_path):
    out = tmp_path / "new folder" / "dög.png"
    written = generate("base.safetensors", "a dog", out, seed=3, steps=2, negative="blurry", clip_skip=2)
    request = SampleRequest("a dog", "blurry", 3, 2, 7.5, 64, 64)
    ((_, expected),) = sample(model, default_tokenizer(), [request], batch_size=1, clip_skip=2)
    assert written == out
    with Image.open(out) as image:
        assert np.array_equal(np.asarray(image), np.asarray(expected))
        assert image.text["parameters"] == (
            "a dog\nNegative prompt: blurry\nSteps: 2, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: 3, "
            "Size: 64x64, Model: base, Clip skip: 2"
        )
    assert [path.name for path in out.parent.iterdir()] == ["dög.png"]


def test_the_picture_says_how_much_of_each_adapter_is_in_it(model, tmp_path):
    adapters = [Request(tmp_path / "whole.safetensors"), Request(tmp_path / "half.safetensors", 0.5)]
    generate("base.safetensors", "a dog", tmp_path / "dog.png", steps=1, adapters=adapters)
    with Image.open(tmp_path / "dog.png") as image:
        assert image.text["parameters"].endswith('Model: "base+whole+half:0.5"')


def test_an_earlier_picture_is_replaced_where_that_is_asked_for(model, tmp_path):
    out = tmp_path / "dog.png"
    out.write_text("old")
    with pytest.raises(InputError, match=r"dog\.png is there already") as refused:
        generate("base.safetensors", "a dog", out, steps=1, size="72x64")
    assert "--overwrite" in refused.value.remedy and out.read_text() == "old"
    generate("base.safetensors", "a dog", out, steps=1, size="72x64", overwrite=True)
    with Image.open(out) as image:
        assert image.size == (72, 64)


@pytest.mark.parametrize(
    ("size", "expected"), [("", None), ("512", (512, 512)), ("512x768", (512, 768)), ((64, 72), (64, 72))]
)
def test_a_size_is_one_number_or_two(size, expected):
    assert parse_size(size) == expected


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"size": "big"}, "--size"),
        ({"size": "500x512"}, "--size"),
        ({"size": "0"}, "--size"),
        ({"steps": 0}, "--steps"),
        ({"seed": -1}, "--seed"),
        ({"guidance_scale": float("nan")}, "--guidance-scale"),
        ({"sampler": "plms"}, "--sampler"),
        ({"clip_skip": 3}, "--clip-skip"),
        ({"clip_skip": 0}, "--clip-skip"),
        ({"out": "dog.jpg"}, "--out"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_computed(model, tmp_path, arguments, where):
    model.components.clear()
    arguments = {"out": "dog.png", **arguments}
    out = tmp_path / arguments.pop("out")
    with pytest.raises(InputError) as caught:
        generate("base.safetensors", "a dog", out, **arguments)
    assert caught.value.where == where
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_folder_as_the_pictures_name_is_refused(model, tmp_path):
    (tmp_path / "dog.png").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        generate("base.safetensors", "a dog", tmp_path / "dog.png")


def test_what_overflows_in_half_precision_is_drawn_in_float32(model, tmp_path):
    for module in model.components.values():
        module.to(torch.bfloat16)
    unet = model.components["unet"]

    def overflow(module, arguments, output):
        return (output[0] * torch.inf,) if output[0].dtype == torch.bfloat16 else output

    unet.register_forward_hook(overflow)
    generate("base.safetensors", "a dog", tmp_path / "dog.png", steps=1)
    assert next(unet.parameters()).dtype == torch.float32
    assert np.asarray(Image.open(tmp_path / "dog.png")).std() > 0


def test_a_broken_model_leaves_no_picture(model, tmp_path):
    model.components["unet"].conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(RunFailed):
        generate("base.safetensors", "a dog", tmp_path / "dog.png", steps=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["64x0", "0", "0x64"])
def test_a_size_of_nothing_is_told_what_a_size_is(size):
    with pytest.raises(InputError, match="has none") as refused:
        parse_size(size)
    assert "512x768" in refused.value.remedy
