from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth.shared import paths
from dreambooth.shared.errors import DreamboothError, InputError

posix_only = pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions and folders")


@pytest.mark.parametrize(
    "name",
    [
        "sks dog",
        "Ünïcode 名前 🐕",
        "v1.5-final",
        "001",
        "no",
        "${x}",
        "console",
        "com10",
        "aux-2",
        "-x",
        "é" * 100,
    ],
)
def test_ordinary_names_are_file_names_everywhere(name: str) -> None:
    assert paths.file_name_problem(name) == ""
    assert paths.check_file_name(name, setting="output_name") == name


@pytest.mark.parametrize(
    "name",
    [
        "", " ", "\t", ".", "..", "...", ".hidden", "../up", "a/b", "a\\b", "C:", "a:b", "what?", "a*", '"a"', "<a>",
        "a|b", "a\nb", "a\0b", "a\x7f", "\udcff", "ends.", "ends ", " begins", "con", "CON", "Nul.txt", "aux .png", "com1",
        "COM¹.safetensors", "lpt9.x", "CONOUT$", "é" * 101,
    ],
)  # fmt: skip
def test_names_that_are_none_somewhere_or_leave_their_folder_are_refused_by_setting(name: str) -> None:
    assert paths.file_name_problem(name)
    with pytest.raises(InputError) as error:
        paths.check_file_name(name, setting="output_name")
    assert error.value.where == "output_name"
    assert error.value.remedy


@pytest.mark.parametrize(
    ("platform", "environ", "expected"),
    [
        ("linux", {}, "home/.local/share/dreambooth-trainer"),
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/dreambooth-trainer"),
        ("darwin", {"XDG_DATA_HOME": "/data"}, "home/Library/Application Support/dreambooth-trainer"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/dreambooth-trainer"),
        ("win32", {}, "home/AppData/Local/dreambooth-trainer"),
    ],
)
def test_user_data_lies_where_the_system_keeps_it(
    monkeypatch: pytest.MonkeyPatch, platform: str, environ: dict[str, str], expected: str
) -> None:
    for name in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(paths.sys, "platform", platform)
    monkeypatch.setattr(paths.Path, "home", lambda: Path("home"))
    assert paths.user_data_dir() == Path(expected)


def test_the_host_says_where_runs_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DREAMBOOTH_RUNS_DIR", str(tmp_path))
    assert paths.default_runs_dir() == tmp_path
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DREAMBOOTH_RUNS_DIR", "mine")
    assert paths.default_runs_dir() == tmp_path / "mine"
    monkeypatch.setenv("DREAMBOOTH_RUNS_DIR", "")
    assert paths.default_runs_dir() == paths.user_data_dir() / "runs"


def test_a_file_is_written_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "a file é.json"
    for content in (b"old", b"", b"new\r\n\0"):
        paths.write_whole(target, content)
        assert target.read_bytes() == content
    assert list(tmp_path.iterdir()) == [target]


def test_json_is_readable_text(tmp_path: Path) -> None:
    paths.write_json(tmp_path / "a.json", {"prompt": "ein Hünd 🐕"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "ein Hünd 🐕" in text
    assert json.loads(text) == {"prompt": "ein Hünd 🐕"}


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@posix_only
def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path: Path, umask: None) -> None:
    paths.write_whole(tmp_path / "a", b"")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, DreamboothError), (errno.EDQUOT, DreamboothError), (errno.EIO, OSError)]
)
def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    target = tmp_path / "a"
    paths.write_whole(target, b"old")

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(paths.os, "fsync", fail)
    with pytest.raises(kind) as error:
        paths.write_whole(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
    if kind is DreamboothError:
        assert error.value.where == str(target) and error.value.remedy == "make room", "there may be no run"


def refuse_replacing(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    real, left = os.replace, [times]

    def replace(source: Path, target: Path) -> None:
        if left[0]:
            left[0] -= 1
            raise PermissionError(errno.EACCES, "in use")
        real(source, target)

    monkeypatch.setattr(paths.os, "replace", replace)


def test_windows_may_refuse_to_replace_a_file_that_is_being_read_and_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "source").write_text("new")
    refuse_replacing(monkeypatch, times=3)
    monkeypatch.setattr(paths.sys, "platform", "win32")
    paths.replace(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "new"


@pytest.mark.parametrize(
    ("platform", "target", "patience"),
    [("win32", "a file", -1.0), ("win32", "a folder", 60.0), ("linux", "a file", 60.0)],
)
def test_a_refusal_that_will_not_pass_is_passed_on_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, target: str, patience: float
) -> None:
    (tmp_path / "source").write_text("new")
    (tmp_path / "a folder").mkdir()
    refuse_replacing(monkeypatch, times=1)
    monkeypatch.setattr(paths.sys, "platform", platform)
    with pytest.raises(PermissionError):
        paths.replace(tmp_path / "source", tmp_path / target, patience=patience)


@posix_only
def test_a_folder_that_cannot_be_synced_is_no_error_and_a_broken_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.fsync_folder(tmp_path)
    codes = [errno.EINVAL]

    def fail(_: int) -> None:
        raise OSError(codes[0], os.strerror(codes[0]))

    monkeypatch.setattr(paths.os, "fsync", fail)
    paths.fsync_folder(tmp_path)
    codes[0] = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        paths.fsync_folder(tmp_path)
    monkeypatch.setattr(paths.os, "open", lambda *_: (_ for _ in ()).throw(PermissionError()))
    paths.fsync_folder(tmp_path)  # a folder that may be written and not read


def test_the_nearest_folder_that_is_there_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.existing_parent(tmp_path) == tmp_path
    assert paths.existing_parent(tmp_path / "a" / "b" / "c") == tmp_path
    assert paths.existing_parent(tmp_path / ("long" * 2000)) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert paths.existing_parent(Path("a/b")) == tmp_path


def test_a_drive_that_is_not_there_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths.Path, "exists", lambda _: False)
    monkeypatch.setattr(paths.Path, "is_dir", lambda _: False)
    root = Path(tmp_path.anchor)
    assert paths.existing_parent(tmp_path) == root
    with pytest.raises(InputError, match="there is no drive"):
        paths.check_writable(tmp_path, setting="output_dir")


