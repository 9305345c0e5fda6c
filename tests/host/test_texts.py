"""The localization holds every text of the page, and the page passes every text through it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import page_texts
import pytest
import translations

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "localizations").glob("*.json"))
# what the page shows of others' words: the trainer's remarks, and the host's own answers
SAID = (
    *("dreambooth/trainer/planning/advice.py", "dreambooth/host/endings.py", "dreambooth/host/busy.py"),
    *("dreambooth/host/other_formats.py", "dreambooth/host/thumbnails.py"),
    *("dreambooth/host/webui.py", "dreambooth/host/access.py", "dreambooth/installing.py"),
)

each_language = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def table(path: Path) -> dict[str, str]:
    return translations.table(path.stem)


def names(text: str) -> list[str]:
    return sorted(re.findall(r"\{\w+\}", text))


@each_language
def test_every_text_of_the_page_is_translated(path: Path) -> None:
    assert sorted(page_texts.of_page() - table(path).keys()) == []


@each_language
def test_a_translation_fills_in_the_same_values(path: Path) -> None:
    assert [key for key, text in table(path).items() if names(key) != names(text)] == []


@each_language
def test_no_translation_is_empty_and_no_name_stands_twice(path: Path) -> None:
    pairs = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=list)
    assert len(pairs) == len({key for key, _ in pairs})
    assert [key for key, text in pairs if not text.strip()] == []


@each_language
def test_words_that_the_webui_has_too_are_left_to_it(path: Path) -> None:
    """The WebUI looks each text of its own pages up in the same table, and the last file that has it wins."""
    plain = json.loads(path.read_text(encoding="utf-8")).keys()
    words = {
        "Train",
        "Seed",
        "Batch size",
        "Steps",
        "Save",
        "Model",
        "Checkpoint",
        "Clip skip",
        "Learning rate",
    }
    assert words & plain == set() and words <= table(path).keys()


def test_there_is_a_chinese_localization_under_the_name_that_the_webui_lists() -> None:
    assert "zh_CN" in [path.stem for path in FILES]


@each_language
def test_what_a_friend_and_a_dead_trainer_say_is_translated(path: Path) -> None:
    patterns = [
        re.compile(re.sub(r"\\{\w+\\}", "(.+?)", re.escape(key)), re.DOTALL)
        for key in table(path)
        if re.search(r"\w", re.sub(r"\{\w+\}", "", key))
    ]
    missing = [
        text
        for name in SAID
        for text in page_texts.said_in(ROOT / name)
        if _is_sentence(text)
        # Settings show an option's explanation in brackets, which are part of what is looked up
        and not any(
            found.fullmatch(shown.replace("{}", "7")) for shown in (text, f"({text})") for found in patterns
        )
    ]
    assert missing == []


def _is_sentence(text: str) -> bool:
    """Not a pattern, a fragment with nothing but values, or markup."""
    return len(re.findall(r"[a-z]{3,}", text)) >= 3 and not re.search(r"\\|<|\^|\||^Traceback", text)


@pytest.mark.parametrize("path", page_texts.scripts(), ids=lambda path: path.stem)
def test_a_script_shows_no_sentence_that_nothing_translates(path: Path) -> None:
    assert sorted(page_texts.unmarked(path.read_text(encoding="utf-8"))) == []


def test_the_collector_finds_texts_in_every_form_that_the_scripts_use() -> None:
    source = """
    db.t("One {n}", {n}); db.count(2, "{n} thing", "{n} things"); const STATES = {a: "Alpha", b: "Beta"};
    [{do: "x", title: "Title", help: "Help me.", ask: "Sure?"}]; // db.t("not this")
    db.h("p", {}, "Forgotten text.");
    """
    assert page_texts.of_script(source) == {
        "One {n}", "{n} thing", "{n} things", "Alpha", "Beta", "Title", "Help me.", "Sure?",
    }  # fmt: skip
    assert page_texts.unmarked(source) == {"Forgotten text."}


@pytest.mark.parametrize("path", page_texts.scripts(), ids=lambda path: path.stem)
def test_a_script_never_turns_text_into_markup(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", source
    )


@pytest.mark.parametrize("path", page_texts.scripts(), ids=lambda path: path.stem)
def test_a_script_leaves_one_name_in_the_page(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.startswith('"use strict";\n')
    assert source.rstrip().endswith("})(window.dreamboothTrainer = window.dreamboothTrainer || {});")
    assert not re.search(r"^(?:const|let|var|function|class) ", source, re.MULTILINE)
