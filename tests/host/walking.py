"""The DreamBooth tab as a user's hands and eyes meet it: in the stand-in, and in the real WebUI."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from servers import ROOT, Server

SHOTS = os.environ.get("DREAMBOOTH_TESTS_SCREENSHOTS")  # a folder: pictures of the page on the way, for eyes
NAME = "my-cat"
PHOTOS = sorted((ROOT / "dreambooth" / "assets" / "demo").glob("*.jpg"))
# What the small base learns a cat with, in half a minute; see dreambooth/trainer/demo.py.
SMALL = {
    "resolution": "64",
    "random_flip": True,
    "train_batch_size": "4",
    "gradient_accumulation_steps": "1",
    "learning_rate": "5e-5",
    "text_encoder_learning_rate": "8e-4",
    "num_class_images": "8",
    "class_guidance_scale": "3",
    "sample_batch_size": "8",
    "validation_prompt": "photo of ohwx cat",
}
_DROP = """([zone, files]) => {
    const transfer = new DataTransfer();
    for (const {name, content} of files) {
        const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name, {type: 'image/jpeg'}));
    }
    for (const kind of ['dragenter', 'dragover', 'drop']) {
        zone.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
    }
}"""


def wait_until(holds: Callable[[], Any], what: str, patience: float = 60.0) -> Any:
    """What `holds` gives as soon as it is true."""
    deadline = time.monotonic() + patience
    while True:
        found = holds()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"in {patience} seconds it did not come to this: {what}")
        time.sleep(0.05)


class Tab:
    """The DreamBooth tab of one page of a browser."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url

    def open(self) -> Tab:
        """Opens the WebUI's page and clicks on the tab."""
        self.page.goto(self.url)
        return self.come_back()

    def come_back(self) -> Tab:
        """Clicks on the tab, once the page is there."""
        tab = self.page.locator("#tabs > .tab-nav").get_by_role("button", name="DreamBooth", exact=True)
        tab.click(timeout=60_000)
        self.page.locator("#dreambooth_trainer_root.dbt-drawn").wait_for(timeout=60_000)
        return self

    def reload(self) -> Tab:
        self.page.reload()
        return self.come_back()

    def view(self, name: str) -> None:
        self.page.locator(f"#dbt_nav_{name}").click()

    def webui_tab(self, name: str) -> None:
        """Clicks on another of the WebUI's own tabs."""
        self.page.locator("#tabs > .tab-nav").get_by_role("button", name=name, exact=True).click()

    def shoot(self, name: str) -> None:
        if SHOTS:
            self.page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)

    def set(self, name: str, value: str | bool) -> None:
        """Fills one setting's field in, after opening the accordion that it lies in."""
        field = self.page.locator(f"#dbt_f_{name}")
        for accordion in field.locator("xpath=ancestor::details[not(@open)]").all():
            accordion.locator("summary").first.click()
        if isinstance(value, bool):
            field.set_checked(value)
        elif field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(value)

    def fill(self, settings: dict[str, str | bool]) -> None:
        for name, value in settings.items():
            self.set(name, value)

    def drop(self, photos: list[Path], concept: int = 0) -> None:
        """Drops photos onto a concept and waits for their thumbnails."""
        files = [
            {"name": photo.name, "content": base64.b64encode(photo.read_bytes()).decode()} for photo in photos
        ]
        zone = self.page.locator(f"#dbt_c{concept}_drop")
        zone.evaluate("(zone, files) => (" + _DROP + ")([zone, files])", files)
        thumbnails = self.page.locator(f'[data-concept="{concept}"] .dbt-thumb img')
        wait_until(lambda: thumbnails.count() >= len(photos), "a thumbnail for each photo")

    def prompts(self, instance: str, class_: str, concept: int = 0) -> None:
        self.page.locator(f"#dbt_c{concept}_instance_prompt").fill(instance)
        self.page.locator(f"#dbt_c{concept}_class_prompt").fill(class_)

    def ready(self, patience: float = 60.0) -> None:
        """Waits for a plan that nothing is wrong with."""
        button = self.page.locator("#dbt_train:not([disabled])")
        try:
            button.wait_for(timeout=patience * 1000)
        except Exception as error:
            raise AssertionError(
                f"Train stays off: {self.page.locator('#dbt_reason').inner_text()}"
            ) from error

    def train(self) -> None:
        self.ready()
        self.page.locator("#dbt_train").click()
        self.page.locator("#dbt_state").wait_for(timeout=60_000)

    @property
    def state(self) -> str:
        return self._text("#dbt_state")

    @property
    def step(self) -> int:
        text = self._text("#dbt_step").partition("/")[0].strip().replace(",", "")
        return int(text) if text.isdigit() else 0

    def _text(self, selector: str) -> str:
        found = self.page.locator(selector)
        return found.inner_text() if found.count() else ""

    def chart(self) -> str:
        """What the chart draws."""
        shapes = "svg => [...svg.querySelectorAll('path')].map((path) => path.getAttribute('d')).join('|')"
        return self.page.locator(".dbt-live svg").first.evaluate(shapes)

    def until_state(self, state: str, patience: float = 120.0, *, after: str = "") -> None:
        """Waits for a state; a run that dies instead fails at once, unless it is shown as dead before (`after`)."""

        def holds() -> bool:
            now = self.state
            if now in ("Failed", "Interrupted") and now not in (state, after):
                raise AssertionError(
                    f"{now}: {self._text('.dbt-run-problem')}\n{self._text('.dbt-live .dbt-log')}"
                )
            return now == state

        wait_until(holds, f"the run is {state}", patience)

    def until_step(self, step: int, patience: float = 120.0) -> None:
        wait_until(lambda: self.step >= step, f"step {step}", patience)

    def do(self, command: str) -> None:
        self.page.locator(f"#dbt_do_{command}").click()


