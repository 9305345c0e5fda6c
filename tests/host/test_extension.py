"""The extension's way into the WebUI: loaded by its path, and telling why where something fails."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from servers import ROOT, STANDIN

SHIM = "scripts/dreambooth_trainer.py"
IMPORTS = """
import sys
sys.path.insert(0, sys.argv[1])
sys.argv[1:] = ["--data-dir", sys.argv[2]]
from modules import script_loading, script_callbacks
import gradio  # the WebUI's own, as fastapi
before = set(sys.modules)
script_loading.load_module(sys.argv[2] + "/extensions/ours/scripts/dreambooth_trainer.py")
import json
print(json.dumps([sorted(set(sys.modules) - before), len(script_callbacks._callbacks["ui_tabs"])]))
"""


def extension(folder: Path) -> Path:
    """A copy of what the WebUI loads of us."""
    shutil.copytree(
        ROOT / "dreambooth", folder / "dreambooth", ignore=shutil.ignore_patterns("trainer", "assets")
    )
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / SHIM, folder / "scripts")
    return folder


def shown(tabs: list) -> str:
    """All that a tab's Blocks would show."""
    ((blocks, title, elem_id),) = tabs
    assert (title, elem_id) == ("DreamBooth", "dreambooth_trainer")
    return json.dumps(blocks.get_config_file()["components"], default=str)


@pytest.fixture
def package() -> Any:
    """Forgets, after the test, what the shim has loaded."""
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "dreambooth_trainer"]:
        del sys.modules[name]


@pytest.fixture
def host(standin, monkeypatch) -> Any:
    monkeypatch.setenv("DREAMBOOTH_PYTHON", sys.executable)
    webui = standin()
    return webui, importlib.import_module("dreambooth.host.extension")


def test_the_import_adds_neither_the_trainer_nor_a_heavy_library(tmp_path):
    extension(tmp_path / "extensions" / "ours")
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(STANDIN), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    added, tabs = json.loads(done.stdout.splitlines()[-1])
    assert tabs == 1 and "dreambooth_trainer.host.extension" in added
    tops = {name.partition(".")[0] for name in added}
    heavy = {
        "torch",
        "diffusers",
        "transformers",
        "accelerate",
        "peft",
        "numpy",
        "PIL",
        "pandas",
        "dreambooth",
    }
    assert tops & heavy == set()
    assert not [name for name in added if name.startswith("dreambooth_trainer.trainer")]


def test_an_old_extensions_package_called_dreambooth_lives_beside_ours(
    standin, tmp_path, monkeypatch, package
):
    webui = standin()
    extension(webui.data / "extensions" / "ours")
    old = webui.data / "extensions" / "sd_dreambooth_extension"
    for name, text in (
        ("dreambooth/__init__.py", "OLD = True"),
        ("scripts/main.py", "import dreambooth; assert dreambooth.OLD"),
        ("scripts/zz.py", "import dreambooth.later"),
        ("dreambooth/later.py", "from dreambooth import OLD"),
    ):
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text(text)
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "dreambooth"}
    for name in kept:
        monkeypatch.delitem(sys.modules, name)
    try:
        webui.extensions.list_extensions() if hasattr(webui.extensions, "list_extensions") else None
        webui.scripts.load_scripts()
        assert webui.errors.reported == []
        assert sys.modules["dreambooth"].OLD
        theirs = Path(sys.modules["dreambooth_trainer"].__file__)
        assert theirs.is_relative_to(webui.data / "extensions" / "ours")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "dreambooth"]:
            del sys.modules[name]
        sys.modules.update(kept)


def test_a_package_that_cannot_be_imported_has_a_tab_that_says_why(standin, tmp_path, package):
    webui = standin()
    folder = extension(tmp_path / "ours")
    (folder / "dreambooth" / "host" / "webui.py").write_text("raise RuntimeError('<broken> on purpose')")
    webui.script_loading.load_module(str(folder / SHIM))
    (tabs,) = webui.script_callbacks.run("ui_tabs")
    assert "could not be loaded" in shown(tabs) and "&lt;broken&gt; on purpose" in shown(tabs)
    # repaired, then "Reload UI"
    shutil.copy(ROOT / "dreambooth" / "host" / "webui.py", folder / "dreambooth" / "host")
    webui.script_callbacks.clear_callbacks()
    webui.script_loading.load_module(str(folder / SHIM))
    (tabs,) = webui.script_callbacks.run("ui_tabs")
    assert "could not be loaded" not in shown(tabs)


