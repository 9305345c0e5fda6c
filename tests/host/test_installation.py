"""The environment as the tab sees it, and how the trainer is started."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from dreambooth import environment, installing
from dreambooth.shared.errors import DreamboothError


@pytest.fixture
def installation(standin, monkeypatch) -> Any:
    standin("--device-id", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return importlib.import_module("dreambooth.host.installation")


def answer(monkeypatch, name: str, text: str = "", remedy: str = "", **more: Any) -> None:
    state = installing.State(name, text, remedy, **more)
    monkeypatch.setattr(installing, "look", lambda *_, **__: state)


def test_the_state_is_what_the_files_say(installation, monkeypatch):
    answer(monkeypatch, "making", "It is being made.", log=["Collecting torch"])
    state = installation.state()
    assert (state.state, state.text, state.log) == ("making", "It is being made.", ["Collecting torch"])


def test_why_a_making_could_not_be_started_is_said_until_it_could(installation, monkeypatch):
    answer(monkeypatch, "missing", "not made yet")

    def fail() -> None:
        raise DreamboothError("read-only file system", remedy="make it writable")

    monkeypatch.setattr(installing, "start", fail)
    with pytest.raises(DreamboothError):
        installation.start()
    assert (installation.state().state, installation.state().remedy) == ("failed", "make it writable")
    monkeypatch.setattr(installing, "start", lambda: None)
    installation.start()
    assert installation.state().state == "missing"


def test_a_making_of_ours_that_has_not_spoken_yet_is_not_called_interrupted(installation, monkeypatch):
    answer(monkeypatch, "broken", "interrupted")
    process = SimpleNamespace(poll=lambda: None)
    monkeypatch.setattr(installing, "start", lambda: process)
    installation.start()
    assert installation.state().state == "making"
    process.poll = lambda: 1
    assert installation.state().state == "broken"


def test_the_trainer_is_started_with_the_webuis_card_and_runs_folder_and_nothing_of_its_libraries(
    installation, standin, monkeypatch
):
    answer(monkeypatch, "ready", python="/env/bin/python", environ={"PATH": "/bin"})
    assert installation.trainer_command() == [
        "/env/bin/python",
        str(environment.ROOT / "dreambooth" / "__main__.py"),
    ]
    webui = importlib.import_module("dreambooth.host.webui")
    assert installation.trainer_environ() == {
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "1",
        "DREAMBOOTH_RUNS_DIR": str(webui.data_path() / "dreambooth" / "runs"),
    }


def test_the_trainer_really_starts_that_way(installation, monkeypatch):
    import subprocess

    monkeypatch.setenv("DREAMBOOTH_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", "/a/host's/folder")
    done = subprocess.run(
        [*installation.trainer_command(), "--help"], env=installation.trainer_environ(), capture_output=True
    )
    # this Python lacks the trainer's libraries, and says so instead of making anything
    assert done.returncode in (0, 2) and b"Traceback" not in done.stderr


def test_without_an_environment_the_trainer_is_not_started_and_the_reason_is_given(installation, monkeypatch):
    answer(monkeypatch, "failed", "no network", "connect and try again")
    for ask in (installation.trainer_command, installation.trainer_environ):
        with pytest.raises(DreamboothError) as raised:
            ask()
        assert (raised.value.what, raised.value.remedy) == ("no network", "connect and try again")
