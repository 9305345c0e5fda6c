"""Advice: each remark on a concept that deserves it, and none on one that does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import ImageFilter
from test_looks import scene

from dreambooth.shared.concepts import Concept
from dreambooth.trainer.data.looks import look_at
from dreambooth.trainer.data.survey import survey
from dreambooth.trainer.models.tokenizer import default_tokenizer
from dreambooth.trainer.planning.advice import Surroundings, advise, concept_facts, frequency_rank, own_words

GOOD = {"instance_prompt": "photo of sks cat", "class_prompt": "photo of cat"}


@pytest.fixture
def photos(tmp_path) -> Path:
    """Ten photos with which nothing is wrong."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        scene(number, 256).save(folder / f"{number}.png")
    return folder


def looked_at(folder: Path, *, side: int = 256, chunks: int = 3, **values):
    """The concept with what it is looked at with."""
    concept = Concept(**{**GOOD, **values}, instance_data_dir=str(folder))
    (entry,) = survey(
        [concept], prior=bool(concept.class_prompt), num_class_images=2, class_root=folder.parent
    ).concepts
    targets = {image.content_id: (side, side) for image in entry.instance}
    return entry, Surroundings(targets, look_at(entry.instance), default_tokenizer(), chunks)


def captions(folder: Path) -> None:
    for path in folder.glob("*.png"):
        path.with_suffix(".txt").write_text("sks cat on a sofa")


def remarks(folder: Path, **values):
    return advise(*looked_at(folder, **values))


def test_good_photos_and_prompts_need_no_advice(photos) -> None:
    assert remarks(photos) == []


@pytest.mark.parametrize(
    ("left", "level"), [(9, "note"), (5, "note"), (3, "note"), (2, "warning"), (1, "warning")]
)
def test_few_photos_are_said(photos, left, level) -> None:
    for path in sorted(photos.iterdir())[left:]:
        path.unlink()
    (remark,) = remarks(photos)
    assert remark.level == level and remark.text.startswith(f"{left} photo")


def test_photos_that_are_enlarged_are_named_with_how_much(photos) -> None:
    scene(19, 200).save(photos / "small.png")
    (remark,) = remarks(photos)
    assert (remark.level, remark.files) == ("note", ("small.png",)) and "1.3 times" in remark.text
    much = remarks(photos, side=512)
    assert [found.level for found in much] == ["warning"] and len(much[0].files) == 11


def test_blurred_photos_are_named_relative_to_the_folder(photos) -> None:
    (photos / "more").mkdir()
    scene(19, 256).filter(ImageFilter.GaussianBlur(4)).save(photos / "more" / "soft.png")
    (remark,) = remarks(photos)
    assert remark.files == ("more/soft.png",) and "blurred" in remark.text


def test_near_duplicates_and_copies_are_told_apart(photos) -> None:
    scene(0, 256).save(photos / "near.jpg", quality=70)
    (photos / "copy.png").write_bytes((photos / "1.png").read_bytes())
    near, same = remarks(photos)
    assert near.files == ("0.png", "near.jpg") and "nearly the same" in near.text
    assert same.files == ("1.png", "copy.png") and "same file" in same.text


def test_a_caption_that_is_missing_where_others_have_one_is_said(photos) -> None:
    for number in range(9):
        (photos / f"{number}.txt").write_text("sks cat sleeping")
    (remark,) = remarks(photos, instance_prompt="[filewords]", instance_token="sks")
    assert remark.files == ("9.png",) and "caption" in remark.text
    assert not any("caption" in remark.text for remark in remarks(photos)), "it is not used there"


def test_a_class_prompt_that_is_the_instance_prompt_is_said_and_nothing_else_of_words(photos) -> None:
    (remark,) = remarks(photos, class_prompt="Photo of  SKS cat")
    assert remark.level == "warning" and "class prompt is the instance prompt" in remark.text


