from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth.shared import lock
from dreambooth.shared.lock import HeldElsewhere, hold, holder, is_held

ROOT = Path(__file__).resolve().parents[2]
posix_only = pytest.mark.skipif(os.name != "posix", reason="Windows has no fork and its own kind of lock")


def script(code: str, path: Path) -> subprocess.Popen[str]:
    """A Python process that runs `code` with `path` and lock's names at hand; it speaks through stdout."""
    begin = "import os, sys; from pathlib import Path; from dreambooth.shared.lock import *; path = Path(sys.argv[1])\n"
    return subprocess.Popen(
        [sys.executable, "-c", begin + code, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


HOLD = "with hold(path): print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "läuft noch" / "lock"


@pytest.fixture(autouse=True)
def folder(path: Path) -> None:
    path.parent.mkdir()


def test_a_lock_is_held_inside_its_block_and_free_after_it(path: Path) -> None:
    assert not is_held(path)
    with hold(path):
        assert is_held(path)
        assert holder(path) == os.getpid()
    assert not is_held(path)
    assert path.exists(), "the file itself means nothing and stays"


def test_a_block_that_fails_gives_the_lock_back(path: Path) -> None:
    with pytest.raises(KeyError), hold(path):
        raise KeyError
    assert not is_held(path)


def test_a_second_holder_is_refused_and_told_who_has_it(path: Path) -> None:
    with hold(path):
        with pytest.raises(HeldElsewhere) as refused, hold(path, patience=0):
            pass
        assert (refused.value.path, refused.value.pid) == (path, os.getpid())
        assert is_held(path), "a refused one does not take the lock away"
    with hold(path, patience=0):
        assert is_held(path)


def test_a_lock_that_is_gone_is_not_made_again_where_that_is_not_wanted(path: Path) -> None:
    with pytest.raises(FileNotFoundError), hold(path, make=False):
        pass
    assert not path.exists()
    path.touch()
    with hold(path, make=False):
        assert is_held(path)


def test_a_holder_that_is_killed_leaves_the_lock_free(path: Path) -> None:
    with script(HOLD, path) as process:
        assert process.stdout.readline() == "held\n"
        assert is_held(path)
        assert holder(path) == process.pid
        process.kill()
        process.wait(30)
        assert not is_held(path)
    with hold(path, patience=0):
        assert holder(path) == os.getpid()


@posix_only
def test_a_worker_that_outlives_its_killed_trainer_does_not_hold_the_lock(path: Path) -> None:
    code = """
with hold(path):
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        sys.stdin.read()
        os._exit(0)
    os.waitpid(child, 0)
"""
    with script(code, path) as process:
        child = int(process.stdout.readline())
        assert is_held(path)
        process.kill()
        process.wait(30)
        os.kill(child, 0)  # raises if it is gone: then this would prove nothing
        assert not is_held(path)


@posix_only
def test_a_forked_child_that_leaves_the_block_does_not_free_its_parents_lock(path: Path) -> None:
    code = """
with hold(path):
    child = os.fork()
    if child == 0:
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.stdin.read()
"""
    with script(code, path) as process:
        assert process.stdout.readline() == "7\n"
        assert is_held(path)
        process.communicate("")
        assert process.returncode == 0
    assert not is_held(path)


def test_those_who_only_look_never_keep_a_holder_out(path: Path) -> None:
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            is_held(path)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for _ in range(50):
            with hold(path):
                assert holder(path) == os.getpid()
    finally:
        ended.set()
        looker.join()


@posix_only
def test_two_that_look_at_once_do_not_take_each_other_for_a_holder(path: Path) -> None:
    path.touch()
    with lock._open(path, os.O_RDONLY) as first:
        assert lock._try_lock(first, shared=True)
        assert not is_held(path)


def test_looking_makes_no_file(path: Path) -> None:
    assert not is_held(path)
    assert not is_held(path / "below" / "a file that is not there")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\n", b"nobody\n", b"\xff\xfe\0", b"x" * 5000])
def test_a_lock_file_that_says_nothing_sensible_has_no_holder_and_can_be_held(
    path: Path, content: bytes
) -> None:
    path.write_bytes(content)
    assert holder(path) == 0
    assert not is_held(path)
    with hold(path):
        assert holder(path) == os.getpid()


def test_a_lock_file_that_we_may_not_even_open_counts_as_held(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.touch()
    monkeypatch.setattr(lock.os, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "denied")))
    assert is_held(path)


@posix_only
def test_a_file_system_without_locks_is_no_other_holder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path.touch()
    assert not is_held(path)
    with pytest.raises(OSError, match="no locks available"), hold(path):
        pass


class FakeMsvcrt(types.ModuleType):
    """Windows' byte locks: exclusive, at the file's position, refused to every other open file with EACCES."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.held: dict[tuple[int, int], int] = {}
        self.refusals = 0

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        assert count == 1
        place = (os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
        if mode == self.LK_UNLCK:
            assert self.held.pop(place) == descriptor
            return
        if self.refusals or place in self.held:
            self.refusals = max(0, self.refusals - 1)
            raise PermissionError(errno.EACCES, "Permission denied")
        self.held[place] = descriptor


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMsvcrt]:
    msvcrt = FakeMsvcrt()
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    monkeypatch.setattr(lock.sys, "platform", "win32")
    yield msvcrt
    assert msvcrt.held == {}, "every lock was given back"


def test_windows_locks_a_byte_that_leaves_the_holders_name_readable(path: Path, windows: FakeMsvcrt) -> None:
    with hold(path):
        [(_, byte)] = windows.held
        assert byte > path.stat().st_size
        assert is_held(path)
        with pytest.raises(HeldElsewhere), hold(path, patience=0):
            pass
        assert holder(path) == os.getpid()
    assert not is_held(path)


def test_on_windows_another_one_that_looks_is_not_taken_for_a_holder(path: Path, windows: FakeMsvcrt) -> None:
    path.touch()
    windows.refusals = 2
    assert not is_held(path)
    windows.refusals = 2
    with hold(path):
        assert holder(path) == os.getpid()
