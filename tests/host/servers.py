"""Starts a WebUI for a test: the stand-in, or the real one that DREAMBOOTH_WEBUI names, each with its own data folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STANDIN = ROOT / "tests" / "standin"
# What the WebUI loads of an extension, and what its parts need; nothing of this machine's own.
PARTS = (
    *("dreambooth", "scripts", "javascript", "localizations", "install.py", "preload.py", "style.css"),
    *("requirements.txt", "requirements-8bit.txt", "requirements-no-deps.txt", "requirements-tests.txt"),
    *("constraints.txt", "environments"),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def install_extension(data: Path, name: str = "dreambooth") -> Path:
    """Puts the extension into a data folder: a folder of links, so that what is tried is this checkout's."""
    folder = data / "extensions" / name
    folder.mkdir(parents=True)
    for part in PARTS:
        if (ROOT / part).exists():
            (folder / part).symlink_to(ROOT / part)
    return folder


def place_base(data: Path) -> Path:
    """Puts the small base among a WebUI's checkpoints, alone: for the stand-in, which loads nothing of it."""
    folder = data / "models" / "Stable-diffusion"
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(ROOT / "dreambooth" / "assets" / "base" / "small-base.safetensors", folder))


@dataclass
class Server:
    """A WebUI in a process of its own. `stop` ends it, `kill` as a crash would; `start` starts it again as before."""

    data: Path
    command: list[str]
    environ: dict[str, str]
    cwd: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.data / "webui.log").read_text(encoding="utf-8", errors="replace")

    def start(self, patience: float = 120.0) -> Server:
        """Starts it and waits until it answers. Fails with its log if it ends or is too slow."""
        before = len(self.log) if (self.data / "webui.log").exists() else 0
        with (self.data / "webui.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "--port", str(self.port)], env=self.environ, cwd=self.cwd, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + patience
        # Asked too early, the WebUI dies: it adds to its app after that has begun to listen
        while not (self._has_started(before) and self._answers()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the WebUI did not start:\n{self.log[before:][-4000:]}")
            time.sleep(0.05)
        return self

    def _has_started(self, since: int) -> bool:
        # its page answers before the extensions' routes are added
        return any(sign in self.log[since:] for sign in ("Startup time", "Running on http", "Running\n"))

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/", timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """Ends the WebUI's process alone, at once: what it has started lives on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ends the WebUI, and the trainers of its data that a test has left behind."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        for note in (self.data / "dreambooth" / "jobs").glob("*/job.json"):
            _end_trainer(json.loads(note.read_text(encoding="utf-8"))["pid"], note.parent)


def _end_trainer(pid: int, job: Path) -> None:
    """Ends the process only if it is that job's still: numbers are used again."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if any(str(job) in argument for argument in process.cmdline()):
            process.kill()


def standin(data: Path, *flags: str, environ: Mapping[str, str] | None = None) -> Server:
    """The stand-in, not yet started."""
    command = [sys.executable, str(STANDIN / "webui.py"), "--data-dir", str(data), *flags]
    return Server(data, command, {**os.environ, **(environ or {})}, cwd=STANDIN)


def real_webui(webui: Path, data: Path, *flags: str, environ: Mapping[str, str] | None = None) -> Server:
    """The real one, on the CPU and offline, started by its own launcher, so that extensions' install.py run."""
    python = next(
        path
        for path in (webui / "venv/bin/python", webui / "venv/Scripts/python.exe", Path(sys.executable))
        if path.exists()
    )
    command = [
        *(str(python), "launch.py", "--data-dir", str(data), "--api", "--skip-torch-cuda-test"),
        *("--use-cpu", "all", "--no-half", "--precision", "full", "--skip-version-check"),
        *("--do-not-download-clip", "--no-download-sd-model", *flags),
    ]
    offline = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "PYTHONUNBUFFERED": "1",
    }
    dropped = ("PYTHON", "DREAMBOOTH_", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return Server(data, command, kept | offline | dict(environ or {}), cwd=webui)
