"""What the form shows, keeps and asks for, in a real browser with recorded answers in place of the WebUI."""

from __future__ import annotations

from fake_page import MODELS, FakeWebUI
from servers import install_extension
from test_page import ON, PHOTO, drop_photos, planned
from walking import Tab

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
    choose_kind(page, "lora")
    assert [page.input_value(f"#dbt_f_{name}") for name in ("rank", "adapter", "target_blocks")] == [
        "8",
        "dora",
        "all",
    ]
    webui.until(lambda: mine <= planned(webui).keys(), "all of it is planned")
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


def keeping(page, **values) -> FakeWebUI:
    """A WebUI that gives a page the form that was sent last, as ours does."""
    webui = FakeWebUI(page, **values)

    def keep(body):
        webui.form, webui.kept = body["form"], {name: body[name] for name in ("preset", "typed", "family")}
        return {}

    webui.answers["POST form"] = keep
    return webui.open()


def reloaded(page, webui: FakeWebUI, **kept) -> None:
    """The page anew, once the WebUI has this of its form."""
    webui.until(lambda: kept.items() <= webui.form.items(), f"{kept} is kept")
    page.reload()
    page.wait_for_selector("#dbt_train", state="attached")


def value(page, name: str) -> str:
    return page.input_value(f"#dbt_f_{name}")


def test_the_chosen_preset_is_there_after_a_reload_and_what_it_filled_in_goes_on_moving_with_the_kind(page):
    webui = keeping(page)
    page.click("[data-preset=subject] input")
    choose_kind(page, "lora")
    page.fill("#dbt_f_max_train_steps", "700")
    reloaded(page, webui, output_kind="lora", max_train_steps=700)
    assert page.is_checked("[data-preset=subject] input")
    assert "Changed since: Steps." in page.inner_text(".dbt-evidence")
    assert (value(page, "prior_loss_weight"), value(page, "rank")) == ("0", "64")
    choose_kind(page, "checkpoint")
    assert (value(page, "prior_loss_weight"), value(page, "num_class_images")) == ("1", "100")
    assert (value(page, "learning_rate"), value(page, "max_train_steps")) == ("2e-6", "700")


def test_a_rate_that_was_typed_is_still_nobodys_to_change_after_a_reload(page):
    webui = keeping(page)
    page.fill("#dbt_f_learning_rate", "5e-6")
    reloaded(page, webui, learning_rate=5e-6)
    choose_kind(page, "lora")
    assert value(page, "learning_rate") == "5e-6"


def test_what_is_written_in_the_moment_before_a_reload_is_kept(start_standin, page, tmp_path, trainer):
    """In the stand-in: a request of a page that is gone never comes to a test's own answers."""
    install_extension(tmp_path)
    tab = Tab(page, start_standin(data=tmp_path, environ={"DREAMBOOTH_PYTHON": trainer}).url).open()
    page.fill("#dbt_f_output_name", "at the last moment")
    page.reload()
    tab.come_back()
    assert value(page, "output_name") == "at the last moment"


def test_the_form_before_comes_back_with_its_preset(page):
    opened = {"form": {"model": MODELS[0]["path"], "resolution": 64}, "not_taken": []}
    FakeWebUI(page, answers={"POST open": opened}).open()
    page.click("[data-preset=subject] input")
    page.fill("#dbt_f_max_train_steps", "700")
    page.set_input_files("#dbt_open_file", [{"name": "x.yaml", "mimeType": "text/plain", "buffer": b"x"}])
    page.click("#dbt_put_back")
    assert page.is_checked("[data-preset=subject] input")
    choose_kind(page, "lora")
    assert (value(page, "rank"), value(page, "max_train_steps")) == ("64", "700")


def test_a_quick_try_of_a_lora_is_quick_and_no_class_images_are_filled_in_without_a_prior(page):
    FakeWebUI(page).open()
    assert value(page, "num_class_images") == "200"
    choose_kind(page, "lora")
    assert (value(page, "prior_loss_weight"), value(page, "num_class_images")) == ("0", "100")
    assert not page.locator("[data-field=num_class_images].dbt-changed").count()
    page.click("[data-preset=quick] input")
    filled = [value(page, name) for name in ("max_train_steps", "learning_rate", "rank")]
    assert filled == ["200", "2e-4", "16"] and not page.is_checked("#dbt_f_train_text_encoder")


def open_file(page, name: str) -> None:
    page.set_input_files("#dbt_open_file", [{"name": name, "mimeType": "text/plain", "buffer": b"x"}])


def test_a_file_without_concepts_leaves_one_to_drop_photos_into(page):
    opened = {"form": {"model": MODELS[0]["path"], "resolution": 64}, "not_taken": []}
    form = {
        "output_name": "mine",
        "concepts": [{"instance_prompt": "sks dog", "instance_data_dir": "/mine"}] * 2,
    }
    FakeWebUI(page, answers={"POST open": opened}, form=form).open()
    open_file(page, "x.yaml")
    page.wait_for_selector("#dbt_put_back")
    assert page.locator(".dbt-drop").count() == 1 and page.is_visible("#dbt_c0_drop")
    assert page.input_value("#dbt_c0_instance_data_dir") == ""
    drop_photos(page)


def test_a_file_that_cannot_be_opened_is_named_and_takes_no_way_back_away(page):
    def answer(body):
        if body["name"] == "good.yaml":
            return {"form": {"model": MODELS[0]["path"], "resolution": 64}, "not_taken": ["old_name"]}
        error = {
            "text": "it cannot be read: a bracket is not closed",
            "where": "a bad one.json, line 3, column 5",
        }
        return (400, {"error": {**error, "remedy": "mend the file at this place"}})

    FakeWebUI(page, answers={"POST open": answer}).open()
    page.fill("#dbt_f_output_name", "mine")
    open_file(page, "good.yaml")
    page.wait_for_selector("#dbt_put_back")
    open_file(page, "a bad one.json")
    page.wait_for_selector(".dbt-opened .dbt-error")
    assert page.inner_text(".dbt-opened .dbt-error").startswith(
        "a bad one.json, line 3, column 5: It cannot be read"
    )
    assert "old_name" in page.inner_text(".dbt-opened")
    page.click("#dbt_put_back")
    assert value(page, "output_name") == "mine"
    assert page.locator(".dbt-opened > *").count() == 0
