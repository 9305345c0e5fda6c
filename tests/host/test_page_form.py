"""What the form shows, keeps and asks for, in a real browser with recorded answers in place of the WebUI."""

from __future__ import annotations

from fake_page import MODELS, FakeWebUI
from test_page import ON, PHOTO, drop_photos, planned

LORA = {"output_kind": "lora", "concepts": [{"instance_prompt": "sks dog"}]}


def choose_kind(page, kind: str) -> None:
    page.select_option("#dbt_f_output_kind", kind)


def choices(page, name: str) -> list[str]:
    return page.locator(f"#dbt_f_{name} option").all_text_contents()


def is_offered(page, name: str) -> bool:
    """Whether a field is there, in sight or in an accordion that can be opened."""
    return page.locator(f"[data-field={name}]").evaluate("field => !field.closest('[hidden]')")


def test_what_only_an_adapter_has_is_offered_for_adapters_alone_and_the_other_way_round(page):
    FakeWebUI(page).open()
    of_adapters = ("rank", "target_blocks", "init_from", "prior", "base_precision")
    for kind, adapters, whole, format_ in (
        ("checkpoint", False, True, True), ("diffusers", False, True, False), ("lycoris", True, False, False),
    ):  # fmt: skip
        choose_kind(page, kind)
        assert [is_offered(page, name) for name in of_adapters] == [adapters] * 5, kind
        assert page.is_visible("[data-group=adapters]") == adapters, kind
        assert (is_offered(page, "weights_dtype"), is_offered(page, "output_format")) == (whole, format_), (
            kind
        )


def test_only_the_kinds_of_adapter_that_the_result_takes_can_be_chosen(page):
    FakeWebUI(page, form=LORA).open()
    assert choices(page, "adapter") == ["auto", "lora", "dora"]
    page.click("[data-group=adapters] summary")
    page.select_option("#dbt_f_adapter", "dora")
    choose_kind(page, "lycoris")
    assert choices(page, "adapter") == ["auto", "loha", "lokr"]
    assert page.input_value("#dbt_f_adapter") == "auto"
    choose_kind(page, "lora")
    assert page.input_value("#dbt_f_adapter") == "dora", "kept for when its kind comes back"


def test_what_was_filled_in_for_another_kind_takes_no_part_and_is_there_when_the_kind_comes_back(page):
    form = {**LORA, "rank": 8, "adapter": "dora", "clip_rank": True, "prior": "base_prediction"}
    webui = FakeWebUI(page, form=form).open()
    page.click("[data-group=adapters] summary")
    page.fill("#dbt_f_target_blocks", "all")
    choose_kind(page, "checkpoint")
    drop_photos(page)
    mine = {"rank", "adapter", "clip_rank", "prior", "target_blocks"}
    assert not mine & planned(webui).keys()
    before = len(webui.sent("POST plan"))
    choose_kind(page, "lora")
    assert [page.input_value(f"#dbt_f_{name}") for name in ("rank", "adapter", "target_blocks")] == [
        "8",
        "dora",
        "all",
    ]
    asked = webui.until_sent("POST plan", before + 1)[-1]["form"]
    assert mine <= asked.keys()
    assert webui.until_sent("POST form", 1)[-1]["form"]["rank"] == 8


def test_what_cannot_be_a_value_of_another_kind_of_result_does_not_turn_train_off(page):
    webui = FakeWebUI(page, form=LORA).open()
    page.click("[data-group=adapters] summary")
    page.fill("#dbt_f_rank", "many")
    page.set_input_files("#dbt_c0_files", [PHOTO])
    page.wait_for_selector("#dbt_reason:has-text('not a number')")
    choose_kind(page, "checkpoint")
    page.wait_for_selector(ON)
    assert "rank" not in planned(webui)
    choose_kind(page, "lora")
    page.wait_for_selector("#dbt_reason:has-text('not a number')")
    assert page.input_value("#dbt_f_rank") == "many"


def test_an_opened_files_settings_that_mean_nothing_for_its_kind_of_result_are_named(page):
    opened = {"form": {"model": MODELS[0]["path"], "rank": 8, "resolution": 64}, "not_taken": ["old_name"]}
    FakeWebUI(page, answers={"POST open": opened}).open()
    page.set_input_files("#dbt_open_file", [{"name": "x.yaml", "mimeType": "text/plain", "buffer": b"x"}])
    page.wait_for_selector(".dbt-opened code")
    assert page.inner_text(".dbt-opened code") == "old_name, rank"