def test_reload_ui_registers_again_and_imports_nothing_again(standin, tmp_path, package):
    webui = standin()
    folder = extension(tmp_path / "ours")
    webui.script_loading.load_module(str(folder / SHIM))
    loaded = sys.modules["dreambooth_trainer.host.webui"]
    webui.script_callbacks.clear_callbacks()
    webui.script_loading.load_module(str(folder / SHIM))
    assert sys.modules["dreambooth_trainer.host.webui"] is loaded
    assert len(webui.script_callbacks.run("ui_tabs")) == 1


def test_a_tab_that_cannot_be_drawn_says_why(host, monkeypatch):
    _, extension = host
    tab = importlib.import_module("dreambooth.host.tab")
    monkeypatch.setattr(tab, "tab", lambda state: 1 / 0)
    assert "ZeroDivisionError" in shown(extension.tab())


def test_the_tab_holds_nothing_that_the_webui_would_store_queue_or_wait_for(host):
    """Stored defaults of like-named components, and a "Reload UI" that hangs on `every=`, need a component or an
    event; there is none."""
    _, extension = host
    ((blocks, _, _),) = extension.tab()
    config = blocks.get_config_file()
    assert {one["type"] for one in config["components"]} == {"html"}
    assert config["dependencies"] == []
    assert not any("every" in one["props"] and one["props"]["every"] for one in config["components"])


def test_every_part_is_registered_once(host):
    webui, extension = host
    extension.register()
    webui.script_callbacks.run("ui_settings")
    assert "dreambooth_trainer_runs_dir" in webui.shared.opts.data_labels
    (tabs,) = webui.script_callbacks.run("ui_tabs")
    assert "dreambooth_trainer_root" in shown(tabs)


def app() -> Any:
    from fastapi import FastAPI

    return FastAPI()


def test_routes_that_cannot_be_added_say_why_at_every_address(host, monkeypatch):
    from fastapi.testclient import TestClient

    webui, extension = host

    def fail(_app: Any) -> None:
        raise ImportError("no such library")

    monkeypatch.setitem(sys.modules, "dreambooth.host.routes", types.SimpleNamespace(add_to=fail))
    monkeypatch.setattr(
        sys.modules["dreambooth.host"], "routes", sys.modules["dreambooth.host.routes"], raising=False
    )
    application = app()
    extension.app_started(application)
    client = TestClient(application)
    for method, path in (("GET", "page"), ("POST", "runs"), ("DELETE", "runs/x")):
        answer = client.request(method, f"/dreambooth-trainer/v1/{path}")
        assert answer.status_code == 503 and "no such library" in answer.json()["error"]["text"]
    webui.shared.cmd_opts.api_auth = "a:b"
    assert client.get("/dreambooth-trainer/v1/page").status_code == 401


def test_an_installation_that_cannot_be_started_keeps_neither_the_webui_nor_the_routes_from_starting(
    host, monkeypatch
):
    _, extension = host
    added: list[Any] = []
    routes = types.SimpleNamespace(add_to=added.append)
    monkeypatch.setitem(sys.modules, "dreambooth.host.routes", routes)
    monkeypatch.setattr(sys.modules["dreambooth.host"], "routes", routes, raising=False)
    for error in (extension.DreamboothError("read-only"), RuntimeError("unforeseen")):

        def fail(error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(extension.installation, "start", fail)
        extension.app_started("app")
    assert added == ["app", "app"]


@pytest.mark.parametrize(("allowed", "expected"), [(False, "Training."), (True, "")])
def test_generate_waits_for_a_training_unless_the_user_allows_both(host, monkeypatch, allowed, expected):
    webui, extension = host
    jobs = types.SimpleNamespace(busy_reason=lambda: "Training.")
    monkeypatch.setitem(sys.modules, "dreambooth.host.jobs", jobs)
    monkeypatch.setattr(sys.modules["dreambooth.host"], "jobs", jobs, raising=False)
    extension.webui._add_options()
    webui.shared.opts.set("dreambooth_trainer_allow_generating", allowed)
    assert extension.busy_reason() == expected


def test_a_mistake_of_ours_keeps_nobody_from_generating(host, monkeypatch):
    _, extension = host
    jobs = types.SimpleNamespace(busy_reason=lambda: 1 / 0)
    monkeypatch.setitem(sys.modules, "dreambooth.host.jobs", jobs)
    monkeypatch.setattr(sys.modules["dreambooth.host"], "jobs", jobs, raising=False)
    assert extension.busy_reason() == ""
