"""What newcomers stumbled over in the page, in a real browser with recorded answers in place of the WebUI."""

from __future__ import annotations

import pytest
from fake_page import LIVE, MODELS, PLAN, FakeWebUI
from test_page import ON, PHOTO, drop_photos


def without_checkpoints(page, **answers) -> FakeWebUI:
    webui = FakeWebUI(page, answers=answers)
    webui.answers["GET page"] = {**webui._usual()["GET page"], "checkpoints": []}
    return webui.open()


def test_where_there_is_no_checkpoint_the_page_says_where_one_goes_and_looks_again(page):
    webui = without_checkpoints(page)
    told = page.inner_text("#dbt_no_checkpoint")
    assert ".safetensors" in told and "/models" in told
    assert "no checkpoint" in page.inner_text("#dbt_reason")
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.click("#dbt_no_checkpoint button:text('Look again')")
    page.wait_for_selector("#dbt_no_checkpoint", state="hidden")
    page.wait_for_selector(ON)
    assert webui.sent("POST plan")[-1]["form"]["model"] == MODELS[1]["path"]


def test_the_small_checkpoint_is_put_there_and_begun_with(page):
    path = "/models/small-base.safetensors"
    small = {**MODELS[0], "path": path, "title": "small-base", "name": "small-base", "loaded": False}
    without_checkpoints(
        page, **{"POST models/small-base": {"path": path, "checkpoints": [small], "vaes": []}}
    )
    page.click("#dbt_small_base")
    page.wait_for_selector("#dbt_no_checkpoint", state="hidden")
    assert page.input_value("#dbt_f_model") == path


def test_a_checkpoint_that_is_missing_is_shown_to_nobody_who_has_one(page):
    FakeWebUI(page).open()
    assert page.is_hidden("#dbt_no_checkpoint")


@pytest.mark.parametrize(
    ("saved", "asked"),
    [
        ({"step": 25}, "15 steps since step 25 would be lost"),
        ({"step": 39}, "1 step since step 39 would be lost"),
        ({"step": 40}, "All steps so far are saved"),
        (None, "Nothing was saved yet: all 40 steps would be lost"),
    ],
)
def test_stop_now_says_before_how_many_steps_it_costs(page, saved, asked):
    live = {**LIVE, "saved": saved}
    webui = FakeWebUI(page, active="me", answers={"GET runs/me/live": live}).open()
    page.wait_for_selector("#dbt_step:has-text('40')")
    page.click("#dbt_do_stop_now")
    assert asked in page.inner_text(".dbt-confirm")
    if saved == {"step": 25}:
        webui.answers["GET runs/me/live"] = {**live, "step": 50}
        page.wait_for_selector(".dbt-confirm:has-text('25 steps since step 25')")


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        (
            {"step": 25},
            "15 steps since step 25 are lost. Resume goes on from step 25, the last that was saved.",
        ),
        ({"step": 40}, "Resume goes on from step 40, the last that was saved."),
        (None, "All 40 steps are lost. Nothing was saved yet: Resume begins with the first step."),
    ],
)
def test_a_stopped_run_says_what_was_lost_and_where_it_goes_on(page, saved, told):
    live = {**LIVE, "state": "stopped", "saved": saved}
    FakeWebUI(page, active="me", answers={"GET runs/me/live": live}).open()
    page.wait_for_selector("#dbt_kept")
    assert page.inner_text("#dbt_kept") == told


@pytest.mark.parametrize(
    ("state", "saved", "told"),
    [
        ("stopped", 25, "saved up to step 25, 15 steps are lost"),
        ("failed", 0, "all 40 steps are lost: nothing was saved"),
        ("stopped", 40, "saved up to step 40"),
        ("running", 25, "saved up to step 25"),
        ("finished", 40, ""),
    ],
)
def test_the_list_of_runs_says_what_is_kept(page, state, saved, told):
    run = {"name": "me", "state": state, "step": 40, "steps": 100, "saved": saved, "error": "", "changed": 1}
    FakeWebUI(page, answers={"GET runs": {"runs": [run], "active": ""}, "GET runs/me/live": LIVE}).open()
    page.click("#dbt_nav_runs")
    page.wait_for_selector(".dbt-run")
    parts = page.inner_text(".dbt-run .dbt-help").split(" · ")
    assert parts[0] == "40 of 100 steps"
    assert (parts[1] if len(parts) > 2 else "") == told


def rate(page) -> str:
    return page.input_value("#dbt_f_learning_rate")


