"""What the tab says of the environment, and that it is made behind the WebUI's back."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from fake_clone import SlowIndex
from fake_webui import FakeWebUI, install

from dreambooth import environment, installing, overlay
from dreambooth.shared import lock
from dreambooth.shared.errors import DreamboothError

# the states, told from files


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> overlay.Host:
    """A WebUI without an environment, in this process."""
    found = overlay.Host(sys.executable, (), {"torch": "2.1.2"})
    monkeypatch.setattr(environment, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(overlay, "running_host", lambda: found)
    monkeypatch.setattr(environment, "lacking", lambda: ["diffusers"])
    monkeypatch.delenv("DREAMBOOTH_PYTHON", raising=False)
    (tmp_path / "environments").mkdir()
    return found


def note(host: overlay.Host, **content: object) -> None:
    installing._write_note(installing._files(host).note, content)


def make_whole(folder: Path, host: overlay.Host, **stamp: object) -> None:
    environment.python_in(folder).parent.mkdir(parents=True)
    environment.python_in(folder).touch()
    content = {"base_python": sys.executable, "torch": "2.1.2", **stamp}
    (folder / environment.STAMP).write_text(json.dumps(content), encoding="utf-8")


def test_nothing_made_yet_is_missing_with_a_remedy(host):
    state = installing.look()
    assert state.name == "missing" and "Try again" in state.remedy and state.log == []


def test_a_whole_environment_is_ready_with_its_python_and_clean_variables(host):
    make_whole(overlay.folder(host), host)
    state = installing.look({"PATH": "/bin", "PYTHONPATH": "/webui", "LD_PRELOAD": "x.so", "HF_HOME": "/h"})
    assert state.name == "ready"
    assert state.python == str(environment.python_in(overlay.folder(host)))
    assert state.environ == {"PATH": "/bin", "PYTHONNOUSERSITE": "1"}


def test_the_hubs_settings_are_kept_where_the_hub_is_used(host):
    make_whole(overlay.folder(host), host)
    assert installing.look({"HF_HOME": "/h"}, hub=True).environ["HF_HOME"] == "/h"


def test_while_somebody_makes_it_the_log_is_shown(host):
    files = installing._files(host)
    files.log.write_bytes("Collecting a\r\nDownloading 1%\rDownloading 99%\r\nÄ\n\n".encode())
    with lock.hold(files.lock):
        state = installing.look()
    assert state.name == "making" and state.log == ["Collecting a", "Downloading 99%", "Ä"]


def test_a_making_that_has_just_been_started_is_making(host):
    note(host, started=time.time())
    assert installing.look().name == "making"


def test_a_making_that_ended_without_a_word_is_broken_and_begins_anew(host):
    note(host, started=time.time() - 3600)
    state = installing.look()
    assert state.name == "broken" and "interrupted" in state.text and "Try again" in state.remedy


def test_a_clock_that_was_set_back_does_not_make_it_wait(host):
    note(host, started=time.time() + 3600)
    assert installing.look().name == "broken"


def test_a_failed_making_says_why_and_what_to_do(host):
    note(host, started=1.0, failed="the proxy does not answer", remedy="correct HTTPS_PROXY")
    state = installing.look()
    assert (state.name, state.text, state.remedy) == (
        "failed",
        "the proxy does not answer",
        "correct HTTPS_PROXY",
    )


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"started": "x"}', '{"started": null}', "\0"])
def test_a_torn_note_is_no_note(host, content):
    installing._files(host).note.write_text(content, encoding="utf-8")
    assert installing.look().name == "missing"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"python": 3}', '{"base_python": "/gone"}'])
def test_a_broken_stamp_is_not_taken_for_an_environment(host, content):
    folder = overlay.folder(host)
    make_whole(folder, host)
    (folder / environment.STAMP).write_text(content, encoding="utf-8")
    assert installing.look().name == "missing"


def test_what_changed_in_the_webui_is_named(host):
    make_whole(overlay.folder(host), host, reused={"pillow": "9.5.0"})
    state = installing.look()
    assert state.name == "missing" and "pillow was 9.5.0 and is gone" in state.text


def test_a_python_that_has_everything_is_used_as_it_is(host, monkeypatch):
    monkeypatch.setattr(environment, "lacking", lambda: [])
    state = installing.look()
    assert (state.name, state.python) == ("ready", sys.executable)
    assert installing.start() is None


def test_a_named_python_is_used_as_it_is(host, monkeypatch):
    monkeypatch.setenv("DREAMBOOTH_PYTHON", sys.executable)
    state = installing.look()
    assert (state.name, state.python) == ("ready", sys.executable)
    assert state.environ["DREAMBOOTH_PYTHON"] == sys.executable


def test_a_named_python_that_is_none_is_said(host, monkeypatch):
    monkeypatch.setenv("DREAMBOOTH_PYTHON", "/no/such/python")
    state = installing.look()
    assert state.name == "failed" and "/no/such/python" in state.text
    with pytest.raises(DreamboothError):
        installing.start()


def test_a_webui_whose_torch_is_too_old_is_said(monkeypatch):
    def refuse() -> overlay.Host:
        raise DreamboothError("torch 1.13 is older than 2.1", remedy="update the WebUI's torch")

    monkeypatch.delenv("DREAMBOOTH_PYTHON", raising=False)
    monkeypatch.setattr(overlay, "running_host", refuse)
    state = installing.look()
    assert (state.name, state.remedy) == ("failed", "update the WebUI's torch")


# the making


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DreamboothError("no space is left", where="/disk", remedy="make room"), "/disk: no space is left"),
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error"),
    ],
)
def test_whatever_ends_the_making_is_noted(host, monkeypatch, error, text):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(overlay, "ensure", fail)
    monkeypatch.setattr(os, "nice", lambda _: 0, raising=False)
    if isinstance(error, DreamboothError):
        assert installing.main() == 1
    else:
        with pytest.raises(OSError, match="Input"):
            installing.main()
    assert (installing.look().name, installing.look().text) == ("failed", text)


def test_a_place_that_cannot_be_written_is_said_at_once(host, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(environment, "ENVIRONMENTS", tmp_path / "file" / "environments")
    with pytest.raises(DreamboothError, match="cannot be started") as raised:
        installing.start()
    assert "where you may write" in raised.value.remedy


def test_only_the_last_of_a_long_log_is_read(tmp_path):
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(50_000)))
    lines = installing.read_log(path)
    assert len(lines) == 200 and lines[-1] == "line 49999"
    assert installing.read_log(tmp_path / "absent") == []


# the whole of it: install.py in a WebUI's Python, a real venv and pip, packages of a few bytes


@pytest.fixture
def webui(tmp_path: Path) -> FakeWebUI:
    return FakeWebUI(tmp_path)


def packages(webui: FakeWebUI) -> dict[str, str]:
    return overlay.installed([str(webui.site_packages)])


@pytest.mark.slow
def test_install_py_returns_while_the_environment_is_being_made(webui: FakeWebUI):
    before = packages(webui)
    wheels = Path(webui.clone.environ["PIP_FIND_LINKS"])
    with SlowIndex(wheels, held="diffusers") as index:
        first = webui.install(PIP_FIND_LINKS=index.address, PIP_TRUSTED_HOST="127.0.0.1")
        assert (first.returncode, first.stderr) == (0, "")
        assert "in the background" in first.stdout
        assert index.asked.wait(60)
        again = webui.install()  # another start of the WebUI meanwhile
        assert (again.returncode, again.stdout) == (0, "")
        state = webui.look()
        assert state["name"] == "making" and any("diffusers" in line for line in state["log"])
        index.go_on.set()
        ready = webui.wait("ready")
    assert Path(str(ready["python"])).exists()
    assert webui.install().stdout == ""
    assert packages(webui) == before
    assert len(webui.clone.environments) == 1

    # an update of the extension: another set of requirements is another folder, the first stays for what runs in it
    path = webui.clone.folder / "constraints.txt"
    path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    assert webui.look()["name"] == "missing"
    assert "in the background" in webui.install().stdout
    assert webui.wait("ready")["python"] != ready["python"]
    assert Path(str(ready["python"])).exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs kill -9 and process groups")
def test_a_killed_making_is_said_and_made_anew(webui: FakeWebUI):
    wheels = Path(webui.clone.environ["PIP_FIND_LINKS"])
    with SlowIndex(wheels, held="diffusers") as index:
        webui.install(PIP_FIND_LINKS=index.address, PIP_TRUSTED_HOST="127.0.0.1")
        assert index.asked.wait(60)
        os.killpg(_maker(webui), signal.SIGKILL)
        index.go_on.set()
    (path,) = (webui.clone.folder / "environments").glob("*.making.json")
    path.write_text(json.dumps({"started": time.time() - 60}), encoding="utf-8")
    assert webui.wait("broken")["remedy"]
    assert "in the background" in webui.install().stdout
    webui.wait("ready")


def _maker(webui: FakeWebUI) -> int:
    """The process that makes the environment: the one that runs in the clone's folder and leads its own group."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            here = (path / "cwd").resolve() == webui.clone.folder.resolve()
        except OSError:
            continue
        if here and b"dreambooth.installing" in command:
            return int(path.name)
    raise AssertionError("nobody makes it")


