"""What a training exports is listed by the WebUI without anybody looking."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dreambooth.host.following import MOST_FAILURES, Follower
from dreambooth.host.jobs import Active
from dreambooth.shared.runfolder import RunFolder

RUN = RunFolder(Path("/runs/dog"))


class Scene:
    """A training that the test plays."""

    def __init__(self) -> None:
        self.active: Active | None = None
        self.exports: list[dict] = []
        self.listed = 0
        self.follower = Follower(lambda: self.active, self.look, self.list_again, every=0.005)

    def look(self, run: RunFolder) -> list[dict]:
        assert run.path == RUN.path
        return list(self.exports)

    def list_again(self) -> None:
        self.listed += 1

    def until(self, holds) -> None:
        deadline = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def ended(self) -> bool:
        return self.follower._thread is None


@pytest.fixture
def scene():
    scene = Scene()
    yield scene
    scene.active = None
    scene.until(scene.ended)


def test_each_export_is_listed_once_as_long_as_a_run_lives(scene):
    scene.active = Active(RUN)
    scene.follower.begin()
    scene.exports.append({})
    scene.until(lambda: scene.listed == 1)
    scene.exports.append({})
    scene.until(lambda: scene.listed == 2)
    scene.active = None
    scene.until(scene.ended)
    assert scene.listed == 2


def test_a_run_that_was_over_before_anybody_looked_is_listed(scene):
    scene.exports.append({})
    scene.follower.begin(RUN)
    scene.until(scene.ended)
    assert scene.listed == 1


def test_where_nothing_runs_nobody_follows(scene):
    scene.follower.begin()
    scene.until(scene.ended)
    assert scene.listed == 0


def test_a_second_beginning_starts_no_second_thread(scene):
    scene.active = Active(RUN)
    scene.follower.begin()
    first = scene.follower._thread
    scene.follower.begin(RUN)
    assert scene.follower._thread is first


def test_a_listing_that_fails_is_tried_again_and_ends_nothing(scene, caplog):
    scene.active = Active(RUN)
    tries = []

    def fail() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("no")

    scene.follower._list_again = fail
    scene.exports.append({})
    scene.follower.begin(RUN)
    scene.until(lambda: len(tries) == 3)
    assert "not listed" in caplog.text


def test_a_last_export_is_listed_although_the_webui_was_busy_at_first(scene):
    tries = []

    def busy() -> None:
        tries.append(1)
        if len(tries) < 4:
            raise OSError("busy")

    scene.follower._list_again = busy
    scene.exports.append({})
    scene.follower.begin(RUN)
    scene.until(scene.ended)
    assert len(tries) == 4


def test_what_fails_for_good_is_given_up(scene):
    def fail() -> None:
        raise OSError("no")

    scene.follower._list_again = fail
    scene.exports.append({})
    scene.follower.begin(RUN)
    scene.until(scene.ended)
    assert scene.follower._failures == MOST_FAILURES