def test_a_rate_that_a_preset_filled_in_goes_with_the_kind_although_other_settings_were_changed(page):
    FakeWebUI(page).open()
    page.select_option("#dbt_f_output_kind", "lora")
    assert rate(page) == "1e-4"
    page.fill("#dbt_f_max_train_steps", "700")
    page.select_option("#dbt_f_output_kind", "checkpoint")
    assert rate(page) == "2e-6" and page.input_value("#dbt_f_max_train_steps") == "700"
    assert "usual for this kind of result: Learning rate" in page.inner_text(".dbt-toast")


def test_a_rate_of_an_opened_form_becomes_the_usual_one_with_another_kind_unless_it_was_typed(page):
    form = {"output_kind": "lora", "learning_rate": 3e-4, "max_train_steps": 7, "concepts": [{}]}
    FakeWebUI(page, form=form).open()
    page.select_option("#dbt_f_output_kind", "lycoris")
    assert rate(page) == "3e-4", "the same order of rates"
    page.select_option("#dbt_f_output_kind", "checkpoint")
    assert rate(page) == "0", "the usual, whatever is trained"
    page.fill("#dbt_f_learning_rate", "5e-6")
    page.select_option("#dbt_f_output_kind", "lora")
    assert rate(page) == "5e-6", "typed, and the plan remarks on it"


def test_a_form_is_given_up_only_after_asking_and_a_new_one_is_nothing_to_ask_about(page):
    FakeWebUI(page).open()
    page.click("#dbt_afresh")
    assert page.locator(".dbt-confirm").count() == 0
    page.fill("#dbt_f_output_name", "mine")
    page.click("#dbt_afresh")
    page.click(".dbt-confirm button:text('Keep')")
    assert page.input_value("#dbt_f_output_name") == "mine"
    page.click("#dbt_afresh")
    page.click(".dbt-confirm .dbt-danger")
    assert page.input_value("#dbt_f_output_name") == ""
    page.click("#dbt_afresh")
    assert page.locator(".dbt-confirm").count() == 0


def test_the_form_before_an_opened_one_can_be_put_back_and_an_opened_one_keeps_its_rate(page):
    form = {"output_kind": "lora", "learning_rate": 3e-4, "concepts": [{"instance_prompt": "sks dog"}]}
    FakeWebUI(page, answers={"POST open": {"form": form, "not_taken": []}}).open()
    page.fill("#dbt_f_output_name", "mine")
    file = {"name": "x.yaml", "mimeType": "text/plain", "buffer": b"x"}
    page.set_input_files("#dbt_open_file", [file])
    page.wait_for_selector("#dbt_put_back")
    assert (rate(page), page.input_value("#dbt_f_output_name")) == ("3e-4", "")
    page.click("#dbt_put_back")
    assert (rate(page), page.input_value("#dbt_f_output_name")) == ("2e-6", "mine")
    assert page.locator(".dbt-opened > *").count() == 0


def test_a_list_of_concepts_changes_the_concepts_alone_and_can_be_taken_back(page):
    form = {"concepts": [{"instance_prompt": "sks dog"}, {"instance_prompt": "zwx cat"}]}
    webui = FakeWebUI(page, answers={"POST open": {"form": form, "not_taken": []}}).open()
    page.select_option("#dbt_f_model", MODELS[0]["path"])
    page.fill("#dbt_f_output_name", "mine")
    page.fill("#dbt_f_learning_rate", "3e-5")
    page.click("[data-preset=subject] input")
    page.fill("#dbt_f_max_train_steps", "700")
    page.set_input_files("#dbt_open_file", [{"name": "x.json", "mimeType": "text/plain", "buffer": b"[]"}])
    page.wait_for_selector("#dbt_put_back")
    prompts = [page.input_value(f"#dbt_c{index}_instance_prompt") for index in (0, 1)]
    assert prompts == ["sks dog", "zwx cat"]
    assert page.input_value("#dbt_f_model") == MODELS[0]["path"]
    assert page.input_value("#dbt_f_output_name") == "mine"
    assert page.input_value("#dbt_f_max_train_steps") == "700"
    assert page.is_checked("[data-preset=subject] input")
    page.click("#dbt_put_back")
    assert page.input_value("#dbt_c0_instance_prompt") == "photo of ohwx dog"
    assert page.locator("#dbt_c1_instance_prompt").count() == 0
    assert webui.sent("POST open")[0]["kind"] == "file"


