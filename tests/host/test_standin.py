"""The stand-in keeps to what was recorded of the WebUI, traps included."""

from __future__ import annotations

import os

import pytest
from conftest import write_safetensors


def test_setting_the_checkpoint_inside_the_queues_lock_is_a_deadlock(standin):
    webui = standin()
    webui.checkpoint("a")
    webui.checkpoint("b", b"1234")
    webui.sd_models.list_models()
    with webui.call_queue.queue_lock, pytest.raises(webui.call_queue.Deadlock):
        webui.shared.opts.set("sd_model_checkpoint", "b.safetensors")
    assert len(webui.call_queue.deadlocks) == 1
    webui.call_queue.deadlocks.clear()


def test_setting_the_checkpoint_inside_a_job_of_the_page_is_a_deadlock(standin):
    webui = standin()
    webui.checkpoint("a")
    webui.sd_models.list_models()
    job = webui.call_queue.wrap_gradio_gpu_call(
        lambda: [webui.shared.opts.set("sd_model_checkpoint", "a.safetensors")]
    )
    with pytest.raises(webui.call_queue.Deadlock):
        job()
    webui.call_queue.deadlocks.clear()


def test_overwriting_the_selected_checkpoint_makes_the_next_picture_with_the_first_of_the_list(standin):
    webui = standin()
    webui.checkpoint("a")
    selected = webui.checkpoint("b", b"1234")
    webui.sd_models.list_models()
    webui.shared.opts.set("sd_model_checkpoint", "b.safetensors")
    assert webui.shared.opts.sd_model_checkpoint.startswith("b.safetensors [")
    write_safetensors(selected, b"5678")
    os.utime(selected, (2e9, 2e9))
    webui.sd_models.list_models()
    assert webui.sd_models.select_checkpoint().name == "a.safetensors"


def test_the_same_name_with_new_content_is_not_loaded_by_a_plain_reload(standin):
    webui = standin()
    path = webui.checkpoint("a")
    webui.sd_models.list_models()
    before = webui.shared.sd_model.content
    write_safetensors(path, b"5678")
    webui.sd_models.reload_model_weights()
    assert webui.shared.sd_model.content == before
    webui.sd_models.reload_model_weights(forced_reload=True)
    assert webui.shared.sd_model.content != before


def test_an_older_file_in_the_same_place_keeps_the_stale_hash(standin):
    webui = standin()
    path = webui.checkpoint("a")
    webui.sd_models.list_models()
    title = webui.shared.sd_model.sd_checkpoint_info.title
    write_safetensors(path, b"5678")
    os.utime(path, (1e9, 1e9))
    webui.sd_models.list_models()
    assert webui.sd_models.checkpoint_tiles() == [title]


def test_a_corrupt_file_leaves_the_model_half_detached(standin):
    webui = standin()
    webui.checkpoint("a")
    webui.checkpoint("b", b"1234").write_bytes(b"nothing")
    webui.sd_models.list_models()
    assert webui.shared.sd_model.hijacked
    with pytest.raises(Exception):  # noqa: B017 - whatever the reader says
        webui.sd_models.reload_model_weights(info=webui.sd_models.checkpoint_aliases["b"])
    with pytest.raises(RuntimeError, match="half detached"):
        webui.processing.process_images(webui.processing.StableDiffusionProcessing("x"))


def test_loading_over_a_loaded_model_leaves_one_without_data_in_the_list(standin):
    webui = standin()
    webui.checkpoint("a")
    webui.checkpoint("b", b"1234")
    webui.sd_models.list_models()
    assert webui.shared.sd_model
    webui.sd_models.load_model(webui.sd_models.checkpoint_aliases["b"])
    webui.sd_models.model_data.loaded_sd_models.pop(0)
    with pytest.raises(NotImplementedError, match="meta"):
        webui.sd_models.reload_model_weights(info=webui.sd_models.checkpoint_aliases["a"])


def test_a_vae_whose_name_begins_with_the_checkpoints_is_taken_with_it(standin):
    webui = standin()
    webui.checkpoint("foo")
    write_safetensors(webui.data / "models" / "VAE" / "foo-something.vae.safetensors")
    webui.sd_models.list_models()
    webui.sd_vae.refresh_vae_list()
    done = webui.processing.process_images(webui.processing.StableDiffusionProcessing("x"))
    assert "foo-something.vae.safetensors" in done.info


def test_looking_at_the_shared_model_loads_one(standin):
    webui = standin()
    webui.checkpoint("a")
    webui.sd_models.list_models()
    assert webui.sd_models.model_data.sd_model is None
    assert webui.shared.sd_model is webui.sd_models.model_data.sd_model is not None


