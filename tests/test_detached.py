from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreambooth import detached

ROOT = Path(__file__).resolve().parent.parent
STARTER = """
import os, sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from dreambooth import detached
code = "import pathlib, sys; sys.stdin.read(); print('said', flush=True); input; " \\
       "pathlib.Path('started').touch()\\nimport time\\nwhile not pathlib.Path('go').exists(): time.sleep(.01)\\n" \\
       "pathlib.Path('done').touch()"
with open("output", "wb") as output:
    child = detached.start([sys.executable, "-c", code], output=output, environ=os.environ, cwd=Path.cwd())
print(child.pid, flush=True)
import time; time.sleep(60)
"""


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX's")
def test_the_end_of_the_starter_and_its_whole_group_does_not_end_the_started(tmp_path: Path):
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(ROOT)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    starter.stdout.close()
    _wait_for(tmp_path / "started")
    assert os.getsid(pid) == pid
    os.killpg(starter.pid, signal.SIGINT)
    os.killpg(starter.pid, signal.SIGHUP)
    os.killpg(starter.pid, signal.SIGKILL)
    starter.wait()
    (tmp_path / "go").touch()
    _wait_for(tmp_path / "done")
    assert (tmp_path / "output").read_bytes() == b"said\n"


def test_on_windows_it_has_a_console_of_its_own_that_is_not_shown_and_leaves_the_job():
    flags = detached.options("win32")["creationflags"]
    assert (
        flags == 0x08000000 | 0x00000200 | 0x01000000
    )  # CREATE_NO_WINDOW, _NEW_PROCESS_GROUP, _BREAKAWAY_FROM_JOB
    assert not flags & 0x00000008  # DETACHED_PROCESS would undo the first
    assert detached.options("win32", gentle=True)["creationflags"] == flags | 0x00004000
    assert detached.options("win32", breakaway=False)["creationflags"] == flags & ~0x01000000


@pytest.mark.skipif(sys.platform != "win32", reason="the flags' names are Windows' own")
def test_the_flags_are_windows_own():
    named = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
    assert detached.options(breakaway=False) == {"creationflags": named}


def test_a_program_that_is_not_there_is_an_oserror(tmp_path: Path):
    with (tmp_path / "output").open("wb") as output, pytest.raises(FileNotFoundError):
        detached.start([str(tmp_path / "absent")], output=output, environ={}, cwd=tmp_path)


def test_it_is_started_again_where_a_windows_job_lets_nobody_leave(tmp_path, monkeypatch):
    asked: list[int] = []

    def popen(command: list[str], **how: object) -> str:
        asked.append(int(str(how["creationflags"])))
        if asked[-1] & 0x01000000:
            raise PermissionError(13, "Access is denied")
        return "started"

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(detached.options, "__defaults__", ("win32",))
    with (tmp_path / "output").open("wb") as output:
        assert detached.start(["x"], output=output, environ={}, cwd=tmp_path) == "started"
    assert len(asked) == 2 and not asked[1] & 0x01000000