def test_a_known_word_as_the_subject_s_own_is_said_with_how_it_is_told(photos) -> None:
    (remark,) = remarks(photos, instance_prompt="photo of teapot cat")
    tokenizer = default_tokenizer()
    assert "knows" in remark.text and f"number {tokenizer('teapot')[0] - 511}" in remark.text
    assert tokenizer.count("teapot") == 1


def test_no_word_of_its_own_is_said(photos) -> None:
    (remark,) = remarks(photos, instance_prompt="photo of cat", class_prompt="a photo of cat")
    assert "no word of the instance prompt" in remark.text
    (remark,) = remarks(photos, instance_prompt="photo of cat", class_prompt="")
    assert "no word of the instance prompt" in remark.text


def test_captions_alone_say_themselves_what_the_subject_is_called(photos) -> None:
    captions(photos)
    assert remarks(photos, instance_prompt="[filewords]", class_prompt="") == []


def test_a_word_of_many_pieces_is_a_note(photos) -> None:
    (remark,) = remarks(photos, instance_prompt="photo of xqzvwkjy cat")
    assert remark.level == "note" and f"{default_tokenizer().count('xqzvwkjy')} tokens" in remark.text


def test_a_prompt_that_is_cut_is_said(photos) -> None:
    (remark,) = remarks(photos, instance_prompt="photo of sks cat" + ", furry" * 80, chunks=2)
    assert "longer than 150 tokens" in remark.text and len(remark.files) == 10
    assert remarks(photos, instance_prompt="photo of sks cat" + ", furry" * 80, chunks=3) == []


def test_photos_among_the_class_images_are_said(photos, tmp_path) -> None:
    of_the_class = tmp_path / "class"
    of_the_class.mkdir()
    (of_the_class / "x.png").write_bytes((photos / "3.png").read_bytes())
    (remark,) = remarks(photos, class_data_dir=str(of_the_class))
    assert remark.files == ("3.png",) and "class images" in remark.text


@pytest.mark.parametrize("word", ["sks", "ohwx", "olis"])
def test_the_usual_rare_words_are_rare(word) -> None:
    assert frequency_rank(default_tokenizer(), word) is None


@pytest.mark.parametrize("word", ["dog", "corgi", "jennifer", "teapot"])
def test_words_of_everyday_are_known_by_their_rank(word) -> None:
    rank = frequency_rank(default_tokenizer(), word)
    assert rank == default_tokenizer()(word)[0] - 511


@pytest.mark.parametrize(
    ("prompts", "rare", "known"),
    [
        (("photo of sks cat", "photo of cat"), ("sks",), ()),
        (("photo of sks cat sleeping", "photo of a cat"), ("sks",), ("sleeping",)),
        (("photo of sks cat", ""), ("sks",), ()),
        (("photo of teapot", ""), (), ()),
        (("photo of dog dog", "photo of dog"), (), ("dog",)),
        (("photo of dog dog", ""), (), ("dog",)),
        (("photo of sks cat, a sks cat", "photo of cat"), ("sks",), ("cat", "a")),
        (("[filewords]", "cat"), (), ()),
    ],
)
def test_the_subject_s_own_words_are_those_that_the_class_has_not(prompts, rare, known, photos) -> None:
    captions(photos)
    entry, around = looked_at(photos, instance_prompt=prompts[0], class_prompt=prompts[1])
    found = own_words(entry, around.tokenizer)
    assert (found.rare, found.known) == (rare, known)


def test_an_instance_token_is_the_subject_s_own_word_wherever_it_stands(photos) -> None:
    entry, around = looked_at(photos, instance_prompt="[filewords]", instance_token="sks", class_token="cat")
    assert own_words(entry, around.tokenizer).token == "sks"


def test_the_facts_are_plain_json_with_counts_and_tokens(photos) -> None:
    facts = concept_facts(*looked_at(photos))
    assert json.loads(json.dumps(facts)) == {
        "instance_prompt": "photo of sks cat", "class_prompt": "photo of cat", "images": 10, "class_images": 0,
        "class_images_to_make": 2, "instance_tokens": 4, "rare_token": "sks", "rare_token_count": 1, "advice": [],
    }  # fmt: skip
