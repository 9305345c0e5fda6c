from __future__ import annotations

import base64
import hashlib
import importlib
import sys
from pathlib import Path

import pytest
import recorded
import torch

from dreambooth.trainer.eightbit.surroundings import look_around, package_folder

OWN = "def get_native_library(): ...\n"


def install(site: Path, wheel: str, platform: str, *, name: str = "bitsandbytes") -> Path:
    """Lays a wheel out as pip does: its package folder, and a RECORD of what it brought."""
    package = site / "bitsandbytes"
    lines = []
    for file in recorded.listing(wheel, platform):
        path = package / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(OWN, encoding="utf-8")
        digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
        lines.append(f"bitsandbytes/{file},sha256={digest},{path.stat().st_size}")
    about = site / f"{name.replace('-', '_')}-{wheel}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {wheel}\n", encoding="utf-8"
    )
    (about / "RECORD").write_text("\n".join([*lines, f"{about.name}/RECORD,,"]), encoding="utf-8")
    return package


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site-packages before all others, whose bitsandbytes is the one that would be imported."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.partition(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.mark.parametrize(
    ("wheel", "platform"), [("0.43.0", "win32"), ("0.45.5", "linux"), ("0.50.2", "win32")]
)
def test_a_wheel_as_it_came_has_nothing_foreign(site: Path, wheel: str, platform: str):
    package = install(site, wheel, platform)
    around = look_around()
    assert around.installed and around.version_text == wheel
    assert Path(around.folder) == package == package_folder()
    assert around.files == recorded.listing(wheel, platform)
    assert around.foreign == frozenset() and around.aliases == ()
    assert not around.own_folder, "a folder of the test's, not of the environment's"


def test_the_four_files_of_2022_are_found_in_a_newer_wheel(site: Path):
    """bnb#1446, #1641: pip leaves what it did not bring, and an upgrade leaves it in place."""
    package = install(site, "0.45.5", "win32")
    for name in recorded.SHIM:
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text("return 'libbitsandbytes_cuda116.dll'", encoding="utf-8")
    assert look_around().foreign == {"libbitsandbytes_cuda116.dll", "cextension.py", "cuda_setup/main.py"}


def test_single_dlls_and_overwritten_loaders_are_found_in_the_wheel_they_were_copied_into(site: Path):
    package = install(site, "0.35.4", "win32")
    for name in recorded.SHIM:
        (package / name).write_text("return 'libbitsandbytes_cuda116.dll'", encoding="utf-8")
    assert look_around().foreign == recorded.SHIM


def test_a_second_wheel_of_the_same_package_is_named(site: Path):
    install(site, "0.45.5", "win32")
    about = site / "bitsandbytes_windows-0.37.5.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: bitsandbytes-windows\nVersion: 0.37.5\n")
    assert look_around().aliases == ("bitsandbytes-windows",)


def test_what_is_no_library_and_no_loader_may_lie_there(site: Path):
    package = install(site, "0.50.2", "linux")
    (package / "notes.txt").write_text("mine", encoding="utf-8")
    (package / "__pycache__").mkdir()
    assert look_around().foreign == frozenset()


def test_a_record_of_another_folder_says_nothing(site: Path, tmp_path: Path):
    """The WebUI's copy lies behind ours, or the other way round: each has its own list."""
    install(site, "0.45.5", "linux")
    front = tmp_path / "front"
    (front / "bitsandbytes").mkdir(parents=True)
    (front / "bitsandbytes" / "__init__.py").write_text("", encoding="utf-8")
    (front / "bitsandbytes" / "libbitsandbytes_cuda116.dll").write_text("", encoding="utf-8")
    sys.path.insert(0, str(front))
    importlib.invalidate_caches()
    around = look_around()
    assert Path(around.folder) == front / "bitsandbytes" and around.foreign == frozenset()


def test_torch_and_the_card_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "RTX 3090")
    around = look_around()
    assert (around.cuda, around.hip, around.capability, around.card) == ((12, 8), (), (8, 6), "RTX 3090")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "7.1.25424-4179531dcd")
    around = look_around()
    assert (around.cuda, around.hip) == ((), (7, 1))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    around = look_around()
    assert (around.cuda, around.hip, around.card) == ((), (), ""), "without a card the processor counts"


def test_without_bitsandbytes_there_is_nothing_to_see(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    around = look_around()
    assert not around.installed and around.folder == "" and not around.directml