def dropped_into_a_named_folder(page) -> FakeWebUI:
    """A concept with the folder /mine, into which a photo is dropped."""

    def look(body):
        count = 4 if body["path"] == "/mine" else 5
        files = [{"name": f"{number}.jpg", "thumbnail": "t1"} for number in range(count)]
        return {"path": body["path"], "count": count, "files": files, "problems": []}

    copied = {"folder": "set-2", "path": "/data/photos/set-2", "files": [], "refused": []}
    answers = {"POST photos/look": look, "POST photos/copy": copied, "POST photos": copied}
    form = {"concepts": [{"instance_prompt": "sks dog", "instance_data_dir": "/mine"}]}
    webui = FakeWebUI(page, answers=answers, form=form).open()
    page.wait_for_selector(".dbt-photo-count:has-text('4 photos')")
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.wait_for_selector("[role=alertdialog]:has-text('/mine')")
    assert webui.sent("POST photos") == [], "nothing before it is answered"
    return webui


@pytest.mark.parametrize(("answer", "copied"), [("both", [{"path": "/mine"}]), ("dropped", [])])
def test_photos_take_a_named_folders_place_only_when_asked_and_its_own_may_go_along(page, answer, copied):
    webui = dropped_into_a_named_folder(page)
    page.click(f"[data-answer={answer}]")
    page.wait_for_selector(".dbt-photo-count:has-text('5 photos')")
    assert webui.sent("POST photos/copy") == copied
    assert page.input_value("#dbt_c0_instance_data_dir") == "/data/photos/set-2"
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.wait_for_function("!document.querySelector('[role=alertdialog]')")
    webui.until_sent("POST photos", 2)  # its own set now, which grows


def test_a_named_folder_is_kept_and_the_next_photo_is_asked_about_again(page):
    webui = dropped_into_a_named_folder(page)
    page.click("[data-answer=keep]")
    page.wait_for_selector("[role=alertdialog]", state="detached")
    assert page.input_value("#dbt_c0_instance_data_dir") == "/mine"
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.wait_for_selector("[role=alertdialog]")
    assert webui.sent("POST photos") == webui.sent("POST photos/copy") == []


def test_the_page_shows_no_raw_backticks_and_a_button_in_place_of_a_command(page):
    error = {
        "text": "the disk is full",
        "remedy": "make room; then `python3 -m dreambooth resume /r/me` begins, or `resume` goes on",
    }
    live = {**LIVE, "state": "failed", "error": error}
    note = "the model is itself the result of a training (`photo of sks dog`), so `resolution` is 64"
    answers = {"GET runs/me/live": live, "POST plan": {**PLAN, "notes": [note]}}
    FakeWebUI(page, active="me", answers=answers).open().active = ""
    page.wait_for_selector("#dbt_resume")
    assert "Make room; then “Resume” begins, or “Resume” goes on." in page.inner_text(".dbt-run-problem")
    page.click("#dbt_nav_new")
    drop_photos(page)
    shown = page.inner_text(".dbt-plan .dbt-advice")
    assert "(“photo of sks dog”)" in shown and "“Resolution” is 64" in shown


def test_of_several_concepts_the_one_without_photos_is_named(page):
    concepts = [{"instance_data_dir": "/a", "instance_prompt": "a"}, {"instance_prompt": "b"}]
    webui = FakeWebUI(page, form={"concepts": concepts}).open()
    page.wait_for_selector("#dbt_reason:has-text('Concept 2 has no photos yet')")
    page.click("#dbt_reason button")
    assert page.evaluate("document.activeElement.id") == "dbt_c1_instance_data_dir"
    webui.answers["POST plan"] = (
        400, {"error": {"text": "it is empty", "where": "concepts[1].instance_prompt", "remedy": ""}},
    )  # fmt: skip
    page.fill("#dbt_c1_instance_data_dir", "/b")
    page.wait_for_selector("#dbt_reason strong:has-text('Concept 2, Instance prompt')")


@pytest.mark.parametrize(("adapter", "title"), [(True, "LoRA files so far"), (False, "Checkpoints so far")])
def test_what_is_written_on_the_way_is_called_as_the_run_says_wherever_it_lies(page, adapter, title):
    export = {"step": 5, "path": "/models/lora/me.safetensors", "name": "me.safetensors", "sha256": "a" * 64}
    live = {**LIVE, "exports": [export], "adapter": adapter}
    FakeWebUI(page, active="me", answers={"GET runs/me/live": live}).open()
    page.wait_for_selector(f"#dbt_result h2:has-text('{title}')")


