"""The page's scripts in a real browser, with recorded answers in place of the WebUI."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_page import LIVE, MODELS, PLAN, FakeWebUI

ROOT = Path(__file__).resolve().parents[2]
PHOTO = {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"x"}
OFF = "#dbt_train[disabled]"
ON = "#dbt_train:not([disabled])"


def drop_photos(page) -> None:
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.wait_for_selector(ON)


def planned(webui: FakeWebUI) -> dict:
    return webui.sent("POST plan")[-1]["form"]


def test_a_newcomer_needs_photos_a_name_and_train(page):
    webui = FakeWebUI(page, answers={"POST runs": {"run": "me"}, "GET runs/me/live": LIVE}).open()
    page.wait_for_selector(OFF)
    assert "photos first" in page.inner_text("#dbt_reason")
    drop_photos(page)
    page.fill("#dbt_f_output_name", "me")
    page.wait_for_function("document.querySelector('#dbt_train').disabled === false")
    page.click("#dbt_train")
    [started] = webui.until_sent("POST runs", 1)
    form = started["form"]
    assert form["model"] == MODELS[1]["path"], "the loaded checkpoint"
    assert form["output_name"] == "me"
    assert form["concepts"] == [
        {
            "instance_prompt": "photo of ohwx person",
            "class_prompt": "photo of person",
            "instance_data_dir": "/data/photos/set-1",
        }
    ]
    page.wait_for_selector("#dbt_state:has-text('Running')")


def test_only_what_differs_from_the_default_is_sent(page):
    webui = FakeWebUI(page).open()
    drop_photos(page)
    page.fill("#dbt_f_steps_per_image", "50")
    page.fill("#dbt_f_steps_per_image", "100")
    page.fill("#dbt_f_train_batch_size", "3")
    page.wait_for_selector(ON)
    assert planned(webui)["train_batch_size"] == 3
    assert "steps_per_image" not in planned(webui)


@pytest.mark.parametrize(
    ("name", "typed", "told"),
    [
        ("learning_rate", "fast", "not a number"),
        ("learning_rate", "7", "From 0 to 1"),
        ("max_train_steps", "1.5", "whole number"),
        ("train_batch_size", "0", "From 1 to 256"),
    ],
)
def test_what_cannot_be_a_value_is_said_beside_its_field_and_turns_train_off(page, name, typed, told):
    webui = FakeWebUI(page).open()
    drop_photos(page)
    before = len(webui.sent("POST plan"))
    page.fill(f"#dbt_f_{name}", typed)
    page.wait_for_selector(OFF)
    assert told in page.inner_text(f"[data-field={name}] .dbt-error-text")
    assert told in page.inner_text("#dbt_reason")
    page.wait_for_timeout(900)  # longer than the page waits before it plans
    assert len(webui.sent("POST plan")) == before
    page.fill(f"#dbt_f_{name}", "")
    page.wait_for_selector(ON)
    assert page.inner_text(f"[data-field={name}] .dbt-error-text") == ""


def test_small_rates_and_decimal_commas_are_read_and_written_as_people_do(page):
    webui = FakeWebUI(page, form={"learning_rate": 0.0000015}).open()
    assert page.input_value("#dbt_f_learning_rate") == "1.5e-6"
    drop_photos(page)
    page.click("[data-group=prior] > summary")
    page.fill("#dbt_f_class_guidance_scale", "6,5")
    page.wait_for_selector(ON)
    assert planned(webui)["class_guidance_scale"] == 6.5


def test_the_plans_error_stands_beside_the_field_that_it_names_and_can_be_gone_to(page):
    error = {"text": "this model's text encoder has 12 layers", "where": "clip_skip", "remedy": "use 1 to 12"}
    FakeWebUI(page, answers={"POST plan": (400, {"error": error})}).open()
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.wait_for_selector("#dbt_reason .dbt-error")
    error_text = "[data-field=clip_skip] .dbt-error-text:has-text('Use 1 to 12.')"
    page.wait_for_selector(error_text, state="attached")
    assert page.is_disabled("#dbt_train")
    page.click("#dbt_reason button")
    assert page.evaluate("document.activeElement.id") == "dbt_f_clip_skip"
    assert page.is_visible("#dbt_f_clip_skip"), "its accordion was opened"


def test_a_concepts_error_is_shown_in_that_concept(page):
    error = {"text": "there are no images in /x", "where": "concepts[1].instance_data_dir", "remedy": ""}
    concepts = [
        {"instance_data_dir": "/a", "instance_prompt": "a"},
        {"instance_data_dir": "/x", "instance_prompt": "b"},
    ]
    FakeWebUI(page, form={"concepts": concepts}, answers={"POST plan": (400, {"error": error})}).open()
    page.wait_for_selector("[data-concept='1'] .dbt-wrong")
    assert page.locator("[data-concept='0'] .dbt-wrong").count() == 0


def test_the_two_words_write_the_prompts(page):
    webui = FakeWebUI(page).open()
    page.fill("#dbt_c0_kind", "red panda")
    page.fill("#dbt_c0_word", "phol")
    assert page.input_value("#dbt_c0_instance_prompt") == "photo of phol red panda"
    assert page.input_value("#dbt_c0_class_prompt") == "photo of red panda"
    page.fill("#dbt_c0_instance_prompt", "a drawing of zzz panda, ink")
    page.fill("#dbt_c0_class_prompt", "a drawing of panda, ink")
    assert page.input_value("#dbt_c0_word") == "zzz"
    page.click("text=Pet or object")
    assert page.input_value("#dbt_c0_instance_prompt") == "a drawing of zzz panda, ink", "own words are kept"
    drop_photos(page)
    assert planned(webui)["gradient_accumulation_steps"] == 4


def test_a_typed_word_outlives_a_look_at_the_presets_and_a_suggested_one_does_not(page):
    FakeWebUI(page).open()
    for preset, kind in (("subject", "dog"), ("person", "person")):
        page.click(f"[data-preset={preset}]")
        assert page.input_value("#dbt_c0_kind") == kind
    page.fill("#dbt_c0_kind", "cat")
    page.fill("#dbt_c0_word", "mycat")
    for preset in ("person", "subject", "person"):
        page.click(f"[data-preset={preset}]")
        assert page.input_value("#dbt_c0_instance_prompt") == "photo of mycat cat"
    page.click("[data-preset=style]")
    assert page.input_value("#dbt_c0_instance_prompt") == "picture in mycat style"
    page.click("[data-preset=subject]")
    assert page.input_value("#dbt_c0_instance_prompt") == "photo of mycat cat"
    assert page.input_value("#dbt_c0_class_prompt") == "photo of cat"


def test_what_was_refused_is_still_said_after_a_preset(page):
    answer = {
        "folder": "s",
        "path": "/data/photos/s",
        "files": [],
        "refused": [{"name": "a.gif", "why": "it is a GIF"}],
    }
    FakeWebUI(page, answers={"POST photos": answer}).open()
    drop_photos(page)
    page.click("[data-preset=style]")
    assert "a.gif" in page.inner_text("[data-concept='0'] .dbt-error")
    page.click("#dbt_afresh")
    page.click(".dbt-confirm .dbt-danger")
    assert page.locator("[data-concept='0'] .dbt-error").count() == 0


def test_many_groups_of_photos_that_are_alike_are_one_remark(page):
    text = "2 photos are nearly the same: the model may learn the photo instead of the subject"
    advice = [{"level": "warning", "text": text, "files": [f"{n}.jpg", f"{n}b.jpg"]} for n in range(5)]
    plan = {**PLAN, "concepts": [{"rare_token": "ohwx", "rare_token_count": 1, "advice": advice}]}
    FakeWebUI(page, answers={"POST plan": plan}).open()
    drop_photos(page)
    remarks = page.locator("[data-concept='0'] .dbt-advice > li")
    assert remarks.count() == 1
    assert "5 groups of photos" in remarks.first.inner_text()
    assert page.is_hidden("text=4.jpg, 4b.jpg")
    remarks.first.locator("summary").click()
    assert page.is_visible("text=4.jpg, 4b.jpg")


def test_a_run_that_is_over_says_that_another_runs_and_shows_it(page):
    run = {"name": "other", "state": "running", "step": 1, "steps": 9, "error": "", "changed": 1}
    webui = FakeWebUI(
        page, active="me", answers={"GET runs/me/live": LIVE, "GET runs/other/live": LIVE}
    ).open()
    page.wait_for_selector("#dbt_step:has-text('40 / 100')")
    assert page.is_hidden("#dbt_elsewhere")
    webui.answers["GET runs/me/live"] = {**LIVE, "state": "finished"}
    webui.answers["GET runs"] = {"runs": [run], "active": "other"}
    page.wait_for_selector("#dbt_elsewhere:has-text('other is running.')")
    page.click("#dbt_elsewhere button")
    page.wait_for_selector(".dbt-live h2:has-text('other')")
    assert page.is_hidden("#dbt_elsewhere")


def test_resume_says_from_which_step_and_that_it_is_on_its_way(page):
    stopped = {**LIVE, "state": "stopped", "saved": {"step": 32, "time": 1}}
    refused = (409, {"error": {"text": "the card is in use", "where": "", "remedy": ""}})
    FakeWebUI(page, active="me", answers={"GET runs/me/live": stopped, "POST runs/me/resume": refused}).open()
    page.wait_for_selector("#dbt_resume")
    assert "from step 32" in page.inner_text("#dbt_view_live")
    page.evaluate(
        "() => { const button = document.querySelector('#dbt_resume'); button.click();"
        " window.seen = [document.querySelector('#dbt_resume')].map((one) => [one.disabled, one.textContent])[0]; }"
    )
    assert page.evaluate("window.seen") == [True, "Starting …"]
    page.wait_for_selector("#dbt_resume:not([disabled]):has-text('Resume')")


def test_remarks_stand_beside_what_they_are_about(page):
    advice = [
        {"level": "warning", "text": "2 photos look blurred", "files": ["sub/a.jpg"]},
        {"level": "warning", "text": "the subject's word is one that the model knows", "files": []},
    ]
    plan = {**PLAN, "concepts": [{"rare_token": "ohwx", "rare_token_count": 2, "advice": advice}]}
    look = {"path": "/a", "count": 1, "files": [{"name": "a.jpg", "thumbnail": "t"}], "problems": []}
    FakeWebUI(page, answers={"POST plan": plan, "POST photos/look": look}).open()
    drop_photos(page)
    page.wait_for_selector(".dbt-words-advice li")
    assert page.locator(".dbt-words-advice li").all_inner_texts() == [
        "The subject's word is one that the model knows."
    ]
    assert page.locator(".dbt-advice:not(.dbt-words-advice) li .dbt-files").first.inner_text() == "a.jpg"
    assert page.locator(".dbt-thumb.dbt-marked").count() == 1
    assert page.inner_text(".dbt-tokens") == "2 tokens"


def test_a_preset_fills_in_its_settings_and_prompts_and_shows_what_it_rests_on(page):
    webui = FakeWebUI(page).open()
    drop_photos(page)
    page.click("[data-preset=style]")
    page.wait_for_selector(ON)
    form = planned(webui)
    assert (form["max_train_steps"], form["prior_loss_weight"]) == (1500, 0)
    assert form["concepts"][0]["instance_prompt"] == "picture in ohwx style"
    assert "class_prompt" not in form["concepts"][0]
    assert page.get_attribute(".dbt-evidence a", "href").startswith("https://")
    page.fill("#dbt_f_max_train_steps", "900")
    assert "Steps" in page.inner_text(".dbt-changed-text")
    page.click(".dbt-changed-text button")
    assert page.input_value("#dbt_f_max_train_steps") == "1500"


def test_a_preset_goes_with_the_models_family_and_the_kind_of_result(page):
    sdxl = {"family": "Stable Diffusion XL", "family_name": "sdxl", "prediction_type": "epsilon", "size": 6e9}
    webui = FakeWebUI(page, answers={"GET models/inspect": sdxl}).open()
    page.wait_for_function("() => document.querySelector('#dbt_f_learning_rate').value === '1e-6'")
    assert "SDXL" in page.inner_text(".dbt-evidence")
    page.select_option("#dbt_f_output_kind", "lora")
    assert page.input_value("#dbt_f_learning_rate") == "1e-4"
    page.fill("#dbt_f_learning_rate", "3e-4")
    page.select_option("#dbt_f_output_kind", "checkpoint")
    assert page.input_value("#dbt_f_learning_rate") == "3e-4", "what was changed by hand stays"
    drop_photos(page)
    assert planned(webui)["train_text_encoder"] is False


def test_concepts_are_added_with_words_of_their_own_and_removed_after_asking(page):
    webui = FakeWebUI(page).open()
    page.click("#dbt_add_concept")
    assert page.input_value("#dbt_c1_word") != page.input_value("#dbt_c0_word")
    page.fill("#dbt_c1_instance_data_dir", "/b")
    page.click("[data-concept='0'] .dbt-concept-head button")
    page.click(".dbt-confirm .dbt-danger")
    assert page.locator(".dbt-concept").count() == 1
    page.wait_for_selector(ON)
    assert [concept["instance_data_dir"] for concept in planned(webui)["concepts"]] == ["/b"]


def test_accordions_count_what_was_changed_and_a_click_takes_it_back(page):
    FakeWebUI(page, form={"snr_gamma": 5, "seed": 3}).open()
    count = "[data-group=averaging] .dbt-count"
    assert page.inner_text(count) == "2 changed"
    page.click("[data-group=averaging] > summary")
    page.click("[data-field=snr_gamma] .dbt-back")
    assert page.inner_text(count) == "1 changed"
    assert page.input_value("#dbt_f_snr_gamma") == "0"


def test_what_an_opened_file_held_that_was_not_taken_is_listed(page):
    form = {"learning_rate": 1e-6, "concepts": [{"instance_prompt": "sks dog"}]}
    opened = {"form": form, "not_taken": ["save_sample_prompt", "max_steps"]}
    webui = FakeWebUI(page, answers={"POST open": opened}).open()
    content = '[{"instance_prompt": "sks dog"}]'
    page.set_input_files(
        "#dbt_open_file",
        [{"name": "concepts_list.json", "mimeType": "application/json", "buffer": content.encode()}],
    )
    page.wait_for_selector(".dbt-opened .dbt-note")
    assert "save_sample_prompt, max_steps" in page.inner_text(".dbt-opened")
    assert webui.sent("POST open") == [{"kind": "file", "name": "concepts_list.json", "content": content}]
    assert page.input_value("#dbt_f_learning_rate") == "1e-6"
    assert page.input_value("#dbt_c0_instance_prompt") == "sks dog"


def test_a_caption_travels_in_the_request_of_its_photo(page):
    webui = FakeWebUI(page).open()
    bodies = []
    page.on(
        "request", lambda request: request.url.endswith("/photos") and bodies.append(request.post_data_buffer)
    )
    files = [{"name": f"p{n}.jpg", "mimeType": "image/jpeg", "buffer": b"x"} for n in range(12)]
    files += [{"name": f"p{n}.txt", "mimeType": "text/plain", "buffer": b"y"} for n in range(12)]
    page.set_input_files("#dbt_c0_files", files)
    page.wait_for_selector(ON)
    assert len(webui.sent("POST photos")) == 3
    for body in bodies:
        for n in range(12):
            assert (f'"p{n}.jpg"'.encode() in body) == (f'"p{n}.txt"'.encode() in body)


def test_names_and_captions_never_become_markup(page):
    nasty = "<img src=x onerror='window.hacked=1'>"
    look = {
        "path": "/a",
        "count": 1,
        "files": [{"name": nasty, "thumbnail": "t", "caption": nasty}],
        "problems": [nasty],
    }
    plan = {**PLAN, "notes": [nasty], "device": nasty}
    FakeWebUI(page, form={"concepts": [{"instance_data_dir": "/a", "instance_prompt": nasty}]},
              answers={"POST photos/look": look, "POST plan": plan}).open()  # fmt: skip
    page.wait_for_selector(ON)
    page.wait_for_selector(".dbt-thumb")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src=x]").count() == 0


def test_where_paths_may_not_be_chosen_there_is_no_field_for_one_and_errors_are_shown_all_the_same(page):
    error = {"text": "there are no images", "where": "concepts[0].instance_data_dir", "remedy": ""}
    webui = FakeWebUI(
        page, flags={"paths_may_be_chosen": False}, answers={"POST plan": (400, {"error": error})}
    )
    webui.form = {"concepts": [{"instance_data_dir": "/a", "instance_prompt": "a"}]}
    webui.open()
    page.wait_for_selector("[data-concept='0'] .dbt-wrong .dbt-error-text")
    assert page.is_hidden("#dbt_c0_instance_data_dir")


def test_the_live_view_shows_step_time_rate_memory_chart_and_log(page):
    FakeWebUI(page, active="me", answers={"GET runs/me/live": LIVE}).open()
    page.wait_for_selector("#dbt_step:has-text('40 / 100')")
    assert page.inner_text("#dbt_eta") == "1 min 30 s"
    assert page.inner_text("#dbt_rate") == "0.67"
    assert page.inner_text("#dbt_memory") == "3.2 GB"
    assert page.get_attribute(".dbt-bar", "aria-valuenow") == "40"
    assert page.locator(".dbt-curve").count() == 4
    assert "0.300 at step 40" in page.get_attribute(".dbt-chart svg", "aria-label")
    assert page.inner_text(".dbt-live .dbt-log") == "line one"
    page.uncheck(".dbt-legend-entry.dbt-raw input")
    assert page.locator(".dbt-curve").count() == 3


def test_an_answer_without_a_chart_leaves_the_one_that_is_drawn(page):
    answers = iter([LIVE])
    later = {**LIVE, "chart": None, "step": 41}
    FakeWebUI(page, active="me", answers={"GET runs/me/live": lambda _: next(answers, later)}).open()
    page.wait_for_selector("#dbt_step:has-text('41 / 100')")
    assert page.locator(".dbt-curve").count() == 4


def test_samples_stand_beside_the_untrained_models_of_the_same_prompt(page):
    address = "/dreambooth-trainer/v1/runs/me/samples"
    samples = [
        {
            "step": step,
            "index": index,
            "prompt": f"prompt {index}",
            "seed": 7,
            "url": f"{address}/{step}-{index}.png",
        }
        for step in (0, 100, 200)
        for index in (0, 1)
    ]
    FakeWebUI(page, active="me", answers={"GET runs/me/live": {**LIVE, "samples": samples}}).open()
    page.wait_for_selector(".dbt-sample-row")
    rows = page.locator(".dbt-sample-row")
    assert rows.count() == 2
    steps = rows.nth(0).locator(".dbt-sample").evaluate_all("all => all.map(one => one.dataset.step)")
    assert steps == ["0", "200", "100"]
    rows.nth(0).locator("button").nth(1).click()
    assert page.locator(".dbt-dialog .dbt-sample").count() == 2


def test_a_dead_trainer_is_shown_with_its_reason_and_can_be_resumed(page):
    dead = {
        **LIVE,
        "state": "interrupted",
        "error": {
            "text": "the card has not enough memory for this training",
            "remedy": "lower the resolution",
        },
    }
    alive = {
        "runs": [{"name": "me", "state": "running", "step": 40, "steps": 100, "error": "", "changed": 1}],
        "active": "me",
    }
    webui = FakeWebUI(
        page,
        active="me",
        answers={"GET runs/me/live": dead, "GET runs": alive, "POST runs/me/resume": {"run": "me"}},
    ).open()
    page.wait_for_selector("#dbt_resume")
    assert "The card has not enough memory for this training." in page.inner_text(".dbt-run-problem")
    assert page.is_hidden("#dbt_do_stop")
    webui.answers["GET runs/me/live"] = LIVE
    page.click("#dbt_resume")
    page.wait_for_selector("#dbt_do_stop")
    assert webui.until_sent("POST runs/me/resume", 1) == [{}]


def test_stop_now_asks_and_the_other_orders_do_not(page):
    webui = FakeWebUI(
        page, active="me", answers={"GET runs/me/live": LIVE, "POST runs/me/commands": {"id": "1"}}
    ).open()
    for name in ("save", "export", "sample", "stop"):
        page.click(f"#dbt_do_{name}")
    page.click("#dbt_do_stop_now")
    assert {body["do"] for body in webui.until_sent("POST runs/me/commands", 4)} == {
        "save",
        "export",
        "sample",
        "stop",
    }
    page.click(".dbt-confirm .dbt-danger")
    page.wait_for_function("() => document.querySelector('.dbt-toast').textContent.startsWith('Stop now')")
    assert webui.sent("POST runs/me/commands")[-1] == {"do": "stop_now"}


def test_several_problems_stand_each_beside_its_field_and_one_that_is_mended_goes(page):
    name = {"text": "has a slash", "where": "output_name", "remedy": "choose another"}
    others = [
        {"text": "there is no such folder: /nope", "where": "concepts[0].instance_data_dir", "remedy": ""},
        {"text": "17 pixels are too few", "where": "resolution", "remedy": "use 64"},
    ]

    def plan(body):
        told = ([name] if "/" in body["form"].get("output_name", "") else []) + others
        return 400, {"error": told[0], "problems": told}

    FakeWebUI(page, answers={"POST plan": plan}).open()
    page.fill("#dbt_f_output_name", "a/b")
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.wait_for_selector("[data-field=output_name].dbt-wrong")
    wrong = page.eval_on_selector_all(".dbt-wrong", "all => all.map(one => one.dataset.field)")
    assert sorted(wrong) == ["concepts[0].instance_data_dir", "output_name", "resolution"]
    assert "17 pixels are too few. Use 64." in page.inner_text("[data-field=resolution] .dbt-error-text")
    assert page.locator("#dbt_reason .dbt-error").count() == 3
    page.click("#dbt_reason .dbt-error:has-text('17 pixels') button")
    assert page.evaluate("document.activeElement.id") == "dbt_f_resolution"
    page.fill("#dbt_f_output_name", "ab")
    page.wait_for_selector("[data-field=output_name]:not(.dbt-wrong)")
    page.wait_for_function("document.querySelectorAll('#dbt_reason .dbt-error').length === 2")


def test_a_result_is_used_with_one_click_and_the_old_prompt_can_be_put_back(page):
    path = "/models/me.safetensors"
    files = [{"path": path, "sha256": "ab" * 32}]
    done = {
        **LIVE,
        "state": "finished",
        "exports": [{"step": 100, "path": path, "name": "me.safetensors", "sha256": "ab" * 32}],
        "result": {"path": path, "files": files, "weight_change": {"unet": {"relative": 0.0123}}},
    }
    models = {
        "checkpoints": [
            {**MODELS[0], "path": path, "title": "me.safetensors [ab]", "selected": True, "loaded": True}
        ],
        "vaes": [],
    }
    used = {
        "title": "me.safetensors [ab]",
        "name": "me.safetensors",
        "prompt": "photo of ohwx cat",
        "load_with": "selectCheckpoint",
    }
    webui = FakeWebUI(
        page, active="me", answers={"GET runs/me/live": done, "POST runs/me/use": used, "GET models": models}
    ).open()
    page.fill("#txt2img_prompt textarea", "my own long prompt")
    page.wait_for_selector("#dbt_use")
    assert "ababababab" in page.inner_text("#dbt_result") and "UNet 1.2 %" in page.inner_text("#dbt_result")
    page.click("#dbt_use")
    page.wait_for_function("window.switched")
    assert page.evaluate("window.chosen") == "me.safetensors [ab]"
    assert page.input_value("#txt2img_prompt textarea") == "photo of ohwx cat"
    assert webui.sent("POST runs/me/use") == [{"path": path}]
    page.click("text=Put it back")
    assert page.input_value("#txt2img_prompt textarea") == "my own long prompt"


def finished_adapter(page, **used) -> FakeWebUI:
    """A run whose LoRA can be used, before a txt2img of 512 pixels and the WebUI's own button of its cards."""
    path = "/models/Lora/me.safetensors"
    done = {
        **LIVE,
        "state": "finished",
        "exports": [],
        "result": {"path": path, "files": [], "weight_change": {}},
    }
    usual = {"name": "me", "prompt": "photo of ohwx cat <lora:me:1>", "load_with": "prompt", "resolution": 64}
    checkpoints = [{**MODELS[0], "selected": True, "loaded": True}, {**MODELS[1], "selected": False}]
    models = {"checkpoints": checkpoints, "vaes": [], "failures": 0, "failure": ""}
    answers = {"GET runs/me/live": done, "POST runs/me/use": {**usual, **used}, "GET models": models}
    webui = FakeWebUI(page, active="me", answers=answers).open()
    page.evaluate(
        """() => {
            const refresh = document.createElement("button");
            refresh.id = "txt2img_lora_extra_refresh";
            refresh.onclick = () => { window.refreshed = true; };
            document.body.append(refresh);
            for (const name of ["width", "height"]) {
                const box = `<div id="txt2img_${name}"><input type="number" value="512"></div>`;
                document.body.insertAdjacentHTML("beforeend", box);
            }
        }"""
    )
    return webui


