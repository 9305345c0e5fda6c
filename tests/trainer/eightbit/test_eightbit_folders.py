from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dreambooth.trainer.eightbit.folders import add_dll_folders, dll_folders


def made(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True)


def test_torchs_own_folder_comes_first_then_pips_cuda_then_the_installed_one(tmp_path: Path):
    site, toolkit, newest = tmp_path / "site-packages", tmp_path / "v12.8", tmp_path / "v13.0"
    torch = site / "torch"
    pips = [site / "nvidia" / part / "bin" for part in ("cublas", "cuda_runtime")]
    made(torch / "lib", *pips, toolkit / "bin", newest / "bin", newest / "bin" / "x64")
    environ = {"CUDA_PATH": str(newest), "CUDA_PATH_V12_8": str(toolkit), "CUDA_HOME": str(newest)}
    assert dll_folders(torch, (12, 8), environ) == [
        torch / "lib", *pips, toolkit / "bin", newest / "bin", newest / "bin" / "x64",
    ]  # fmt: skip


def test_folders_that_are_not_there_are_left_out(tmp_path: Path):
    assert dll_folders(tmp_path / "torch", (12, 8), {"CUDA_PATH": str(tmp_path / "gone")}) == []


def test_windows_is_told_of_each_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "add_dll_directory", told.append, raising=False)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "b"), "Windows"]))
    folders = [tmp_path / "a", tmp_path / "b"]
    assert add_dll_folders(folders) == folders
    assert told == [str(folder) for folder in folders]
    first = os.environ["PATH"]
    assert first.split(os.pathsep) == [str(tmp_path / "a"), str(tmp_path / "b"), "Windows"]
    add_dll_folders(folders)
    assert os.environ["PATH"] == first


def test_elsewhere_nobody_is_told_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "linux")
    before = os.environ.get("PATH")
    assert add_dll_folders([tmp_path]) == []
    assert os.environ.get("PATH") == before
