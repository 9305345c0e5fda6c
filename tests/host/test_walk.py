"""The whole way through the tab, in a browser: photos dropped, trained, watched, stopped, resumed, used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import walking
from servers import Server, install_extension, place_base
from walking import NAME, Tab

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