@pytest.mark.parametrize(("selected", "chosen"), [("base", "other.safetensors [11]"), ("other", None)])
def test_an_adapter_is_used_through_the_prompt_on_the_checkpoint_that_it_was_made_on(page, selected, chosen):
    base = {"title": MODELS[0]["title"], "path": MODELS[0]["path"], "base": "other"}
    finished_adapter(page, **base, selected=selected)
    page.click("#dbt_use")
    page.wait_for_function("window.switched")
    assert page.input_value("#txt2img_prompt textarea") == "photo of ohwx cat <lora:me:1>"
    assert page.evaluate("window.chosen") == chosen, "the base, where it is not in use already"
    assert page.evaluate("window.refreshed"), "the open page lists the new file"
    page.wait_for_selector(".dbt-toast-shown:has-text('in the prompt of txt2img now, on other')")
    assert [page.input_value(f"#txt2img_{side} input") for side in ("width", "height")] == ["64", "64"]
    assert "Width and height in txt2img are 64 now" in page.inner_text("#dbt_result .dbt-notice")


def test_an_adapter_whose_checkpoint_is_not_there_is_said_to_be_made_for_another(page):
    finished_adapter(page, title="", path="", base="small.safetensors", selected="mycat")
    page.click("#dbt_use")
    page.wait_for_selector("#dbt_result .dbt-warning")
    told = page.inner_text("#dbt_result .dbt-warning")
    assert "made on small.safetensors, which is not among" in told and "With mycat, which is in use" in told
    assert page.input_value("#txt2img_prompt textarea") == "photo of ohwx cat <lora:me:1>"
    assert page.evaluate("[window.chosen, window.switched]") == [None, None], "it is to be read first"


