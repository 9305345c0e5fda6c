from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth.shared import aside as subject
from dreambooth.shared.aside import aside, leftover_bytes, put_folder, remove_leftovers

ROOT = Path(__file__).resolve().parents[2]
WRITES = """
import sys
from pathlib import Path
from dreambooth.shared.aside import aside
with aside(Path(sys.argv[1])) as temporary:
    if temporary.name.startswith(".folder-"):
        temporary.mkdir()
        temporary /= "part"
    temporary.write_bytes(bytes(1000))
    print("writing", flush=True)
    sys.stdin.read()
"""


def writer(target: Path) -> subprocess.Popen[str]:
    """A process that is writing `target`."""
    command = [sys.executable, "-c", WRITES, str(target)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def leave(folder: Path, name: str = ".a-0123abcd.tmp", size: int = 10) -> Path:
    """What a killed process leaves of a file."""
    (folder / f"{name}.lock").touch()
    (folder / name).write_bytes(bytes(size))
    return folder / name


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["a.safetensors", "folder"])
def test_what_a_killed_process_leaves_is_removed_and_never_what_a_living_one_writes(tmp_path, name) -> None:
    with writer(tmp_path / name) as process:
        before = names(tmp_path)
        assert remove_leftovers(tmp_path) == {} and leftover_bytes(tmp_path) == 0
        assert names(tmp_path) == before
        process.kill()
        process.wait(30)
    assert names(tmp_path) == before, "a killed process removes nothing"
    assert leftover_bytes(tmp_path) == 1000
    removed = remove_leftovers(tmp_path)
    assert list(removed.values()) == [1000] and next(iter(removed)).startswith(f".{name}-")
    assert names(tmp_path) == []


def test_what_is_written_aside_has_a_lock_beside_it_until_it_has_its_name(tmp_path) -> None:
    with aside(tmp_path / "a") as temporary:
        temporary.write_bytes(b"whole")
        assert names(tmp_path) == [temporary.name, f"{temporary.name}.lock"]
        assert remove_leftovers(tmp_path) == {}, "nor by the process itself"
        temporary.rename(tmp_path / "a")
    assert names(tmp_path) == ["a"]


def test_a_block_that_fails_leaves_nothing(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt), aside(tmp_path / "a") as temporary:
        (temporary / "part").mkdir(parents=True)
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_the_longest_name_has_room_for_what_stands_around_it(tmp_path) -> None:
    with aside(tmp_path / ("🐈" * 62)) as temporary:
        assert names(tmp_path) == [f"{temporary.name}.lock"]


def test_only_what_is_marked_by_a_free_lock_is_a_leftover(tmp_path) -> None:
    leave(tmp_path)
    others = [
        ".b-0123abcd.tmp",  # without a lock, as where there are none
        "c-0123abcd.tmp",
        "c-0123abcd.tmp.lock",
        ".d-0123abcd.lock",
        ".e.tmp",
        ".e.tmp.lock",
    ]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".f-0123abcd.tmp.lock").touch()  # its process was killed before it wrote, or after
    assert remove_leftovers(tmp_path) == {".a-0123abcd.tmp": 10}
    assert names(tmp_path) == sorted(others)
    assert remove_leftovers(tmp_path / "nowhere") == {} and leftover_bytes(tmp_path / "nowhere") == 0


@pytest.mark.skipif(os.name != "posix", reason="Windows' file systems have locks")
def test_on_a_file_system_without_locks_all_is_written_and_nothing_is_taken_for_a_leftover(
    tmp_path, monkeypatch
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    leave(tmp_path)
    before = names(tmp_path)
    with aside(tmp_path / "b") as temporary:
        temporary.touch()
        assert names(tmp_path) == sorted([*before, temporary.name])
        assert remove_leftovers(tmp_path) == {}
        temporary.rename(tmp_path / "b")
    assert names(tmp_path) == sorted([*before, "b"])


def test_a_folder_s_old_content_goes_when_the_new_one_has_its_name(tmp_path) -> None:
    target = tmp_path / "folder"
    (target / "old").mkdir(parents=True)
    with aside(target) as temporary:
        (temporary / "new").mkdir(parents=True)
        put_folder(temporary, target)
        assert names(target) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_cannot_get_its_name_leaves_the_old_one_with_it(tmp_path, monkeypatch) -> None:
    target, replace = tmp_path / "folder", subject.replace
    (target / "old").mkdir(parents=True)

    def refused(source: Path, other: Path) -> None:
        if source.suffix == ".tmp":
            raise PermissionError(errno.EACCES, "somebody has it open")
        replace(source, other)

    monkeypatch.setattr(subject, "replace", refused)
    with pytest.raises(PermissionError), aside(target) as temporary:
        (temporary / "new").mkdir(parents=True)
        put_folder(temporary, target)
    assert names(tmp_path) == ["folder"] and names(target) == ["old"]


def test_of_a_change_of_names_that_was_cut_in_the_middle_nothing_is_removed(tmp_path) -> None:
    leave(tmp_path).with_suffix(".old").mkdir()
    before = names(tmp_path)
    assert remove_leftovers(tmp_path) == {} and names(tmp_path) == before
    (tmp_path / ".a-0123abcd.tmp").rename(tmp_path / "a")  # it was cut after both
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a"]
