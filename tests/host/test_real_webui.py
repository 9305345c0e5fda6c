"""The same walk in the real WebUI v1.10.1, started by its own launcher: from install.py to a picture.

Runs where DREAMBOOTH_WEBUI names a folder with one installed (its Python in venv/). What it is given is a data folder
of the test's own; the trainer's environment is made, or found again, in this checkout's environments/.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asking
import pytest
import walking
from PIL import Image
from servers import ROOT, Server, install_extension, real_webui
from walking import NAME, Tab, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.webui]
SIDE = 64


def place_base_for_ldm(data: Path, trainer: str) -> None:
    """The small base with its yaml and tokenizer, as the project places it."""
    code = (
        "import sys; from pathlib import Path\n"
        "from dreambooth.trainer.models.place_base import place_base; place_base(Path(sys.argv[1]))"
    )
    subprocess.run([trainer, "-c", code, str(data / "models" / "Stable-diffusion")], cwd=ROOT, check=True)


def place_another(data: Path, trainer: str) -> None:
    """tinted.safetensors, the small base with other bytes; listed after it, so that the WebUI begins with the base."""
    folder = data / "models" / "Stable-diffusion"
    code = (
        "import sys; from safetensors.torch import load_file, save_file\n"
        "weights = load_file(sys.argv[1])\n"
        "save_file({name: weight * 1.01 if weight.is_floating_point() else weight "
        "for name, weight in weights.items()}, sys.argv[2])"
    )
    subprocess.run(
        [trainer, "-c", code, str(folder / "small-base.safetensors"), str(folder / "tinted.safetensors")],
        check=True,
    )
    shutil.copy(folder / "small-base.yaml", folder / "tinted.yaml")


def packages(server: Server) -> str:
    done = subprocess.run(
        [server.command[0], "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def webui(tmp_path, trainer) -> Iterator[Server]:
    data = tmp_path / "data"
    place_base_for_ldm(data, trainer)
    install_extension(data)
    server = real_webui(Path(os.environ["DREAMBOOTH_WEBUI"]), data)
    yield server
    server.stop()


def txt2img(server: Server, prompt: str) -> tuple[Image.Image, dict]:
    return asking.txt2img(server.url, prompt=prompt, steps=20, width=SIDE, height=SIDE, cfg_scale=3, seed=5)


def check_that_nothing_loads_a_model(server: Server) -> None:
    """What would load one through the API says that a training has the card."""
    picture = base64.b64encode(walking.PHOTOS[0].read_bytes()).decode()
    for path, body in (
        ("interrogate", {"image": picture, "model": "clip"}),
        ("interrogate", {"image": picture, "model": "deepdanbooru"}),
        ("extra-single-image", {"image": picture, "upscaling_resize": 2, "upscaler_1": "Lanczos"}),
        ("create/embedding", {"name": "x", "num_vectors_per_token": 1, "overwrite_old": True}),
        ("reload-checkpoint", {}),
    ):
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.url}/sdapi/v1/{path}", json.dumps(body).encode(), headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        assert refused.value.code == 503, path
        assert "DreamBooth" in json.loads(refused.value.read())["detail"]


def small_pictures(page: Any) -> None:
    """Has the page draw pictures of the small base's size, below what its sliders reach."""
    for name in ("width", "height"):
        page.locator(f"#txt2img_{name} input[type=number]").evaluate(
            "(input, side) => { input.value = side; input.dispatchEvent(new Event('input', {bubbles: true})); }",
            SIDE,
        )


def until_drawn(page: Any) -> None:
    page.locator("#txt2img_interrupt").wait_for(state="hidden")
    page.locator("#txt2img_gallery .thumbnail-item").first.wait_for()