def test_a_checkpoint_that_the_webui_cannot_load_is_said_with_its_reason_and_changes_nothing(page):
    base = {"title": MODELS[0]["title"], "path": MODELS[0]["path"], "base": "other", "selected": "base"}
    webui = finished_adapter(page, **base, failures=2)
    models = webui.answers["GET models"]
    chosen = {**models["checkpoints"][0], "loaded": False}
    webui.answers["GET models"] = {**models, "failures": 2, "failure": "of before", "checkpoints": [chosen]}
    page.click("#dbt_use")
    page.wait_for_function("window.chosen")
    webui.until_sent("GET models", len(webui.sent("GET models")) + 2)  # chosen is not loaded yet
    assert page.inner_text("#dbt_use") == "Loading …"
    webui.answers["GET models"] = {**models, "failures": 3, "failure": "no tokenizer"}
    page.wait_for_selector("#dbt_result .dbt-error:has-text('other could not be loaded: no tokenizer')")
    assert page.input_value("#txt2img_prompt textarea") == ""
    assert page.evaluate("[window.refreshed, window.switched]") == [None, None]


def test_a_file_that_is_not_whole_is_not_loaded(page):
    path = "/models/me-50.safetensors"
    state = {
        **LIVE,
        "exports": [{"step": 50, "path": path, "name": "me-50.safetensors", "sha256": "ab" * 32}],
    }
    error = {"error": {"text": "the file is not whole", "where": path, "remedy": "export it again"}}
    FakeWebUI(page, active="me", answers={"GET runs/me/live": state, "POST runs/me/use": (400, error)}).open()
    page.click(f"[data-path='{path}']")
    page.wait_for_selector("#dbt_result .dbt-error")
    assert page.evaluate("window.chosen") is None


