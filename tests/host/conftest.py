"""For the tests of the WebUI's side, which run in an environment with the WebUI's own pins (tests/hostenv.py)."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # servers.py and its like
from servers import STANDIN, Server
from servers import standin as standin_server

from dreambooth import environment

if find_spec("gradio") is None:  # the trainer's environment
    collect_ignore_glob = ["test_*.py"]

TRAINER_VARIABLE = "DREAMBOOTH_TESTS_TRAINER"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run", "--mute-audio"),
)


@dataclass
class Standin:
    """The stand-in's modules in this process, with a data folder of their own."""

    data: Path

    def __getattr__(self, name: str) -> ModuleType:
        return importlib.import_module(f"modules.{name}")

    def checkpoint(self, name: str, content: bytes = b"\0" * 4) -> Path:
        """A whole, tiny .safetensors file among the checkpoints; it is not listed yet."""
        path = self.data / "models" / "Stable-diffusion" / f"{name}.safetensors"
        return write_safetensors(path, content)


def write_safetensors(path: Path, content: bytes = b"\0" * 4) -> Path:
    header = {"weight": {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


def picture(webui: Any) -> str:
    """What a picture that a program makes says of itself."""
    return webui.processing.process_images(webui.processing.StableDiffusionProcessing("x")).info


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "modules"]:
        del sys.modules[name]
    for name in [name for name in sys.modules if name.startswith("dreambooth.host")]:
        del sys.modules[name]
    if not hasattr(sys.modules.get("torch"), "__file__"):
        sys.modules.pop("torch", None)  # the stand-in's, of `--standin-card`


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Standin]]:
    """`standin("--device-id", "1")` gives the stand-in's modules as started with these flags, nothing loaded yet.

    `dreambooth.host` is to be imported after that, inside the test. A deadlock, even a swallowed one, fails the test.
    """
    monkeypatch.syspath_prepend(str(STANDIN))

    def begin(*flags: str) -> Standin:
        _forget()
        data = tmp_path / "data"
        (data / "models" / "Stable-diffusion").mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(sys, "argv", ["webui.py", "--data-dir", str(data), *flags])
        monkeypatch.delenv("COMMANDLINE_ARGS", raising=False)
        modules = Standin(data)
        modules.shared.cmd_opts.skip_load_model_at_start = True
        modules.initialize.initialize()
        return modules

    yield begin
    queue: Any = sys.modules.get("modules.call_queue")
    deadlocks = list(queue.deadlocks) if queue else []
    _forget()
    assert deadlocks == []


@pytest.fixture
def loaded(standin):
    """`loaded(*flags)`: checkpoints a (selected and loaded) and b, on a card of 8 GB."""

    def begin(*flags: str) -> Any:
        webui = standin("--standin-card", "8", *flags)
        webui.checkpoint("a", b"aaaa")
        webui.checkpoint("b", b"bbbb")
        webui.sd_models.list_models()
        webui.shared.opts.data["sd_model_checkpoint"] = "a.safetensors"
        assert webui.shared.sd_model.sd_checkpoint_info.name == "a.safetensors"
        return webui

    return begin


@pytest.fixture
def start_standin(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`start_standin(*flags, data=…, environ=…)` starts the stand-in in a process of its own; it ends with the test."""
    servers: list[Server] = []

    def start(*flags: str, data: Path | None = None, environ: dict[str, str] | None = None) -> Server:
        data = data or tmp_path / "data"
        data.mkdir(parents=True, exist_ok=True)
        server = standin_server(data, *flags, environ=environ)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def trainer() -> str:
    """The Python of a trainer that trains: for `environ={"DREAMBOOTH_PYTHON": trainer}`."""
    told = os.environ.get(TRAINER_VARIABLE)
    found = environment.find()
    if not told and found is None:
        pytest.skip(
            f"{TRAINER_VARIABLE} names no Python with the trainer's libraries (python3 -m tests sets it)"
        )
    return told or str(found.python if found else "")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, headless; the test is skipped where it is not installed."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=list(QUIET))
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page with nothing remembered. What a script fails with fails the test at its end."""
    context = browser.new_context(viewport={"width": 1280, "height": 1600})
    context.set_default_timeout(30_000)
    page = context.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    yield page
    context.close()
    assert failures == []
