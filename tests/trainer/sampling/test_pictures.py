from __future__ import annotations

import hashlib
import io

import pytest
from PIL import Image

from dreambooth.trainer.sampling.pictures import content_digits, parameters_text, png_bytes
from dreambooth.trainer.sampling.sample import SampleRequest


def test_a_png_carries_its_pixels_and_its_parameters():
    picture = Image.new("RGB", (8, 16), (10, 20, 30))
    read = Image.open(io.BytesIO(png_bytes(picture, "一只狗\nSteps: 1")))
    assert read.size == (8, 16)
    assert read.tobytes() == picture.tobytes()
    assert read.text == {"parameters": "一只狗\nSteps: 1"}


def test_the_digits_are_those_of_the_sha256():
    assert content_digits(b"dog") == hashlib.sha256(b"dog").hexdigest()[:12]


def test_parameters_are_written_as_the_webui_writes_them():
    request = SampleRequest("a dog", "blurry", 42, 20, 7.0, 512, 768, "dpmpp_2m_karras")
    text = parameters_text(
        request, sampler_title="DPM++ 2M, Schedule type: Karras", model="my model", clip_skip=2
    )
    assert text == (
        "a dog\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 42, Size: 512x768, "
        "Model: my model, Clip skip: 2"
    )


@pytest.mark.parametrize(("model", "written"), [("a,b", '"a,b"'), ("a: b", '"a: b"'), ("dög", "dög")])
def test_a_value_that_would_break_the_list_apart_is_quoted(model, written):
    text = parameters_text(SampleRequest("x"), sampler_title="Euler", model=model)
    assert text.endswith(f"Model: {written}")
    assert text.startswith("x\nSteps: 20")