def test_a_webui_that_goes_away_is_said_and_come_back_to(page):
    webui = FakeWebUI(page, active="me", answers={"GET runs/me/live": LIVE}).open()
    page.wait_for_selector("#dbt_step:has-text('40 / 100')")
    webui.away = True
    page.wait_for_selector(".dbt-away", state="visible")
    webui.answers["GET runs/me/live"] = {**LIVE, "step": 60}
    webui.away = False
    page.wait_for_selector(".dbt-away", state="hidden")
    page.wait_for_selector("#dbt_step:has-text('60 / 100')")


def test_a_webui_that_has_not_added_our_routes_yet_is_waited_for(page):
    webui = FakeWebUI(page, active="me", answers={"GET runs/me/live": LIVE}).open()
    page.wait_for_selector("#dbt_step:has-text('40 / 100')")
    starting = (404, {"detail": "Not Found"})
    webui.answers.update({"GET runs/me/live": starting, "GET installation": starting, "GET runs": starting})
    page.wait_for_selector(".dbt-away", state="visible")
    assert page.inner_text("#dbt_step") == "40 / 100"


@pytest.mark.parametrize("root", ["", "/sd"])
def test_the_routes_are_found_wherever_the_webui_is_mounted(page, root):
    webui = FakeWebUI(page, root=root).open()
    page.wait_for_selector("#dbt_train")
    assert webui.sent("GET page") == [None]


