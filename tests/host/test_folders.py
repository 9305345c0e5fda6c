"""Which paths a call may name."""

from __future__ import annotations

import pytest

from dreambooth.host.answers import Forbidden
from dreambooth.host.folders import allowed, followed, is_inside, path_problem
from dreambooth.shared.errors import InputError


@pytest.mark.parametrize(
    "text",
    [
        r"\\server\share\photos", "//server/share", r"\\?\C:\x", r"\\.\PhysicalDrive0", "http://example.org/x",
        "file:///etc/passwd", "smb://x/y", "", "   ", "a\0b", "x" * 5000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("windows", [True, False])
def test_other_machines_addresses_and_what_is_no_path_are_not_followed(text, windows):
    assert path_problem(text, windows=windows)


@pytest.mark.parametrize(
    "text", ["CON", r"C:\photos\nul", "aux.txt/x", r"C:\x\com1.png", r"C:\x\y:stream", "LPT1"]
)
def test_devices_and_streams_are_not_followed_on_windows(text):
    assert path_problem(text, windows=True)


@pytest.mark.parametrize("text", ["/dev/zero", "/dev", "/proc/self/environ", "/sys/x"])
def test_devices_are_not_followed_elsewhere(text):
    assert path_problem(text, windows=False)


@pytest.mark.parametrize("text", [r"C:\Users\Jörg\照片", "C:/photos", r"photos\dog", "photos"])
def test_usual_paths_are_followed_on_windows(text):
    assert path_problem(text, windows=True) == ""


@pytest.mark.parametrize("text", ["/home/x/aux/照片", "photos", "~/photos", "x" * 300, "/development"])
def test_usual_paths_are_followed_elsewhere(text):
    assert path_problem(text, windows=False) == ""


def test_what_leads_to_a_device_by_a_detour_is_not_followed(tmp_path):
    with pytest.raises(InputError):
        followed("/home/../dev/zero", base=tmp_path, setting="path")
    with pytest.raises(InputError):
        followed("../" * 40 + "proc/self", base=tmp_path, setting="path")


def test_a_relative_path_is_relative_to_the_webuis_data(tmp_path):
    assert followed("a/../photos", base=tmp_path, setting="path") == tmp_path / "photos"


def test_only_what_lies_below_a_root_is_inside(tmp_path):
    (tmp_path / "photos" / "set").mkdir(parents=True)
    (tmp_path / "photos-of-others").mkdir()
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "photos-of-others")
    root = [tmp_path / "photos"]
    assert is_inside(tmp_path / "photos", root)
    assert is_inside(tmp_path / "photos" / "set" / "not there yet", root)
    assert not is_inside(tmp_path / "photos-of-others", root)
    assert not is_inside(tmp_path / "photos" / "..", root)
    assert not is_inside(tmp_path / "photos" / "link" / "x.png", root)


def test_where_paths_may_not_be_chosen_only_our_folders_may_be_named(tmp_path):
    roots = [tmp_path / "photos"]
    assert allowed(tmp_path, roots=roots, free=True, setting="path") == tmp_path
    assert allowed(roots[0] / "a", roots=roots, free=False, setting="path") == roots[0] / "a"
    with pytest.raises(Forbidden) as told:
        allowed(tmp_path, roots=roots, free=False, setting="concepts[0].instance_data_dir")
    assert told.value.as_json()["where"] == "concepts[0].instance_data_dir"
