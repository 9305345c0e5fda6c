"""What the trainer and the server say, as the page shows it: in the page's language, photos by their owner's names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import page_texts
import pytest
import translations
from fake_page import PLAN, FakeWebUI
from test_page import PHOTO

ROOT = Path(__file__).resolve().parents[2]


def test_an_error_of_several_lines_is_translated_line_by_line_and_a_photo_has_its_own_name(page):
    table = translations.table()
    text = "2 images cannot be used:\n  eins.jpg: it is damaged (too short)\n  zwei.png: the file is empty"
    remedy = "Replace or remove them, or set allow_bad_images: yes to leave them out."
    error = {"error": {"text": text, "where": "concepts[0].instance_data_dir", "remedy": remedy}}
    file = {
        "name": "0123.jpg",
        "called": "eins.jpg",
        "thumbnail": "x",
        "width": 8,
        "height": 8,
        "caption": None,
    }
    look = {"path": "/data/photos/set-1", "count": 1, "files": [file], "problems": [], "own": True}
    answers = {"POST plan": (400, error), "POST photos/look": look}
    FakeWebUI(page, localization=table, answers=answers).open()
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.wait_for_selector("#dbt_view_new .dbt-plan :text('有 2 张图片不能使用')")
    shown = page.inner_text(".dbt-plan")
    assert "eins.jpg: 它已损坏（too short）" in shown and "zwei.png: 文件为空" in shown
    assert table[remedy].replace("allow_bad_images", f"“{table['Leave out bad images']}”") in shown
    assert page.get_attribute(".dbt-thumb", "title").startswith("eins.jpg")
    assert page.get_attribute(".dbt-thumb", "data-name") == "0123.jpg"


def test_a_setting_in_a_remedy_is_called_as_its_field_and_not_as_a_file_has_it(page):
    error = {"text": "x is there already", "where": "output_name"}
    remedy = "choose another name, or set overwrite: yes to replace it"
    FakeWebUI(page, answers={"POST plan": (400, {"error": {**error, "remedy": remedy}})}).open()
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.wait_for_selector("#dbt_reason .dbt-error")
    label = page.inner_text("label[for=dbt_f_overwrite]") or page.text_content("label[for=dbt_f_overwrite]")
    assert f"set “{label}” to yes to replace it" in page.inner_text("#dbt_reason")


def test_pictures_of_a_style_without_captions_are_remarked_on_and_of_nothing_else(page):
    FakeWebUI(page).open()
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.wait_for_selector(".dbt-thumb")
    assert "caption" not in page.inner_text(".dbt-concept ul.dbt-advice >> nth=0")
    page.click("[data-preset=style] input")
    page.wait_for_selector(".dbt-concept .dbt-warning:has-text('No picture has a caption')")


def test_a_presets_card_speaks_of_class_images_only_where_they_are_made(page):
    FakeWebUI(page).open()
    card = "[data-preset=subject] .dbt-help"
    assert page.inner_text(card).endswith("Class images are made so that other ones stay different.")
    page.select_option("#dbt_f_output_kind", "lora")
    page.wait_for_function(f"() => document.querySelector('{card}').textContent.endsWith('Learns fast.')")
    page.select_option("#dbt_f_output_kind", "checkpoint")
    page.wait_for_function(f"() => document.querySelector('{card}').textContent.includes('Class images')")


def test_while_a_training_runs_the_next_one_is_planned_and_keeps_its_remarks(page):
    advice = [{"level": "warning", "text": "2 photos look blurred: what is not sharp", "files": []}]
    plan = {**PLAN, "concepts": [{"rare_token": "ohwx", "rare_token_count": 1, "advice": advice}]}
    webui = FakeWebUI(page, answers={"POST plan": plan}).open()
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.wait_for_selector(".dbt-advice :text('look blurred')")
    run = {"name": "me", "state": "running", "step": 0, "steps": 9, "error": "", "changed": 1, "result": None}
    webui.answers["GET runs"] = {"runs": [run], "active": "me", "starting": None, "failed_start": None}
    taken = {
        "text": "'me.safetensors' belongs to the run 'me'",
        "where": "output_name",
        "remedy": "choose another name",
    }
    webui.answers["POST plan"] = (400, {"error": taken})
    page.fill("#dbt_f_output_name", "me")
    page.wait_for_selector("#dbt_reason :text(\"belongs to the run 'me'\")")
    page.wait_for_selector("#dbt_reason :text('A training is running')")
    assert page.is_visible(".dbt-advice :text('look blurred')")


def test_a_damaged_photo_hides_no_other_remark(page):
    wrong = {
        "text": "an image cannot be used:\n  eins.jpg: it is damaged (too short)",
        "where": "concepts[0].instance_data_dir",
        "remedy": "Replace it.",
    }
    advice = [{"level": "warning", "text": "2 photos look blurred: what is not sharp", "files": ["zwei.jpg"]}]
    known = {"level": "warning", "text": "the subject's word is one that the model knows", "files": []}
    concepts = [{"rare_token": "ohwx", "rare_token_count": 1, "advice": [*advice, known]}]
    answers = {"POST plan": (400, {"error": wrong, "concepts": concepts})}
    FakeWebUI(page, answers=answers).open()
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.wait_for_selector("#dbt_reason :text('it is damaged')")
    page.wait_for_selector(".dbt-advice :text('look blurred')")
    assert page.is_visible(".dbt-words-advice :text('one that the model knows')")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("x.ckpt: this is Stable Diffusion 3, which is not supported", "x.ckpt: 这是 Stable Diffusion 3，不受支持"),
        ("learning_rate 2e-06, the usual for a whole model", "学习率 2e-06，完整模型的常用值"),
        ("the loss became NaN or infinite; the weights were not touched by it", "损失变为 NaN 或无穷大；权重没有受到影响"),
        ("no sample pictures at step 40: RuntimeError: some words", "第 40 步没有生成示例图片：RuntimeError: some words"),
        ("3 things that nobody translated: C:\\x", "3 things that nobody translated: C:\\x"),
    ],
)  # fmt: skip
def test_a_sentence_of_the_trainers_is_shown_in_chinese_with_its_values(page, said, shown):
    table = translations.table()
    FakeWebUI(page, localization=table).open()
    assert page.evaluate("(text) => window.dreamboothTrainer.said(text)", said) == shown


@pytest.mark.parametrize(
    ("language", "said", "shown"),
    [
        ("", "`learning_rate` cannot be -1", "“Learning rate” cannot be -1."),
        ("", "set overwrite: yes, or num_class_images: 0", "Set “Replace an existing file” to yes, or “Class images”: 0."),
        ("", "no file: /a/use_ema/x, C:\\use_ema, use_ema.pt", "No file: /a/use_ema/x, C:\\use_ema, use_ema.pt."),
        ("zh_CN", "concept 2, class_data_dir: it is not a folder: /x", "概念 2，“类别图像文件夹”: 不是文件夹：/x。"),
        ("zh_CN", "`max_train_steps` cannot be 'many'", "“步数” 不能是 'many'。"),
    ],
)  # fmt: skip
def test_a_setting_is_called_as_the_page_calls_it(page, language, said, shown):
    known = ROOT / "localizations" / f"{language}.json"
    table = json.loads(known.read_text(encoding="utf-8")) if language else None
    FakeWebUI(page, localization=table).open()
    assert page.evaluate("(text) => window.dreamboothTrainer.sentences(text)", said) == shown


def test_the_plans_memory_says_of_each_setting_whether_it_was_asked_or_chosen(page):
    table = translations.table()
    gigabyte = 2**30
    lines = [{"text": "UNet, trained, bfloat16", "bytes": 2 * gigabyte}]
    ways = [
        {
            "name": "gradient_checkpointing",
            "value": "12",
            "asked": True,
            "does": "12 of the UNet's 37 blocks are computed twice instead of kept",
        },
        {"name": "optimizer", "value": "adamw8bit", "asked": False, "does": "it keeps 1.86 GB"},
    ]
    memory = {
        "phases": [{"name": "training", "bytes": 2 * gigabyte, "in_turn": False, "lines": lines}],
        "peak": 2 * gigabyte, "of": "the card", "free": 8 * gigabyte, "allowed": 8 * gigabyte,
        "usable": 7 * gigabyte, "fits": True, "ways": ways,
    }  # fmt: skip
    FakeWebUI(page, localization=table, answers={"POST plan": {**PLAN, "memory": memory}}).open()
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.wait_for_selector(".dbt-memory details")
    page.click(".dbt-memory summary")
    rows = page.locator(".dbt-memory tr").all_inner_texts()
    assert [row.split("\t")[-1] for row in rows[-2:]] == [table["as asked"], table["chosen"]]
    assert "gradient_checkpointing: 12" in rows[-2] and "37 个块中有 12 个计算两次" in rows[-2]
    assert "optimizer: adamw8bit" in rows[-1] and "其状态占 1.86 GB" in rows[-1]
    assert table["fits but for sample pictures"] not in page.inner_text(".dbt-memory")


def test_sample_pictures_that_do_not_fit_are_told_from_a_training_that_does_not(page):
    phase = {"name": "samples", "bytes": 9 * 2**30, "in_turn": True, "lines": []}
    memory = {"phases": [phase], "peak": 9 * 2**30, "allowed": 8 * 2**30, "usable": 7 * 2**30, "fits": True}
    FakeWebUI(page, answers={"POST plan": {**PLAN, "memory": memory}}).open()
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.wait_for_selector(".dbt-memory :text('fits but for sample pictures')")
    assert "may not fit" not in page.inner_text(".dbt-memory")


NUMBERS = {"n", "m", "h", "s", "all", "step", "steps", "of", "done", "count", "low", "high"}
NAME = "/data/我的 cat.safetensors"
CHINESE = re.compile("[\u3000-\u9fff\uff00-\uffef]")


def filled(key: str) -> str:
    """A text with numbers and names in it; what stands before a colon is no file, or it would be a place."""

    def value(found: re.Match[str]) -> str:
        usual = "我的" if key.startswith(": ", found.end()) else NAME
        return "7" if found[1] in NUMBERS else "7 photos" if found[1] == "photos" else usual

    return re.sub(r"\{(\w+)\}", value, key)


def test_each_text_has_the_capital_and_the_full_stop_of_its_own_language(page):
    table = translations.table()
    said = table.keys() - page_texts.of_page()  # the page's own words are no parts of sentences
    texts = {key: filled(key) for key in sorted(said)}
    FakeWebUI(page).open()
    ask = "(texts) => texts.map((text) => window.dreamboothTrainer.sentences(text))"
    shown = dict(zip(texts, page.evaluate(ask, list(texts.values())), strict=True))
    begins = {key: re.match(r"[a-z]+(?=[ ,'’])", key) for key in texts}
    assert [key for key, word in begins.items() if word and shown[key][0] != key[0].upper()] == []
    assert [
        key for key, word in begins.items() if not word and shown[key][0] not in (texts[key][0], "“")
    ] == []
    assert [key for key in texts if shown[key][-1] == "。" and not CHINESE.search(key)] == []
    page.unroute_all()
    FakeWebUI(page, localization=table).open()
    shown = dict(zip(texts, page.evaluate(ask, list(texts.values())), strict=True))
    in_chinese = [key for key in texts if CHINESE.search(re.sub(r"\{\w+\}", "", table[key]))]
    assert len(in_chinese) > 600
    assert [(key, shown[key]) for key in in_chinese if shown[key][-1] not in "。！？：….:"] == []
    stops = [
        shown[key] for key in in_chinese if shown[key][-1] == "." and not table[key].endswith((".", "…"))
    ]
    assert stops == []


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("my cat.jpg: it is damaged", "my cat.jpg: it is damaged."),
        ("my settings.yaml, line 3: it is no JSON", "my settings.yaml, line 3: it is no JSON."),
        ("'my cat.safetensors' is being made", "'my cat.safetensors' is being made."),
        ("images/my cat is there already", "images/my cat is there already."),
        ("this may be a name: 我的猫 (v1)", "This may be a name: 我的猫 (v1)."),
        ("concept 2, class_prompt: it is empty", "Concept 2, “Class prompt”: it is empty."),
        ("no file: x.\n  mine: it is empty", "No file: x.\n  mine: it is empty."),
    ],
)
def test_a_name_keeps_its_letters_and_makes_no_full_stop_chinese(page, said, shown):
    FakeWebUI(page).open()
    assert page.evaluate("(text) => window.dreamboothTrainer.sentences(text)", said) == shown


def test_chinese_lists_and_sentences_are_set_as_chinese_is(page):
    table = translations.table()
    FakeWebUI(page, localization=table).open()
    told = "no effect, since the whole model is trained and no adapter: `rank`, `clip_rank`"
    shown = page.evaluate(
        "(text) => window.dreamboothTrainer.sentences(text, 'resume goes on with it')", told
    )
    labels = "、".join(f"“{table[name]}”" for name in ("Rank", "Clip the rank"))
    assert shown == f"不起作用，因为训练的是整个模型而不是适配器：{labels}。可用“{table['Resume']}”接着进行。"
    helps = "\n".join(page.locator(".dbt-help").all_text_contents())
    assert len(helps) > 1000 and not re.search("[。！？] ", helps)
    assert table["Go on"] != table["Resume"]