def test_the_cards_memory_is_counted(standin):
    webui = standin("--standin-card", "8")
    webui.checkpoint("a")
    webui.sd_models.list_models()
    import torch

    free, total = torch.cuda.mem_get_info()
    assert free == total == 8 * 1024**3
    model = webui.shared.sd_model
    assert torch.cuda.mem_get_info()[0] == 6 * 1024**3
    webui.sd_models.send_model_to_trash(model)
    assert torch.cuda.mem_get_info()[0] == 8 * 1024**3


def test_a_callback_that_fails_fails_alone(standin):
    webui = standin()
    webui.script_callbacks.on_ui_tabs(lambda: 1 / 0)
    webui.script_callbacks.on_ui_tabs(lambda: ["tab"])
    assert webui.script_callbacks.run("ui_tabs") == [["tab"]]
    assert "ZeroDivisionError" in webui.errors.reported[0]


EXTENSION = """
import sys
from modules import script_callbacks
import helper
def tab():
    import gradio as gr
    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.HTML("<div id='mine'>Hello</div>")
        gr.Textbox(label="Kept", value="first")
    return [(blocks, "Mine", "mine_tab")]
script_callbacks.on_ui_tabs(tab)
def late(demo, app):
    try:
        import other_helper
    except ImportError:
        app.add_api_route("/mine", lambda: {"helper": helper.VALUE, "late": "refused"})
script_callbacks.on_app_started(late)
"""


def _extension(data):
    folder = data / "extensions" / "mine"
    for name in ("scripts", "javascript", "localizations"):
        (folder / name).mkdir(parents=True)
    (folder / "scripts" / "mine.py").write_text(EXTENSION)
    (folder / "helper.py").write_text("VALUE = 7")
    (folder / "other_helper.py").write_text("")
    (folder / "install.py").write_text("print('installing')")
    (folder / "style.css").write_text("#mine { color: rgb(1, 2, 3); }")
    (folder / "javascript" / "mine.js").write_text(
        "onUiLoaded(() => { window.uiWasLoaded = true; });"
        "onUiTabChange(() => { window.shownTab = get_uiCurrentTab().textContent.trim(); });"
    )
    (folder / "localizations" / "zh_CN.json").write_text('{"Hello": "你好"}', encoding="utf-8")


def test_an_extension_lives_in_it_as_in_the_webui(start_standin, tmp_path, page):
    data = tmp_path / "data"
    _extension(data)
    write_safetensors(data / "models" / "Stable-diffusion" / "a.safetensors")
    write_safetensors(data / "models" / "Stable-diffusion" / "b.safetensors", b"1234")
    (data / "config.json").write_text('{"localization": "zh_CN"}')
    server = start_standin(data=data)
    assert "installing" in server.log
    page.goto(server.url)
    page.wait_for_function("window.uiWasLoaded")
    page.get_by_role("button", name="Mine", exact=True).click()
    page.wait_for_function("window.shownTab === 'Mine'")
    assert page.locator("#mine").inner_text() == "你好"
    assert page.locator("#mine").evaluate("e => getComputedStyle(e).color") == "rgb(1, 2, 3)"
    assert page.request.get(f"{server.url}/mine").json() == {"helper": 7, "late": "refused"}

    page.evaluate("selectCheckpoint('b.safetensors')")
    chosen = page.locator("#setting_sd_model_checkpoint input")
    page.wait_for_function(
        "document.querySelector('#setting_sd_model_checkpoint input').value.startsWith('b.')"
    )
    assert chosen.input_value().startswith("b.safetensors [")
    page.get_by_role("button", name="txt2img").click()
    page.locator("#txt2img_prompt textarea").fill("a photo")
    page.locator("#txt2img_generate").click()
    page.locator("#html_info_txt2img", has_text="Model: b").first.wait_for()
    assert '"mine_tab/Kept/value": "first"' in (data / "ui-config.json").read_text()


def test_reload_ui_runs_the_scripts_again(start_standin, tmp_path, page):
    data = tmp_path / "data"
    _extension(data)
    write_safetensors(data / "models" / "Stable-diffusion" / "a.safetensors")
    server = start_standin(data=data)
    page.goto(server.url)
    page.wait_for_function("window.uiWasLoaded")
    page.get_by_role("button", name="Settings").click()
    page.evaluate("window.uiWasLoaded = false")
    page.get_by_role("button", name="Reload UI").click()
    page.wait_for_function("window.uiWasLoaded")
    assert page.request.get(f"{server.url}/mine").ok
    assert "Restarting UI..." in server.log


def test_gradio_auth_guards_the_page_and_not_an_extensions_route(start_standin, tmp_path, page):
    data = tmp_path / "data"
    _extension(data)
    server = start_standin("--gradio-auth", "me:pw", data=data)
    assert page.request.get(f"{server.url}/config").status == 401
    assert page.request.get(f"{server.url}/mine").ok
    answer = page.request.post(f"{server.url}/login", form={"username": "me", "password": "pw"})
    assert answer.ok
    names = {cookie["name"] for cookie in page.context.cookies()}
    assert names & {"access-token", "access-token-unsecure"}
