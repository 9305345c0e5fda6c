""" "Reload UI" waits for every answer that is still owed: none of ours may take long once it was pressed."""

from __future__ import annotations

import threading
import time

import pytest
from asking import Refused, ask
from kill_webui import form
from servers import install_extension, place_base
from walking import wait_until

SLOW = "#!/bin/sh\nexec sleep 100\n"  # a trainer on a machine that has no time for it


@pytest.fixture
def webui(start_standin, tmp_path):
    data = tmp_path / "data"
    place_base(data)
    install_extension(data)
    trainer = tmp_path / "python"
    trainer.write_text(SLOW)
    trainer.chmod(0o755)
    return start_standin(data=data, environ={"DREAMBOOTH_PYTHON": str(trainer)})


@pytest.mark.parametrize("path", ["/plan", "/runs"])
def test_reload_ui_does_not_wait_for_a_slow_trainer(webui, page, path):
    page.goto(webui.url)
    page.locator("#txt2img_prompt").wait_for()
    answered = []

    def ask_slowly():
        try:
            answered.append(ask(webui.url, path, {"form": form(webui.data, 10)}))
        except (Refused, OSError) as error:
            answered.append(error)

    asking = threading.Thread(target=ask_slowly)
    asking.start()
    time.sleep(1)  # the question has to be on its way
    assert not answered
    page.locator("#tabs > .tab-nav").get_by_role("button", name="Settings", exact=True).click()
    page.locator("#settings_restart_gradio").click()
    wait_until(lambda: webui.log.count("Running on http") == 2, "the page is there again", 30)
    asking.join(5)
    assert answered