def test_nothing_is_polled_while_the_tab_cannot_be_seen(page):
    webui = FakeWebUI(page, active="me", answers={"GET runs/me/live": LIVE}).open()
    page.wait_for_selector("#dbt_step:has-text('40 / 100')")
    page.evaluate("document.querySelector('.dbt').style.display = 'none'")
    for _ in range(5):  # what is on its way comes first
        before = len(webui.asked)
        page.wait_for_timeout(1200)
        if len(webui.asked) == before:
            break
    page.wait_for_timeout(2500)
    assert len(webui.asked) == before
    page.evaluate("document.querySelector('.dbt').style.display = ''")
    for _ in range(50):
        if len(webui.asked) > before:
            break
        page.wait_for_timeout(100)
    assert len(webui.asked) > before


def test_a_missing_environment_is_said_made_and_its_output_shown(page):
    missing = {
        "state": "failed",
        "text": "No space left on device.",
        "remedy": "Free 3 GB.",
        "log": ["ERROR: disk"],
    }
    making = {"state": "making", "text": "", "remedy": "", "log": ["Collecting torch"]}
    webui = FakeWebUI(page, installation=missing, answers={"POST installation/make": making}).open()
    page.wait_for_selector("#dbt_make")
    assert "No space left on device. Free 3 GB." in page.inner_text(".dbt-installation")
    assert page.inner_text(".dbt-installation .dbt-log") == "ERROR: disk"
    assert page.is_disabled("#dbt_train")
    webui.answers["GET installation"] = making
    page.click("#dbt_make")
    page.wait_for_selector(".dbt-installation .dbt-log:has-text('Collecting torch')")
    assert page.is_hidden("#dbt_make")
    webui.answers["GET installation"] = {"state": "ready", "text": "", "remedy": "", "log": []}
    page.wait_for_selector(".dbt-installation", state="hidden")


