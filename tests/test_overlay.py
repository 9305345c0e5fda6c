from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_clone import Clone, package_files, write_wheel

from dreambooth import environment, overlay, pins
from dreambooth.shared.errors import DreamboothError

# What the WebUI v1.10.1 has, of what the trainer uses.
HOST = {
    "torch": ("2.1.2+cu121", "torch"),
    "numpy": ("1.26.2", "numpy"),
    "transformers": ("4.30.2", "transformers"),
    "accelerate": ("0.21.0", "accelerate"),
    "safetensors": ("0.4.2", "safetensors"),
    "tokenizers": ("0.13.3", "tokenizers"),
    "pillow": ("9.5.0", "PIL"),
    "omegaconf": ("2.2.3", "omegaconf"),
    "psutil": ("5.9.5", "psutil"),
    "open_clip_torch": ("2.20.0", "open_clip"),
    "gradio": ("3.41.2", "gradio"),
}


def install(site_packages: Path, name: str, version: str, module: str) -> None:
    for path in site_packages.glob(f"{name}-*.dist-info"):
        shutil.rmtree(path)
    for path, text in package_files(name, version, module).items():
        target = site_packages / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


class FakeWebUI:
    """A WebUI's environment with packages of a few bytes, and a clone of this project as its extension."""

    def __init__(self, place: Path) -> None:
        base = getattr(sys, "_base_executable", sys.executable)
        folder = place / "WebUI mit Ä"
        subprocess.run([base, "-m", "venv", "--without-pip", folder], check=True)
        self.python = environment.python_in(folder)
        asking = [self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        self.site_packages = Path(subprocess.run(asking, capture_output=True, text=True).stdout.strip())
        for name, (version, module) in HOST.items():
            install(self.site_packages, name, version, module)
        wheels = place / "wheels"
        newer = pins.set_for("2.1.2") | {"torch": "2.15.0", "numpy": "2.4.6", "platformdirs": "4.0"}
        for library in pins.LIBRARIES:
            write_wheel(wheels, library.name, newer[library.name], library.module)
        self.clone = Clone(place / "extension", wheels)

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        """Runs code in the WebUI's Python, as install.py is."""
        start = (
            "import json, sys; sys.path.insert(0, sys.argv[1]); from dreambooth import environment, overlay\n"
            "host = overlay.running_host()\n"
        )
        command = [self.python, "-c", start + code, self.clone.folder]
        return subprocess.run(command, env=self.clone.environ, capture_output=True, encoding="utf-8")


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
    done = webui.run("print(overlay.ensure(host, say=environment.tell).stamp['reused']['pillow'])")
    assert done.stdout == "10.0.0\n"
    assert "pillow was 9.5.0 and is 10.0.0" in done.stderr
    assert webui.run(find).stdout == "True\n"


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