def fill_the_form(tab: Tab, steps: int = 250, *, installing: float = 60.0) -> None:
    """As a user would; `installing` seconds are given to the making of the trainer's environment."""
    tab.drop(PHOTOS)
    tab.page.locator('[data-preset="subject"]').click()
    tab.prompts("photo of ohwx cat", "photo of cat")
    tab.fill(SMALL)
    tab.fill({"max_train_steps": str(steps), "validation_steps": "50", "output_name": NAME})
    tab.ready(installing)
    tab.shoot("form")


def train_stop_and_resume(
    tab: Tab, webui: Server, browser: Any, while_busy: Callable[[], object] = lambda: None
) -> None:
    """Trains, with everything in between that a user may do to a page and a run, and `while_busy` in the middle."""
    tab.train()
    tab.until_step(10)
    before = tab.chart()
    tab.until_step(tab.step + 10)
    assert tab.chart() != before, "the chart moves"
    tab.shoot("live")

    other = browser.new_page()
    second = Tab(other, webui.url).open()
    second.until_state("Running")
    wait_until(lambda: second.step >= 20, "a second page follows")
    other.close()
    tab.reload()
    assert tab.page.locator(".dbt-live h2").first.inner_text() == NAME
    tab.until_step(30)

    tab.webui_tab("txt2img")
    tab.page.locator("#txt2img_generate").click()
    tab.page.locator(".dreambooth-busy").first.wait_for(timeout=60_000)  # the card is busy
    while_busy()
    tab.come_back()

    tab.do("stop")
    tab.until_state("Stopped")
    stopped_at = tab.step
    assert stopped_at >= 30
    tab.page.locator("#dbt_resume").click()
    tab.until_state("Running")
    tab.until_step(stopped_at + 5)
    reload_the_ui(tab, webui)
    tab.until_state("Finished", patience=1200)
    tab.shoot("result")


def reload_the_ui(tab: Tab, webui: Server) -> None:
    """Presses "Reload UI" and comes back to the tab, which is on the run again."""
    tab.webui_tab("Settings")
    times = webui.log.count("Restarting UI")
    tab.page.locator("#settings_restart_gradio").click()
    wait_until(lambda: webui.log.count("Restarting UI") > times, "the WebUI makes its page anew")
    tab.page.locator("#txt2img_prompt").wait_for(timeout=120_000)
    tab.come_back()
    wait_until(lambda: tab.state in ("Running", "Finished"), "the tab is back on the run")


def use_the_result(tab: Tab) -> None:
    """Makes the result the WebUI's checkpoint and presses Generate with the prompt that was put there."""
    page = tab.page
    page.locator("#dbt_use").click()
    chosen = "document.querySelector('#setting_sd_model_checkpoint input').value"
    page.wait_for_function(f"{chosen}.startsWith('{NAME}')", timeout=120_000)
    wait_until(lambda: page.locator("#tab_txt2img").is_visible(), "txt2img is shown")
    assert page.locator("#txt2img_prompt textarea").input_value() == "photo of ohwx cat"
    page.locator("#txt2img_generate").click()