def test_a_page_that_cannot_be_had_says_why_and_offers_to_try_again(page):
    error = {
        "error": {
            "text": "the extension's routes cannot be added",
            "where": "",
            "remedy": "restart the WebUI",
        }
    }
    webui = FakeWebUI(page, answers={"GET page": (503, error)}).open()
    page.wait_for_selector(".dbt-problem:has-text('routes cannot be added')")
    del webui.answers["GET page"]
    page.click("text=Try again")
    page.wait_for_selector("#dbt_train")


def test_the_trainers_words_are_translated_with_their_numbers(page):
    raw = json.loads((ROOT / "localizations" / "zh_CN.json").read_text(encoding="utf-8"))
    advice = [{"level": "warning", "files": ["a.jpg"],
               "text": "2 photos look blurred: what is not sharp in the photos will not be in the pictures"}]  # fmt: skip
    plan = {**PLAN, "concepts": [{"rare_token": "ohwx", "rare_token_count": 1, "advice": advice}]}
    FakeWebUI(page, localization=raw, answers={"POST plan": plan}).open()
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.wait_for_selector("[data-concept='0'] .dbt-warning")
    shown = page.inner_text("[data-concept='0'] .dbt-warning")
    assert "2 张照片" in shown and "模糊" in shown and "photos" not in shown
    assert page.inner_text("#dbt_train") == raw["DreamBooth: Train"]