@pytest.mark.slow
def test_without_a_network_the_tab_says_so_and_a_later_start_succeeds(webui: FakeWebUI):
    missing = webui.install(
        PIP_FIND_LINKS="http://127.0.0.1:9/", PIP_TRUSTED_HOST="127.0.0.1", PIP_RETRIES="0"
    )
    assert (missing.returncode, missing.stderr) == (0, "")
    state = webui.wait("failed")
    assert (
        "installing the trainer's libraries failed" in str(state["text"]) and state["remedy"] and state["log"]
    )
    assert webui.clone.environments and not environment.whole(webui.clone.environments[0])
    assert "in the background" in webui.install().stdout
    webui.wait("ready")


def test_install_py_never_fails_the_webuis_start(webui: FakeWebUI):
    (webui.clone.folder / "environments").write_text("a file in the way", encoding="utf-8")
    done = webui.install()
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot be started" in done.stdout
    install(webui.site_packages, "torch", "1.13.1", "torch")
    done = webui.install()
    assert (done.returncode, done.stderr) == (0, "") and "older than 2.1" in done.stdout
    (webui.clone.folder / "dreambooth" / "installing.py").write_text("def", encoding="utf-8")
    done = webui.install()
    assert (done.returncode, done.stderr) == (0, "") and "SyntaxError" in done.stdout