def test_a_folder_that_can_be_written_or_made_passes_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    paths.check_writable(tmp_path, setting="output_dir")
    paths.check_writable(tmp_path / "new" / "newer", setting="output_dir")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there it is a path like any other")
@pytest.mark.parametrize("given", ["C:\\results\\new", "d:/results"])
def test_a_path_of_windows_is_no_name_of_a_folder_elsewhere(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (Path(given), Path(given).absolute()):
        with pytest.raises(InputError, match="is a path of Windows") as error:
            paths.check_writable(folder, setting="output_dir")
        assert error.value.where == "output_dir" and error.value.what.startswith(given)
    Path("c:").mkdir()  # what is there may have any name
    paths.check_writable(Path("c:/below"), setting="output_dir")


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="is a file, not a folder") as error:
            paths.check_writable(folder, setting="output_dir")
        assert error.value.where == "output_dir" and str(tmp_path / "file") in error.value.what


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match="Permission denied") as error:
        paths.check_writable(tmp_path, setting="runs_dir")
    assert error.value.where == "runs_dir" and str(tmp_path) in error.value.what


@pytest.mark.skipif(sys.platform != "linux", reason="only there")
def test_a_folder_that_takes_no_files_is_not_said_to_be_missing() -> None:
    with pytest.raises(InputError, match=r"into /proc \(it takes no files\)"):
        paths.check_writable(Path("/proc/results"), setting="output_dir")


def test_writing_takes_away_the_same_file_and_what_lies_in_a_folder_and_nothing_else(tmp_path) -> None:
    inside = tmp_path / "folder" / "deep" / "a"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(b"")
    other = tmp_path / "b"
    other.hardlink_to(inside)
    assert paths.takes_away(inside, inside) and paths.takes_away(other, inside)
    assert paths.takes_away(tmp_path / "folder", inside) and paths.takes_away(inside.parent, inside)
    assert paths.takes_away(tmp_path / "folder" / ".." / "b", inside)
    assert not paths.takes_away(inside, tmp_path / "folder")
    assert not paths.takes_away(tmp_path / "gone", inside) and not paths.takes_away(inside, tmp_path / "gone")
    assert not paths.takes_away(tmp_path / ("x" * 300), inside)