def test_from_install_to_a_picture_in_the_real_webui(webui, page, browser):
    before = packages(webui)
    webui.start(patience=300)
    picture, _ = txt2img(webui, "photo of cat")
    assert picture.size == (SIDE, SIDE)
    assert len(picture.convert("RGB").getcolors(SIDE * SIDE) or []) > 500, (
        "the small base loads: no flat picture"
    )

    tab = Tab(page, webui.url).open()
    tab.page.locator("#dbt_train").wait_for(timeout=60_000)
    tab.shoot("first")
    walking.fill_the_form(tab, installing=900)
    walking.train_stop_and_resume(tab, webui, browser, lambda: check_that_nothing_loads_a_model(webui))
    small_pictures(page)
    walking.use_the_result(tab)
    page.locator("#html_info_txt2img", has_text=f"Model: {NAME}").first.wait_for(timeout=120_000)
    until_drawn(page)
    tab.shoot("picture")

    assert packages(webui) == before
    stored = json.loads((webui.data / "ui-config.json").read_text())
    assert not [name for name in stored if "dreambooth" in name.lower()]
    _, said = txt2img(webui, "photo of ohwx cat")
    assert said["sd_model_name"] == NAME


def test_a_lora_from_the_page_is_used_in_the_page(webui, page):
    webui.start(patience=300)
    tab = Tab(page, webui.url).open()
    walking.fill_the_form(tab, steps=60, installing=900)
    tab.fill({"output_kind": "lora", "learning_rate": "1e-3", "text_encoder_learning_rate": "1e-3"})
    tab.train()
    tab.until_state("Finished", patience=1200)
    assert (webui.data / "models" / "Lora" / f"{NAME}.safetensors").exists()

    small_pictures(page)
    page.locator("#dbt_use").click()
    prompt = f"photo of ohwx cat <lora:{NAME}:1>"
    said = page.locator("#txt2img_prompt textarea")
    wait_until(lambda: said.is_visible() and said.input_value() == prompt, "the prompt names the LoRA")
    page.locator("#txt2img_extra_tabs").get_by_role("button", name="Lora", exact=True).click()
    page.locator("#txt2img_lora_cards .card", has_text=NAME).wait_for()
    tab.shoot("lora card")
    page.locator("#txt2img_extra_tabs").get_by_role("button", name="Generation", exact=True).click()
    page.locator("#txt2img_generate").click()
    page.locator("#html_info_txt2img", has_text=f'Lora hashes: "{NAME}: ').first.wait_for(timeout=120_000)
    until_drawn(page)
    tab.shoot("lora picture")
    pictures = [txt2img(webui, text)[0].convert("RGB").tobytes() for text in ("photo of ohwx cat", prompt)]
    assert pictures[0] != pictures[1]
    assert "Traceback" not in webui.log


def test_a_lora_whose_webui_was_killed_meanwhile_is_used_on_its_base(webui, page, trainer):
    place_another(webui.data, trainer)
    webui.start(patience=300)
    tab = Tab(page, webui.url).open()
    walking.fill_the_form(tab, steps=150, installing=900)
    tab.fill({"output_kind": "lora", "learning_rate": "1e-3", "text_encoder_learning_rate": "1e-3"})
    tab.train()
    tab.until_step(3)
    page.evaluate("selectCheckpoint('tinted.safetensors')")  # not the base of the training
    chosen = page.locator("#setting_sd_model_checkpoint input")
    wait_until(lambda: chosen.input_value().startswith("tinted"), "another checkpoint is chosen")
    webui.kill()
    webui.start(patience=300)
    tab.open()
    tab.until_state("Finished", patience=1200)

    small_pictures(page)
    page.locator("#dbt_use").click()
    said = page.locator("#txt2img_prompt textarea")
    wait_until(lambda: said.is_visible() and "<lora:" in said.input_value(), "the prompt names the LoRA", 120)
    wait_until(lambda: chosen.input_value().startswith("small-base"), "its base is chosen")
    page.locator("#txt2img_generate").click()
    page.locator("#html_info_txt2img", has_text="Model: small-base").first.wait_for(timeout=120_000)
    until_drawn(page)
    tab.shoot("lora after a kill")
    assert "Networks with errors" not in page.locator("#html_info_txt2img").first.inner_text()
    assert "Traceback" not in webui.log
