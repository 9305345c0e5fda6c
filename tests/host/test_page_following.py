"""An open page follows what comes of runs, wherever they were started, stopped or deleted."""

from __future__ import annotations

import pytest
from fake_page import LIVE, MODELS, PLAN, FakeWebUI
from test_page import OFF, ON, drop_photos
from test_page_newcomer import without_checkpoints

MADE = {
    "text": "'me.safetensors' is being made at this moment by the run 'me'",
    "where": "output_name",
    "remedy": "choose another name, wait until that run ends, or stop it (`stop /data/runs/me`)",
}


def runs(active: str = "", *names: str) -> dict:
    state = {"step": 40, "steps": 100, "error": "", "changed": 1, "result": None}
    rows = [{"name": name, "state": "running" if name == active else "finished", **state} for name in names]
    return {"runs": rows, "active": active, "starting": None, "failed_start": None}


def look_now(page) -> None:
    page.evaluate("window.dreamboothTrainer.following.now()")


def test_a_run_that_another_page_starts_and_that_is_deleted_there_turns_train_off_and_on(page):
    webui = FakeWebUI(page).open()
    drop_photos(page)
    webui.answers["GET runs"] = runs("me", "me")
    webui.answers["POST plan"] = (400, {"error": MADE})
    page.wait_for_selector(OFF, timeout=10_000)
    page.wait_for_selector("#dbt_reason :text('is being made at this moment')")
    webui.answers["GET runs"] = runs("", "me")
    webui.answers["POST plan"] = (
        400,
        {"error": {**MADE, "text": "'me.safetensors' belongs to the run 'me'"}},
    )
    look_now(page)
    page.wait_for_selector("#dbt_reason :text(\"belongs to the run 'me'\")")
    assert page.is_disabled("#dbt_train")
    webui.answers["GET runs"] = runs()
    del webui.answers["POST plan"]
    look_now(page)
    page.wait_for_selector(ON)


def test_a_plan_from_before_a_run_is_made_anew_when_somebody_looks_at_it(page):
    webui = FakeWebUI(page, answers={"POST runs": {"run": "me"}, "GET runs/me/live": LIVE}).open()
    drop_photos(page)
    webui.answers["GET runs"] = runs("me", "me")
    page.click("#dbt_train")
    page.wait_for_selector("#dbt_state:has-text('Running')")
    before = len(webui.sent("POST plan"))
    webui.answers["GET runs/me/live"] = {**LIVE, "state": "finished"}
    webui.answers["GET runs"] = runs("", "me")
    webui.answers["POST plan"] = (400, {"error": {**MADE, "text": "there is me.safetensors already"}})
    page.wait_for_selector("#dbt_state:has-text('Finished')")
    assert len(webui.sent("POST plan")) == before, "nobody looks at the plan"
    page.click("#dbt_nav_new")
    page.wait_for_selector("#dbt_reason :text('me.safetensors already')")
    assert page.is_disabled("#dbt_train")


