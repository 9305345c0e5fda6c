from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from fake_webui import HOST, FakeWebUI, install

from dreambooth import environment, overlay, pins
from dreambooth.shared.errors import DreamboothError


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> FakeWebUI:
    return FakeWebUI(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def made(webui: FakeWebUI) -> dict[str, object]:
    """The stamp of the environment that was made for the WebUI."""
    done = webui.run("print(json.dumps(overlay.ensure(host, say=environment.tell).stamp))")
    assert done.returncode == 0, done.stderr
    stamp: dict[str, object] = json.loads(done.stdout)
    return stamp


def test_torch_and_whatever_serves_is_reused_and_newer_libraries_lie_in_front(made):
    assert made["torch"] == "2.1.2+cu121"
    wanted = pins.set_for("2.1.2")
    versions = made["versions"]
    for name in ("diffusers", "transformers", "accelerate"):
        assert versions[name] == wanted[name]
    assert versions["tokenizers"] == wanted["tokenizers"]
    assert versions["numpy"] == "1.26.2"


def test_what_is_reused_is_noted(made):
    reused = {
        name: HOST[name][0] for name in ("torch", "numpy", "safetensors", "pillow", "omegaconf", "psutil")
    }
    assert made["reused"] == reused


@pytest.mark.usefixtures("made")
def test_the_webui_s_own_packages_stay_as_they_were(webui: FakeWebUI):
    found = overlay.installed([str(webui.site_packages)])
    assert found == {overlay.normal(name): version for name, (version, _) in HOST.items()}


@pytest.mark.usefixtures("made")
def test_the_environment_runs_with_the_webui_s_torch(webui: FakeWebUI):
    (folder,) = webui.clone.environments
    code = "import torch, diffusers, gradio; print(torch.__file__); print(diffusers.__file__)"
    python = environment.python_in(folder)
    done = subprocess.run([python, "-c", code], capture_output=True, encoding="utf-8")
    torch, diffusers = done.stdout.splitlines()
    assert Path(torch).is_relative_to(webui.site_packages)
    assert Path(diffusers).is_relative_to(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("made")
def test_a_check_finds_it_again_and_a_changed_webui_is_noticed_and_mended(webui: FakeWebUI):
    find = "print(overlay.find(host) is not None)"
    assert webui.run(find).stdout == "True\n"
    install(webui.site_packages, "gradio", "4.40.0", "gradio")  # not used by the trainer
    assert webui.run(find).stdout == "True\n"
    install(webui.site_packages, "pillow", "10.0.0", "PIL")
    assert webui.run(find).stdout == "False\n"
    (before,) = webui.clone.environments
    (before / "a running training").touch()
    done = webui.run("print(overlay.ensure(host, say=environment.tell).stamp['reused']['pillow'])")
    assert done.stdout == "10.0.0\n"
    assert "pillow was 9.5.0 and is 10.0.0" in done.stderr
    assert webui.run(find).stdout == "True\n"
    assert (before / "a running training").exists() and len(webui.clone.environments) == 2
    install(webui.site_packages, "pillow", "9.5.0", "PIL")  # and back: the first one fits again
    assert webui.run("print(overlay.find(host).folder.name)").stdout.strip() == before.name


def _host(**packages: str) -> overlay.Host:
    return overlay.Host("/webui/python", ("/webui/site-packages",), packages)


def test_pip_is_held_to_the_host_s_torch_numpy_torchvision_and_xformers():
    host = _host(
        torch="2.1.2+cu121", numpy="1.26.2", torchvision="0.16.2+cu121", xformers="0.0.23.post1", gradio="3"
    )
    constraints = overlay.recipe_for(host).constraints
    assert constraints == ("torch==2.1.2", "numpy==1.26.2", "torchvision==0.16.2", "xformers==0.0.23.post1")


def test_a_host_without_numpy_gets_the_one_that_fits_its_torch():
    assert "numpy==1.26.4" in overlay.recipe_for(_host(torch="2.1.2")).packages


def test_8_bit_adamw_comes_where_there_is_a_card(monkeypatch: pytest.MonkeyPatch):
    host = _host(torch="2.1.2")
    monkeypatch.setattr("sys.platform", "linux")
    for kind, there in (("cpu", False), ("cuda", True)):
        monkeypatch.setattr(overlay, "accelerator", lambda kind=kind: kind)
        assert ("bitsandbytes==0.45.5" in overlay.recipe_for(host).packages) is there


def test_another_torch_of_the_host_is_another_environment():
    assert _host(torch="2.1.2").key != _host(torch="2.3.1").key
    assert _host(torch="2.1.2").key == _host(torch="2.1.2", gradio="4").key


@pytest.mark.parametrize(("torch", "what"), [("", "has no torch yet"), ("1.13.1", r"older than 2\.1")])
def test_a_host_that_cannot_serve_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: str, what: str
):
    if torch:
        install(tmp_path, "torch", torch, "torch")
    monkeypatch.setattr("site.getsitepackages", lambda: [str(tmp_path), os.devnull])
    with pytest.raises(DreamboothError, match=what):
        overlay.running_host()


def test_of_two_packages_of_one_name_the_first_on_the_path_counts(tmp_path: Path):
    for folder, version in (("a", "1.0"), ("b", "2.0")):
        install(tmp_path / folder, "Some_Thing", version, "some_thing")
    folders = [str(tmp_path / name) for name in ("absent", "a", "b")]
    assert overlay.installed(folders) == {"some-thing": "1.0"}