def test_a_number_beyond_all_numbers_is_called_too_large(page):
    FakeWebUI(page).open()
    for typed in ("1e400", "1" + "0" * 30):
        page.fill("#dbt_f_max_train_steps", typed)
        page.wait_for_selector("[data-field=max_train_steps] .dbt-error-text:has-text('too large')")


def test_a_problem_beside_its_field_does_not_name_the_field_again(page):
    error = {
        "text": "concept 1, instance_prompt: it is empty, and no photo has a caption",
        "remedy": "Say it",
    }
    answer = (400, {"error": {**error, "where": "concepts[0].instance_prompt"}})
    FakeWebUI(page, answers={"POST plan": answer}).open()
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.wait_for_selector("#dbt_reason .dbt-error")
    told = "It is empty, and no photo has a caption. Say it."
    assert page.inner_text("[data-field='concepts[0].instance_prompt'] .dbt-error-text") == told
    assert page.inner_text("#dbt_reason").startswith(f"Instance prompt: {told}")


def test_photos_that_broke_after_the_plan_are_all_named_beside_their_concept_and_no_more_counted(page):
    broken = {
        "text": "2 images cannot be used:\n  /photos/b.jpg: it is damaged\n  /photos/c.jpg: the file is empty",
        "where": "",
        "remedy": "Replace or remove them.",
    }
    files = [{"name": f"{name}.jpg", "thumbnail": name} for name in "abc"]
    whole = {"path": "/photos", "count": 3, "files": files, "problems": []}
    webui = FakeWebUI(page, answers={"POST photos/look": whole}).open()
    page.fill("#dbt_c0_instance_data_dir", "/photos")
    page.wait_for_selector(".dbt-photo-count:has-text('3 photos')")
    page.wait_for_selector("#dbt_train:not([disabled])")
    left = {"count": 1, "files": files[:1], "problems": ["b.jpg: it is damaged", "c.jpg: the file is empty"]}
    webui.answers["POST photos/look"] = {**whole, **left}
    webui.answers["POST runs"] = (400, {"error": broken})
    webui.answers["POST plan"] = (400, {"error": {**broken, "where": "concepts[0].instance_data_dir"}})
    page.click("#dbt_train")
    page.wait_for_selector(".dbt-photo-count:has-text('1 photo')")
    page.wait_for_selector("[data-concept] .dbt-wrong .dbt-error-text:has-text('b.jpg'):has-text('c.jpg')")
    assert page.locator(".dbt-thumb").count() == 1
    said = page.locator("[data-concept] .dbt-advice").first.inner_text()
    assert "b.jpg" in said and "c.jpg" in said, "each beside the photos too"
    assert page.is_disabled("#dbt_train")


@pytest.mark.parametrize(
    ("where", "said", "told"),
    [
        (
            "gradient_checkpointing",
            "`gradient_checkpointing` cannot be 7",
            "“Gradient checkpointing” cannot be 7.",
        ),
        (
            "init_from",
            "init_from: /a/b.safetensors: it is empty",
            "Start from: /a/b.safetensors: it is empty.",
        ),
        ("rank", "it is above the width 32", "Rank: It is above the width 32."),
        (
            "concepts[1].class_prompt",
            "`class_prompt` takes one value, not a list",
            "Concept 2: “Class prompt” takes one value, not a list.",
        ),
        ("concepts[1].class_prompt", "it is empty", "Concept 2, Class prompt: It is empty."),
    ],
)
def test_a_reason_names_its_field_once(page, where, said, told):
    concepts = [{"instance_data_dir": "/a", "instance_prompt": "a"}] * 2
    error = {"text": said, "where": where, "remedy": ""}
    form = {"concepts": concepts, "output_kind": "lora"}
    FakeWebUI(page, form=form, answers={"POST plan": (400, {"error": error})}).open()
    page.wait_for_selector("#dbt_reason .dbt-error")
    assert page.inner_text("#dbt_reason").removesuffix("Show").strip() == told


@pytest.mark.parametrize(
    ("kind", "told"), [("lora", "LoRA"), ("checkpoint", "Checkpoint"), ("", "9 of 9 steps")]
)
def test_the_list_of_runs_says_what_each_made(page, kind, told):
    run = {"name": "me", "kind": kind, "state": "finished", "step": 9, "steps": 9, "error": "", "changed": 1}
    FakeWebUI(page, answers={"GET runs": {"runs": [run], "active": ""}, "GET runs/me/live": LIVE}).open()
    page.click("#dbt_nav_runs")
    page.wait_for_selector(".dbt-run")
    assert page.inner_text(".dbt-run .dbt-help").split(" · ")[0] == told
