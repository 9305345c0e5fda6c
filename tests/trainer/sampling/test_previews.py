"""Sample pictures: which ones, under which names, and that a stop leaves out what was not begun."""

from __future__ import annotations

import pytest
import tiny
from PIL import Image

from dreambooth.shared.concepts import Concept
from dreambooth.shared.config import settings_from
from dreambooth.trainer.data.survey import survey
from dreambooth.trainer.models.convert import load_model
from dreambooth.trainer.models.tokenizer import Tokenizer
from dreambooth.trainer.sampling import previews
from dreambooth.trainer.sampling.previews import Previews, preview_requests


@pytest.fixture(scope="module")
def model():
    return load_model(tiny.base())


def settings(**values: str):
    return settings_from({"resolution": "64", "seed": "7", "output_name": "sks", **values}, where="test")


@pytest.fixture
def found(tmp_path):
    """Two concepts, the second with a caption beside one photo."""
    photos = tiny.write_photos(tmp_path / "dogs", 2)
    (photos / "photo 0.txt").write_text("a wet dog")
    concepts = [
        Concept(instance_prompt="photo of sks cat", instance_data_dir=str(tiny.photos())),
        Concept(instance_prompt="[filewords], sks", instance_data_dir=str(photos)),
    ]
    return survey(concepts, prior=False, num_class_images=0)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(previews, "STEPS", 1)


def test_without_a_prompt_each_concept_s_own_is_shown_with_as_many_seeds_as_asked(found) -> None:
    asked = preview_requests(settings(num_validation_images="2"), found)
    assert [(request.prompt, request.seed) for request in asked] == [
        ("photo of sks cat", 7), ("photo of sks cat", 8), ("a wet dog, sks", 7), ("a wet dog, sks", 8),
    ]  # fmt: skip
    assert {(request.width, request.height) for request in asked} == {(64, 64)}


def test_a_prompt_of_one_s_own_replaces_them(found) -> None:
    given = settings(
        validation_prompt="sks cat in space", validation_negative_prompt="blurry", seed=str(2**32 + 3)
    )
    (request,) = preview_requests(given, found)
    assert (request.prompt, request.negative_prompt, request.seed) == ("sks cat in space", "blurry", 3)
    assert preview_requests(settings(num_validation_images="0"), found) == []


def test_pictures_are_files_that_say_how_they_were_made_each_with_an_event(
    found, model, tmp_path, quick
) -> None:
    told = []
    given = settings(num_validation_images="1")
    made = Previews(
        tmp_path / "samples", preview_requests(given, found), given, Tokenizer(),
        lambda event, **fields: told.append((event, fields)),
    )  # fmt: skip
    assert bool(made) and not made.are_made(20)
    paths = made.make(20, model)
    assert [path.name for path in paths] == ["000020-00-photo-of-sks-cat.png", "000020-01-a-wet-dog-sks.png"]
    assert made.are_made(20) and not made.are_made(0)
    told_of = [fields for event, fields in told if event == "sample"]
    about = [(fields["step"], fields["number"], fields["seed"], fields["prompt"]) for fields in told_of]
    assert sorted(about) == [(20, 0, 7, "photo of sks cat"), (20, 1, 7, "a wet dog, sks")]
    assert {fields["path"] for fields in told_of} == set(paths)
    counted = [fields["done"] if event == "progress" else event for event, fields in told]
    assert counted == [0, "sample", 1, "sample", 2]  # said before the first, so that nobody thinks it hangs
    with Image.open(paths[0]) as picture:
        assert picture.size == (64, 64)
        assert "photo of sks cat" in picture.info["parameters"] and "Seed: 7" in picture.info["parameters"]


def test_the_same_weights_give_the_same_picture_at_every_step(found, model, tmp_path, quick) -> None:
    given = settings(num_validation_images="1", validation_prompt="x")
    made = Previews(tmp_path, preview_requests(given, found), given, Tokenizer(), lambda *_, **__: None)
    assert made.make(1, model)[0].read_bytes() == made.make(2, model)[0].read_bytes()


def test_a_stop_leaves_out_what_was_not_begun(found, model, tmp_path, quick) -> None:
    given = settings(num_validation_images="3", validation_prompt="x", sample_batch_size="1")
    told = []
    made = Previews(
        tmp_path, preview_requests(given, found), given, Tokenizer(), lambda event, **_: told.append(event),
        should_stop=lambda: "sample" in told,
    )  # fmt: skip
    assert len(made.make(1, model)) == 1 == told.count("sample")


def test_a_prompt_of_signs_alone_still_gives_a_file_name(found, model, tmp_path, quick) -> None:
    given = settings(num_validation_images="1", validation_prompt="../?*")
    made = Previews(tmp_path / "s", preview_requests(given, found), given, Tokenizer(), lambda *_, **__: None)
    assert [path.name for path in made.make(3, model)] == ["000003-00-picture.png"]
