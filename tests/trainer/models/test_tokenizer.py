from __future__ import annotations

import importlib.util
import json
import random

import pytest

from dreambooth.shared.errors import DreamboothError
from dreambooth.trainer.models import tokenizer as subject
from dreambooth.trainer.models.tokenizer import (
    Tokenizer,
    default_tokenizer,
    vocabulary,
    write_tokenizer_folder,
)

STRINGS = [
    "",
    " ",
    "photo of a sks dog",
    "Photo of a SKS Dog!",
    "a  dog,\n\tsitting ,on grass , , ,",
    "don't I'll we've they're he'd I'm it's DON'T",
    "1girl, 2025-11-20, 3.14159, 100% 1e-4 ½ ² ٣",
    "naïve café, cafe\u0301 — “quoted” … ÆØÅ ß İstanbul ſ ﬁ",
    "一只狗的照片，红色的帽子。",
    "犬の写真 강아지 사진 фото собаки صورة כלב",
    "🐶🐕‍🦺 👩‍👩‍👧 ❤️ a🐶b",
    "(masterpiece:1.2), [[low quality]], <lora:x:0.5> __wild__ a_b-c/d\\e",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "<|endoftext|> after <|startoftext|>the<|endoftext|>end <|ENDOFTEXT|>",
    "zero\u200bwidth non\u00a0breaking \u3000ideographic \x00 \x07 control",
    "!!! ??? ... --- ''' \"\"\" ,,, a,b ,c, 's 't",
    "a" * 300,
]


@pytest.fixture(scope="module")
def from_folder(tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp("tokenizer with spaces é")
    write_tokenizer_folder(folder)
    # transformers 4 has a second, slow implementation under the plain name, which splits Chinese differently
    kind = getattr(transformers, "CLIPTokenizerFast", transformers.CLIPTokenizer)
    return kind.from_pretrained(str(folder))


def test_the_prompt_everybody_checks_has_the_ids_everybody_gets():
    tokenizer = Tokenizer()
    ids = [tokenizer.start, *tokenizer("photo of a sks dog"), tokenizer.end]
    assert ids == [49406, 1125, 539, 320, 48136, 1929, 49407]


def test_the_vocabulary_has_the_published_size_and_corners():
    tokens, merges = vocabulary()
    assert (len(tokens), len(merges)) == (49408, 48894)
    assert sorted(tokens.values()) == list(range(49408))
    assert (tokens["!"], tokens["!</w>"], tokens["<|startoftext|>"]) == (0, 256, 49406)
    assert merges[:2] == [("i", "n"), ("t", "h")]


@pytest.mark.parametrize("text", STRINGS)
def test_ids_equal_those_of_transformers_read_from_the_written_folder(from_folder, text):
    assert default_tokenizer()(text) == from_folder(text, add_special_tokens=False)["input_ids"]


def test_ids_equal_those_of_transformers_on_random_unicode(from_folder):
    draw = random.Random(1)
    pools = ["abc XYZ,.!'", "éñüÅß", "0123456789", "狗红色的", "🐶❤️\u200d", " \t\n\u00a0", "\u0301\u0327"]
    for _ in range(500):
        text = "".join(draw.choice(draw.choice(pools)) for _ in range(draw.randrange(1, 40)))
        assert default_tokenizer()(text) == from_folder(text, add_special_tokens=False)["input_ids"], repr(
            text
        )


def test_transformers_built_in_memory_from_the_vocabulary_gives_the_same_ids():
    transformers = pytest.importorskip(
        "transformers", minversion="5"
    )  # 4 builds its tokenizer from files only
    tokens, merges = vocabulary()
    reference = transformers.CLIPTokenizer(vocab=tokens, merges=merges, model_max_length=77)
    for text in [text for text in STRINGS if "<|" not in text]:
        assert default_tokenizer()(text) == reference(text, add_special_tokens=False)["input_ids"]


def test_special_tokens_written_out_in_a_prompt_are_read_in_any_case():
    assert default_tokenizer()("dog <|endoftext|> <|ENDOFTEXT|>") == [1929, 49407, 49407]


@pytest.mark.parametrize(("pad", "pad_id"), [("end", 49407), ("0", 0)])
def test_the_written_folder_pads_as_its_family_does(tmp_path, pad, pad_id):
    import transformers

    write_tokenizer_folder(tmp_path, pad)
    read = transformers.CLIPTokenizer.from_pretrained(str(tmp_path))
    padded = read("a dog", padding="max_length", max_length=read.model_max_length, truncation=True)[
        "input_ids"
    ]
    assert padded == [49406, 320, 1929, 49407] + [pad_id] * 73


def test_the_written_files_have_unix_line_ends_and_one_line_a_merge(tmp_path):
    write_tokenizer_folder(tmp_path)
    merges = (tmp_path / "merges.txt").read_bytes()
    assert b"\r" not in merges
    assert merges.count(b"\n") == 48895


def test_counting_leaves_out_start_and_end():
    assert Tokenizer().count("photo of a sks dog") == 5


def test_the_comma_is_the_one_that_ends_a_word():
    tokenizer = Tokenizer()
    assert tokenizer("dog, cat") == [1929, tokenizer.comma, 2368]


def test_what_is_handed_out_can_be_changed_without_harm():
    tokens, merges = vocabulary()
    tokens.clear()
    merges.clear()
    assert len(vocabulary()[0]) == 49408


def test_a_missing_vocabulary_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DreamboothError, match="pip install --no-deps open_clip_torch"):
        subject._vocabulary_path()


def test_the_folders_vocabulary_is_written_as_json_writes_it(tmp_path):
    write_tokenizer_folder(tmp_path)
    text = (tmp_path / "vocab.json").read_text(encoding="utf-8")
    assert text == json.dumps(vocabulary()[0], ensure_ascii=False)
