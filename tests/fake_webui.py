"""A WebUI's environment whose packages are a few bytes each, with a clone of this project as its extension."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fake_clone import ROOT, Clone, package_files, write_wheel

from dreambooth import environment, pins

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

    def install(self, **environ: str) -> subprocess.CompletedProcess[str]:
        """Runs install.py as the WebUI does at its start: waits for its end and for the end of what it prints."""
        shutil.copy(ROOT / "install.py", self.clone.folder)
        variables = self.clone.environ | {"PYTHONPATH": str(self.clone.folder.parent)} | environ
        return subprocess.run(
            [self.python, self.clone.folder / "install.py"], env=variables, cwd=self.clone.folder.parent,
            stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=60,
        )  # fmt: skip

    def look(self) -> dict[str, object]:
        """The state of the trainer's environment, as the tab asks for it."""
        done = self.run(
            "from dreambooth import installing; import dataclasses;"
            "print(json.dumps(dataclasses.asdict(installing.look())))"
        )
        assert done.returncode == 0, done.stderr
        state: dict[str, object] = json.loads(done.stdout)
        return state

    def wait(self, name: str, patience: float = 300.0) -> dict[str, object]:
        """Waits until the state is `name`, and gives it."""
        deadline = time.monotonic() + patience
        while (state := self.look())["name"] != name:
            assert time.monotonic() < deadline, state
            time.sleep(0.05)
        return state