def test_the_views_are_reached_with_the_arrow_keys(page):
    FakeWebUI(page).open()
    page.focus("#dbt_nav_new")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "dbt_nav_runs"
    assert page.is_visible("#dbt_view_runs") and page.is_hidden("#dbt_view_new")


def test_every_control_has_a_name(page):
    FakeWebUI(page).open()
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('.dbt input, .dbt select, .dbt textarea, .dbt button')]
            .filter((one) => !one.labels?.length && !one.getAttribute('aria-label') && !one.textContent.trim())
            .map((one) => one.outerHTML)"""
    )
    assert nameless == []


def test_a_run_is_deleted_only_after_asking_and_its_settings_are_used_again_without_its_name(page):
    run = {
        "name": "old",
        "state": "finished",
        "step": 9,
        "steps": 9,
        "error": "",
        "changed": 1,
        "result": None,
    }
    form = {
        "form": {"output_name": "old", "learning_rate": 3e-6, "concepts": [{"instance_prompt": "x"}]},
        "not_taken": [],
    }
    webui = FakeWebUI(
        page,
        answers={"GET runs": {"runs": [run], "active": ""}, "GET runs/old/form": form, "DELETE runs/old": {}},
    ).open()
    page.click("#dbt_nav_runs")
    page.click("[data-run=old] >> text=Delete")
    assert webui.sent("DELETE runs/old") == []
    page.click(".dbt-confirm .dbt-danger")
    page.wait_for_function("() => document.querySelector('.dbt-toast').textContent.includes('deleted')")
    assert webui.sent("DELETE runs/old") == [None]
    page.click("text=Use these settings again")
    page.wait_for_selector("#dbt_f_learning_rate")
    assert page.input_value("#dbt_f_learning_rate") == "3e-6"
    assert page.input_value("#dbt_f_output_name") == ""


def test_a_trainer_that_takes_long_to_start_is_shown_with_its_words_and_then_its_run(page):
    starting = {
        "runs": [],
        "active": "",
        "starting": {"since": 1, "log": ["reading the photos"]},
        "failed_start": None,
    }
    webui = FakeWebUI(page, answers={"POST runs": {"run": ""}, "GET runs/me/live": LIVE}).open()
    drop_photos(page)
    webui.answers["GET runs"] = starting
    page.click("#dbt_train")
    page.wait_for_selector("#dbt_view_live .dbt-log:has-text('reading the photos')")
    assert page.is_visible("#dbt_cancel_start")
    run = {
        "name": "me",
        "state": "running",
        "step": 0,
        "steps": 100,
        "error": "",
        "changed": 1,
        "result": None,
    }
    webui.answers["GET runs"] = {"runs": [run], "active": "me", "starting": None, "failed_start": None}
    page.wait_for_selector("#dbt_step:has-text('40 / 100')")


def test_a_training_that_could_not_be_started_says_why(page):
    failed = {"since": 1, "text": "the disk is full", "remedy": "make room", "log": ["OSError"]}
    FakeWebUI(
        page, answers={"GET runs": {"runs": [], "active": "", "starting": None, "failed_start": failed}}
    ).open()
    page.click("#dbt_nav_live")
    page.wait_for_selector("#dbt_view_live .dbt-error")
    assert "The disk is full. Make room." in page.inner_text("#dbt_view_live").replace("\n", " ")


def test_photos_dropped_while_others_are_sent_are_sent_too(page):
    webui = FakeWebUI(page).open()
    page.set_input_files("#dbt_c0_files", [{**PHOTO, "name": f"a{n}.jpg"} for n in range(9)])
    page.set_input_files("#dbt_c0_files", [{**PHOTO, "name": "late.jpg"}])
    page.wait_for_selector(ON)
    assert len(webui.sent("POST photos")) == 3
