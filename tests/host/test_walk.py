"""The whole way through the tab, in a browser: photos dropped, trained, watched, stopped, resumed, used."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import walking
from servers import Server, install_extension, place_base
from walking import NAME, Tab, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def webui(start_standin, tmp_path, trainer) -> Server:
    data = tmp_path / "data"
    place_base(data)
    install_extension(data)
    return start_standin("--api", data=data, environ={"DREAMBOOTH_PYTHON": trainer})


def test_from_photos_to_a_picture_in_the_stand_in(webui, page, browser):
    tab = Tab(page, webui.url).open()
    walking.fill_the_form(tab)
    walking.train_stop_and_resume(tab, webui, browser)
    walking.use_the_result(tab)
    page.locator("#html_info_txt2img", has_text=f"Model: {NAME}").first.wait_for()

    result = json.loads(next((webui.data / "dreambooth" / "runs").glob("*/result.json")).read_text())
    assert Path(result["path"]) == webui.data / "models" / "Stable-diffusion" / f"{NAME}.safetensors"
    assert "DreamBooth" not in (webui.data / "ui-config.json").read_text()


def _kill_trainer(webui: Server) -> None:
    """As the system does when memory runs out: no last word from the trainer."""
    jobs = sorted((webui.data / "dreambooth" / "jobs").glob("*/job.json"))
    os.kill(json.loads(jobs[-1].read_text())["pid"], signal.SIGKILL)


def test_orders_from_the_page_and_a_trainer_that_dies(webui, page):
    tab = Tab(page, webui.url).open()
    walking.fill_the_form(tab, steps=1000)
    tab.train()
    page.locator('.dbt-sample[data-step="0"]').first.wait_for(timeout=120_000)
    tab.until_step(3)
    for order in ("export", "sample", "save"):
        tab.do(order)
    use = page.locator(".dbt-result-file").get_by_role("button", name="Use this one").first
    use.wait_for(timeout=120_000)
    page.locator('.dbt-sample:not([data-step="0"])').first.wait_for(timeout=120_000)
    wait_until(lambda: any((webui.data / "dreambooth" / "runs").glob("*/state/step-*")), "a saved state")

    _kill_trainer(webui)
    tab.until_state("Interrupted", patience=15)
    page.locator(".dbt-run-problem .dbt-error").wait_for()
    exported = next((webui.data / "models" / "Stable-diffusion").glob(f"{NAME}-*.safetensors"))
    use.click()  # an intermediate checkpoint is used like the result
    page.wait_for_function(
        f"document.querySelector('#setting_sd_model_checkpoint input').value.startsWith('{exported.name}')"
    )
    page.locator("#txt2img_prompt").wait_for()  # it goes there by itself
    tab.come_back()
    page.locator("#dbt_resume").click()
    tab.until_state("Running", after="Interrupted")
    wait_until(lambda: page.locator("#dbt_rate").inner_text() != "–", "it makes steps again", 120)
    tab.do("stop_now")
    page.locator(".dbt-confirm").get_by_role("button", name="Stop now").click()
    tab.until_state("Stopped")

    tab.view("runs")
    row = page.locator(f'.dbt-run[data-run="{NAME}"]')
    row.get_by_role("button", name="Delete").click()
    row.locator(".dbt-confirm").get_by_role("button", name="Delete").click()
    row.wait_for(state="detached")
    assert exported.exists(), "what was exported is kept"
