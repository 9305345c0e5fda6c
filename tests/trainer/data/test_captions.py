from collections import Counter

import pytest

from dreambooth.shared.errors import InputError
from dreambooth.trainer.data.captions import (
    Tokens,
    Variation,
    caption_file,
    caption_in_name,
    caption_of,
    needs_caption,
    prompt_for,
    tidy,
    varied,
)

SKS = Tokens("sks", "dog")


@pytest.mark.parametrize("name", ["x.txt", "x.png.txt", "x.caption"])
def test_a_caption_is_read_from_each_place_where_tools_put_it(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbfa dog\r\n on grass \r\n")
    assert caption_of(tmp_path / "x.png") == "a dog on grass"
    assert caption_file(tmp_path / "x.png") == tmp_path / name


def test_the_commonest_place_comes_first_and_names_with_dots_are_not_cut(tmp_path):
    for name in ("x.v1.png.txt", "x.v1.caption", "x.v1.txt"):
        (tmp_path / name).write_text(name)
    assert caption_of(tmp_path / "x.v1.png") == "x.v1.txt"


def test_an_empty_caption_file_is_an_empty_caption(tmp_path):
    (tmp_path / "a dog.txt").write_text("\n")
    assert caption_of(tmp_path / "a dog.png") == ""


def test_a_caption_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\x00\x01\x02")
    with pytest.raises(InputError, match="not a text file"):
        caption_of(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("stem", "caption"),
    [
        ("photo of sks dog (3)", "photo of sks dog"),
        ("photo_of_sks_dog_12", "photo of sks dog"),
        ("sks dog 7", "sks dog"),
        ("sks dog-7", "sks dog"),
        ("00012-0-a photo of a dog", "a photo of a dog"),
        ("1girl, solo", "1girl, solo"),
        ("3d render", "3d render"),
        ("sks(1)", "sks"),
        ("IMG_2034", ""),
        ("DSC01234 (2)", ""),
        ("20230102_112233", ""),
        ("0007", ""),
        ("image (4)", ""),
        ("d41d8cd98f00b204e9800998ecf8427e", ""),
        ("123e4567-e89b-12d3-a456-426614174000", ""),
    ],
)
def test_a_file_name_is_a_caption_without_its_numbering(stem, caption):
    assert caption_in_name(stem) == caption


def test_a_name_of_digits_without_end_is_looked_at_quickly():
    assert caption_in_name("0" * 5000 + "!x") == "0" * 5000 + "!x"


def test_captions_lose_line_ends_empty_tags_and_the_webuis_backslashes():
    assert tidy("a,\n , b ,, c\\(d\\), ") == "a, b, c(d)"
    assert tidy(" ,a  dog, ") == "a dog"


@pytest.mark.parametrize(
    ("prompt", "caption", "result"),
    [
        ("photo of sks dog", "lying on grass", "photo of sks dog"),
        ("photo of sks dog, [filewords]", "lying on grass", "photo of sks dog, lying on grass"),
        ("[Filewords]", "a dog", "a dog"),
        ("", "a dog on grass", "a dog on grass"),
        ("photo of sks, [filewords]", "", "photo of sks"),
        ("[filewords] and [filewords]", r"\1", r"\1 and \1"),
    ],
)
def test_filewords_stand_for_the_caption_and_other_prompts_for_themselves(prompt, caption, result):
    assert prompt_for(prompt, caption, Tokens(), is_class=False) == result
    assert needs_caption(prompt) == (prompt != "photo of sks dog")


@pytest.mark.parametrize(
    ("caption", "instance", "of_class"),
    [
        ("a dog on grass", "sks dog on grass", "a dog on grass"),
        ("The Dog and a doghouse", "sks dog and a doghouse", "The Dog and a doghouse"),
        ("sks dog on grass", "sks dog on grass", "dog on grass"),
        ("sks on grass", "sks on grass", "dog on grass"),
        ("on grass", "sks dog, on grass", "dog, on grass"),
        ("SKS, grass", "SKS, grass", "dog, grass"),
        ("masks on grass", "sks dog, masks on grass", "dog, masks on grass"),
    ],
)
def test_tokens_are_put_in_or_taken_out_where_the_caption_asks_for_it(caption, instance, of_class):
    assert prompt_for("[filewords]", caption, SKS, is_class=False) == instance
    assert prompt_for("[filewords]", caption, SKS, is_class=True) == of_class


def test_one_token_alone_is_put_first():
    assert prompt_for("", "on grass", Tokens(instance="sks"), is_class=False) == "sks, on grass"
    assert prompt_for("", "sks on grass", Tokens(instance="sks"), is_class=True) == "on grass"
    assert prompt_for("", "on grass", Tokens(class_="dog"), is_class=True) == "dog, on grass"
    assert prompt_for("", "on grass", Tokens(class_="dog"), is_class=False) == "on grass"


def test_tokens_with_signs_of_their_own_are_plain_text():
    tokens = Tokens("<sks+>", "c++ (dog)")
    assert prompt_for("", "a c++ (dog) here", tokens, is_class=False) == "<sks+> c++ (dog) here"


def test_a_prompt_without_filewords_is_left_alone_by_the_token_rules():
    assert prompt_for("photo of a dog", "x", SKS, is_class=False) == "photo of a dog"


def test_captions_are_dropped_as_often_as_asked():
    dropped = sum(varied("a dog", Variation(dropout=0.1), seed) == "" for seed in range(5000))
    assert dropped == pytest.approx(500, abs=85)  # four standard deviations
    assert varied("a dog", Variation(), 1) == "a dog"
    assert varied("a dog", Variation(dropout=1.0), 1) == ""


def test_tags_are_shuffled_behind_those_that_are_kept():
    results = Counter(
        varied("sks dog, b,c , d", Variation(shuffle_tags=True, keep_tokens=1), n) for n in range(600)
    )
    assert len(results) == 6
    assert all(text.startswith("sks dog, ") and 60 < count < 140 for text, count in results.items())
    assert {tuple(sorted(text.split(", "))) for text in results} == {("b", "c", "d", "sks dog")}


def test_how_a_prompt_varies_is_decided_by_the_seed_alone():
    rules = Variation(dropout=0.5, shuffle_tags=True)
    once = [varied("a, b, c, d, e", rules, seed) for seed in range(50)]
    assert once == [varied("a, b, c, d, e", rules, seed) for seed in range(50)]
    assert len(set(once)) > 10
