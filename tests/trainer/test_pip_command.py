from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth.environment import STAMP
from dreambooth.trainer.pip_command import pip_install


def test_the_command_is_that_of_the_python_that_runs_this():
    assert shlex.split(pip_install("came==1")) == [sys.executable, "-m", "pip", "install", "came==1"]


def test_what_has_a_space_is_quoted_as_the_shell_wants_it(monkeypatch: pytest.MonkeyPatch):
    command = pip_install("a<2", python="/my files/python")
    assert shlex.split(command) == ["/my files/python", "-m", "pip", "install", "a<2"]
    monkeypatch.setattr(sys, "platform", "win32")
    windows = pip_install("a", python=r"C:\My Files\python.exe")
    assert windows == subprocess.list2cmdline([r"C:\My Files\python.exe", "-m", "pip", "install", "a"])


def test_an_environment_that_was_made_without_pip_is_served_by_the_one_it_was_made_with(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else found(name))
    monkeypatch.setattr(sys, "_base_executable", "/base/python")
    assert pip_install("a", python="/env/python") == "/base/python -m pip --python /env/python install a"


def test_an_environment_that_is_a_folder_of_packages_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    packages = tmp_path / "packages"
    monkeypatch.setattr(sys, "path", [str(packages), *sys.path])
    assert "--target" not in pip_install("a")
    (tmp_path / STAMP).write_text("{}", encoding="utf-8")
    assert shlex.split(pip_install("a"))[-3:] == ["--target", str(packages), "a"]
