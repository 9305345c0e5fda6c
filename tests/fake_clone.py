"""A clone of the project whose libraries are a few bytes each, so that environments can really be made in a test.

The start, venv and pip are the real ones; the packages are empty but for what the start's own check imports.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dreambooth import pins

ROOT = Path(__file__).resolve().parent.parent
COPIED = (
    *(
        "__init__",
        "__main__",
        "allocator",
        "environment",
        "lean",
        "making",
        "overlay",
        "pins",
        "pipfailure",
        "torchbuild",
    ),
    *("detached", "installing"),
    *("shared/__init__", "shared/errors", "shared/lock"),
)
CLI = """
import sys

def parse(arguments):
    if "--help" in arguments:
        print("the help")
        raise SystemExit(0)

def main(arguments):
    parse(arguments)
    import torch
    print(repr((sys.prefix, torch.__version__, arguments)))
    return 7
"""
CONTENTS = {
    "torch": {
        "torch/__init__.py": "__version__ = '{version}'\nfrom torch import version\n",
        "torch/version.py": "cuda = None\n",
    },
    "diffusers": {
        "diffusers/__init__.py": "",
        "diffusers/models/__init__.py": "",
        "diffusers/models/unets/__init__.py": "",
        "diffusers/models/unets/unet_2d_condition.py": "class UNet2DConditionModel: ...\n",
    },
    "transformers": {
        "transformers/__init__.py": "",
        "transformers/models/__init__.py": "",
        "transformers/models/clip/__init__.py": "",
        "transformers/models/clip/modeling_clip.py": "class CLIPTextModel: ...\n",
    },
}


def package_files(name: str, version: str, module: str) -> dict[str, str]:
    """The files of a package, by their place under site-packages."""
    files = CONTENTS.get(name, {f"{module}/__init__.py": ""})
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    return {path: text.replace("{version}", version) for path, text in files.items()} | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
        f"{info}/top_level.txt": f"{module}\n",
    }


def write_wheel(folder: Path, name: str, version: str, module: str = "") -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in package_files(name, version, module or name).items():
            wheel.writestr(path, text)


def write_all_wheels(folder: Path) -> None:
    """A wheel for every pin of the requirements files."""
    modules = {library.name: library.module for library in pins.LIBRARIES + pins.TEST_LIBRARIES}
    for file in (pins.REQUIREMENTS, pins.NO_DEPENDENCIES, pins.TESTS):
        for name, version in pins.read(file).items():
            write_wheel(folder, name, version, modules.get(name, name))


class Clone:
    """A clone in `folder`, which need not exist, and the folder of the wheels that its pip sees."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.folder = folder
        self.environ = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("PIP_", "DREAMBOOTH_"))
            },
            **{"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull},
            "DREAMBOOTH_TORCH": "https://torch.invalid",  # PyTorch's index is not asked; pip has no index at all
        }
        for name in COPIED:
            target = folder / "dreambooth" / f"{name}.py"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "dreambooth" / f"{name}.py", target)
        for path in (*ROOT.glob("requirements*.txt"), ROOT / "constraints.txt"):
            shutil.copy(path, folder)
        (folder / "dreambooth" / "cli.py").write_text(CLI, encoding="utf-8")

    @property
    def environments(self) -> list[Path]:
        """The folders of environments, whole or not."""
        return sorted(path for path in (self.folder / "environments").glob("py*") if path.is_dir())

    def command(self, *arguments: str) -> list[str]:
        """A start by a Python without a single library (-S), as on a fresh machine."""
        base = getattr(sys, "_base_executable", sys.executable)
        return [base, "-S", str(self.folder / "dreambooth" / "__main__.py"), *arguments]

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        """Starts a command; its output and errors are pipes."""
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        started = self.start(*arguments, **environ)
        output, errors = started.communicate(timeout=300)
        return subprocess.CompletedProcess(started.args, started.returncode, output, errors)


class SlowIndex:
    """Serves a folder of wheels on this machine and, when asked for one that is `held`, says so and waits."""

    def __init__(self, wheels: Path, held: str) -> None:
        self.asked = threading.Event()
        self.go_on = threading.Event()
        index = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                if held in self.path and self.path.endswith(".whl"):
                    index.asked.set()
                    index.go_on.wait()
                super().do_GET()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(wheels)))
        self.address = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> SlowIndex:
        threading.Thread(target=partial(self._server.serve_forever, 0.01), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()


def kill(process: subprocess.Popen[str]) -> None:
    """Ends a process as `kill -9` does, its children untouched."""
    process.send_signal(signal.SIGKILL)
    process.wait()
