"""What newcomers stumbled over in the page, in a real browser with recorded answers in place of the WebUI."""

from __future__ import annotations

from fake_page import MODELS, FakeWebUI
from test_page import ON, PHOTO


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