def test_a_remedy_names_the_pages_buttons(page):
    FakeWebUI(page, answers={"POST plan": (400, {"error": MADE})}).open()
    page.set_input_files("#dbt_c0_files", [{"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"x"}])
    page.wait_for_selector("#dbt_reason :text('is being made')")
    assert page.inner_text("#dbt_reason").split(" Show")[0].endswith("or stop it (“Stop”).")


def test_what_the_webui_lists_anew_is_among_the_pages_checkpoints_and_in_the_webuis_own_box(page):
    state = {"active": "", "starting": False, "runs": "1", "listed": 1}
    webui = FakeWebUI(page, answers={"GET active": state}).open()
    page.evaluate(
        """() => {
            const refresh = document.createElement("button");
            refresh.id = "refresh_sd_model_checkpoint";
            refresh.onclick = () => { window.refreshed = (window.refreshed || 0) + 1; };
            document.body.append(refresh);
        }"""
    )
    new = {**MODELS[0], "path": "/models/me.safetensors", "title": "me.safetensors [22]", "name": "me"}
    webui.answers["GET models"] = {"checkpoints": [*MODELS, new], "vaes": []}
    webui.answers["GET active"] = {**state, "listed": 2}
    page.wait_for_selector("#dbt_f_model option[value='/models/me.safetensors']", state="attached")
    page.wait_for_function("window.refreshed === 1")
    assert page.input_value("#dbt_f_model") == MODELS[1]["path"], "what was chosen stays"


def test_the_small_checkpoint_becomes_the_webuis_own(page):
    path = "/models/small-base.safetensors"
    small = {**MODELS[0], "path": path, "title": "small-base.safetensors [33]", "name": "small-base"}
    answer = {"path": path, "checkpoints": [small], "vaes": []}
    without_checkpoints(page, **{"POST models/small-base": answer})
    page.click("#dbt_small_base")
    page.wait_for_function("window.chosen")
    assert page.evaluate("window.chosen") == "small-base.safetensors [33]"


@pytest.mark.parametrize(
    ("ending", "badge", "phase", "on"),
    [
        ("stop", "Stopping", "Saving", ["stop_now"]),
        ("stop_now", "Stopping", "", []),
        ("done", "Ending", "", []),
        ("", "Running", "Training", ["stop", "stop_now", "save", "export", "sample"]),
    ],
)
def test_a_run_that_is_being_stopped_says_so_and_takes_no_order_that_makes_no_sense(
    page, ending, badge, phase, on
):
    webui = FakeWebUI(page, active="me", answers={"GET runs/me/live": LIVE}).open()
    page.wait_for_selector("#dbt_do_stop:not([disabled])")
    told = {**LIVE, "ending": ending, "step": 41}
    if ending == "done":
        told["phase"] = {"name": "stopped", "of": 0, "done": 0}

    def hear(body):
        webui.answers["GET runs/me/live"] = told
        return {"id": "1"}

    webui.answers["POST runs/me/commands"] = hear
    page.click("#dbt_do_stop")
    page.wait_for_selector("#dbt_step:has-text('41')")
    assert page.inner_text("#dbt_state") == badge
    assert page.inner_text("#dbt_phase") == phase
    orders = page.locator("[id^=dbt_do_]:not([disabled])").evaluate_all("all => all.map((one) => one.id)")
    assert orders == [f"dbt_do_{name}" for name in on]


def test_class_images_have_a_bar_and_a_time_and_take_no_order_but_a_stop(page):
    making = {**LIVE, "phase": {"name": "class images", "of": 300, "done": 60}, "phase_eta_s": 62.4}
    making.update(step=0, eta_s=None, it_s=None, chart={**LIVE["chart"], "steps": []})
    webui = FakeWebUI(page, active="me", answers={"GET runs/me/live": making}).open()
    page.wait_for_selector("#dbt_phase:has-text('Making class images: 60 of 300')")
    assert page.get_attribute(".dbt-live .dbt-bar", "aria-valuenow") == "20"
    assert page.eval_on_selector(".dbt-live .dbt-bar i", "bar => bar.style.width") == "20%"
    assert page.inner_text(".dbt-tile:has(#dbt_eta)").split("\n") == ["Time left for this phase", "1 min 2 s"]
    assert page.is_hidden(".dbt-chart"), "nothing is learned yet"
    off = "all => all.filter((one) => one.disabled).map((one) => one.id)"
    orders = "[id^=dbt_do_]"
    assert page.eval_on_selector_all(orders, off) == ["dbt_do_save", "dbt_do_export", "dbt_do_sample"]
    assert "while steps are made" in page.get_attribute("#dbt_do_save", "title")
    webui.answers["GET runs/me/live"] = LIVE
    page.wait_for_selector("#dbt_do_save:not([disabled])")
    assert page.inner_text(".dbt-tile:has(#dbt_eta)").split("\n") == ["Time left", "1 min 30 s"]
    assert page.is_visible(".dbt-chart")
    drawing = {"name": "samples", "of": 2, "done": 0}
    webui.answers["GET runs/me/live"] = {**LIVE, "step": 100, "phase": drawing}
    page.wait_for_selector("#dbt_do_save[disabled]")
    assert page.is_enabled("#dbt_do_stop"), "the pictures of the result are made, which takes its time"


def test_remarks_on_photos_go_with_the_photos(page):
    advice = [
        {"level": "warning", "text": "5 photos: with 10 to 20 different ones it is better", "files": []}
    ]
    plan = {**PLAN, "concepts": [{"rare_token": "ohwx", "rare_token_count": 1, "advice": advice}]}
    refused = {
        "folder": "s",
        "path": "/data/photos/s",
        "files": [],
        "refused": [{"name": "a.gif", "why": "it is a GIF"}],
    }
    webui = FakeWebUI(page, answers={"POST plan": plan, "POST photos": refused}).open()
    drop_photos(page)
    page.wait_for_selector(".dbt-advice :text('5 photos')")
    page.wait_for_selector(".dbt-advice :text('a.gif')")
    webui.answers["POST plan"] = (503, {"error": {"text": "later", "where": "", "remedy": ""}})
    page.fill("#dbt_c0_instance_data_dir", "/elsewhere")
    page.wait_for_function("() => !document.querySelector('[data-concept] .dbt-advice li')")
    page.fill("#dbt_c0_instance_data_dir", "/data/photos/s")
    page.wait_for_selector(".dbt-advice :text('5 photos')")
    page.click("#dbt_afresh")
    page.click(".dbt-confirm .dbt-danger")
    page.wait_for_function("() => !document.querySelector('[data-concept] .dbt-advice li')")


def test_a_folder_that_is_not_there_is_said_once(page):
    gone = {"text": "there is no such folder", "where": "path", "remedy": "check the path"}
    error = {
        "text": "concept 1, instance_data_dir: there is no such folder: /nope",
        "remedy": "check the path",
    }
    error["where"] = "concepts[0].instance_data_dir"
    answers = {"POST photos/look": (400, {"error": gone}), "POST plan": (400, {"error": error})}
    FakeWebUI(page, form={"concepts": [{"instance_data_dir": "/nope"}]}, answers=answers).open()
    page.wait_for_selector("[data-concept] .dbt-wrong .dbt-error-text")
    page.wait_for_function("() => !document.querySelector('[data-concept] .dbt-advice li')")
    assert page.inner_text("[data-concept]").count("no such folder") == 1


def test_an_older_plans_remarks_are_not_shown_of_what_cannot_be_a_value(page):
    note = "learning_rate 1 is 500000 times the usual for a whole model: it will be ruined"
    FakeWebUI(page, answers={"POST plan": {**PLAN, "notes": [note]}}).open()
    drop_photos(page)
    page.wait_for_selector(".dbt-plan :text('500000 times')")
    before = page.input_value("#dbt_f_learning_rate")
    page.fill("#dbt_f_learning_rate", "abc")
    page.wait_for_selector(".dbt-plan :text('500000 times')", state="detached")
    page.fill("#dbt_f_learning_rate", before)
    page.wait_for_selector(".dbt-plan :text('500000 times')")


def test_what_is_wrong_with_the_next_training_can_be_gone_to_while_one_runs(page):
    answers = {"GET runs": runs("me", "me"), "POST plan": (400, {"error": MADE})}
    FakeWebUI(page, answers=answers).open()
    page.set_input_files("#dbt_c0_files", [{"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"x"}])
    page.click("#dbt_reason .dbt-note:has-text('is being made') button")
    assert page.evaluate("document.activeElement.id") == "dbt_f_output_name"
    assert not page.locator(".dbt-error, .dbt-wrong").count(), (
        "nothing is wrong: the run's end gives the name back"
    )


def test_a_name_that_a_run_of_elsewhere_has_is_wrong_beside_its_field(page):
    FakeWebUI(page, answers={"POST plan": (400, {"error": MADE})}).open()
    page.set_input_files("#dbt_c0_files", [{"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"x"}])
    page.wait_for_selector("#dbt_reason .dbt-error:has-text('is being made')")
    assert page.locator(".dbt-wrong #dbt_f_output_name").count()


def test_a_run_that_goes_on_after_a_kill_is_starting_whatever_it_did_last(page):
    webui = FakeWebUI(page, active="me", answers={"GET runs/me/live": {**LIVE, "starting": True}}).open()
    page.wait_for_function("document.querySelector('#dbt_phase').textContent === 'Starting'")
    assert page.inner_text("#dbt_rate") == "–", "its rate is of the life before"
    assert page.is_disabled("#dbt_do_stop_now"), "nobody hears it yet"
    webui.answers["GET runs/me/live"] = LIVE
    page.wait_for_function("document.querySelector('#dbt_phase').textContent === 'Training'")
    assert page.inner_text("#dbt_rate") == "0.67"


def test_a_question_in_the_list_of_runs_leaves_a_narrow_page_s_name_its_room(page):
    page.set_viewport_size({"width": 800, "height": 900})
    state = {"step": 381, "steps": 500, "saved": 250, "error": "", "changed": 1, "result": None}
    rows = [{"name": "a cat of mine", "state": "stopped", **state}]
    answer = {"runs": rows, "active": "", "starting": None, "failed_start": None}
    FakeWebUI(page, answers={"GET runs": answer}).open()
    page.click("#dbt_nav_runs")
    name = page.locator(".dbt-run-name")
    before = name.bounding_box()["height"]
    page.click(".dbt-run .dbt-quiet")
    page.wait_for_selector(".dbt-run .dbt-confirm")
    assert name.bounding_box()["height"] == before
    assert page.locator(".dbt-run-main").bounding_box()["width"] >= 240
    assert page.evaluate("document.documentElement.scrollWidth") <= 800
