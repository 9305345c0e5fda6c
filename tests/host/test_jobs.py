"""Trainers as processes of their own: started once, found again, and explained when they die."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dreambooth.host.answers import Conflict
from dreambooth.host.jobs import KEPT, Card, Jobs, Trainer
from dreambooth.host.watch import Watcher
from dreambooth.shared.errors import DreamboothError, InputError
from dreambooth.shared.runfolder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(ROOT / "tests" / "fake_command.py")]


def no_card(taken: Callable[[], None]) -> Card | None:
    taken()
    return None


def wait(condition: Callable[[], object], what: str, patience: float = 30.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"not in {patience} seconds: {what}"
        time.sleep(0.01)


@pytest.fixture
def make(tmp_path) -> Iterator[Callable[..., Jobs]]:
    """`make(FAKE_PACE="0.1")` is a new Jobs on the same folders, as a restarted WebUI has; all trainers end with the
    test."""
    made: list[Jobs] = []

    def begin(command: list[str] = COMMAND, **behaviour: str) -> Jobs:
        environ = {**os.environ, **behaviour}
        jobs = Jobs(tmp_path / "jobs", lambda: Trainer(command, environ, ROOT), lambda: tmp_path / "runs")
        made.append(jobs)
        return jobs

    yield begin
    for job in made[0].jobs() if made else []:
        if made[0]._is_alive(job):
            os.kill(job.pid, signal.SIGKILL)
    for jobs in made:
        for process in jobs._processes.values():
            process.wait()


@pytest.fixture
def config(tmp_path) -> str:
    return f"max_train_steps: 400\noutput_name: dog\nruns_dir: {tmp_path / 'runs'}\noutput_dir: {tmp_path}\n"


def pid_of(jobs: Jobs) -> int:
    return jobs.jobs(1)[0].pid


def kill(jobs: Jobs) -> None:
    os.kill(pid_of(jobs), signal.SIGKILL)


def test_a_start_gives_the_runs_folder_as_soon_as_it_is_there(make, config, tmp_path):
    run = make(FAKE_PACE="0.05").start(config, no_card)
    assert run.path == tmp_path / "runs" / "dog"
    assert run.config.is_file()


def test_a_trainer_has_a_session_of_its_own_and_no_terminal(make, config):
    jobs = make(FAKE_PACE="0.05")
    jobs.start(config, no_card)
    assert os.getsid(pid_of(jobs)) == pid_of(jobs) != os.getsid(0)
    assert psutil.Process(pid_of(jobs)).terminal() is None


def test_a_second_training_is_refused_while_one_runs(make, config):
    jobs = make(FAKE_PACE="0.05")
    jobs.start(config, no_card)
    with pytest.raises(Conflict, match="dog"):
        jobs.start(config, no_card)
    with pytest.raises(Conflict, match="dog"):
        make().start(config, no_card)


def test_of_two_calls_at_once_one_is_refused(make, config):
    jobs, refused = make(FAKE_PACE="0.05", FAKE_DELAY="0.3"), []

    def start() -> None:
        try:
            jobs.start(config, no_card)
        except Conflict as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    assert len(jobs.jobs()) == 1


def test_a_run_that_a_command_line_started_counts_too(make, config, tmp_path):
    jobs = make(FAKE_PACE="0.05")
    run = jobs.start(config, no_card)
    other = Jobs(tmp_path / "other", jobs._trainer, lambda: tmp_path / "runs")
    wait(run.is_alive, "the lock is taken")
    assert other.active().run.path == run.path
    with pytest.raises(Conflict):
        other.start(config, no_card)


def test_a_restarted_webui_finds_the_run(make, config):
    first = make(FAKE_PACE="0.05")
    run = first.start(config, no_card)
    again = make()
    assert again.active().run.path == run.path
    assert again.job_of(run).pid == pid_of(first)


def test_a_restarted_webui_finds_a_trainer_that_has_no_run_yet(make, config):
    first = make(FAKE_PACE="0.05", FAKE_DELAY="60")
    assert first.start(config, no_card, patience=0.0) is None
    again = make()
    active = again.active()
    assert active.run is None and active.job.pid == pid_of(first)
    assert again.cancel_start()
    wait(lambda: again.active() is None, "the cancelled start is gone")


def test_the_processes_number_alone_is_no_sign_of_life(make, config):
    jobs = make(FAKE_DIES="input")
    with pytest.raises(InputError):
        jobs.start(config, no_card)
    job = jobs.jobs()[0] if jobs.jobs() else None
    assert job is not None
    text = (job.folder / "job.json").read_text().replace(str(job.pid), str(os.getpid()))
    (job.folder / "job.json").write_text(text)
    assert make().active() is None


def test_a_killed_trainer_is_known_at_once_and_its_run_goes_on(make, config):
    jobs = make(FAKE_PACE="0.02")
    run = jobs.start(config, no_card)
    watcher = Watcher(jobs.ending_of, jobs.is_starting)
    wait(lambda: watcher.live(run, url=str)["step"] > 3, "some steps")
    kill(jobs)
    wait(lambda: jobs.active() is None, "its death is seen", patience=3)
    seen = watcher.live(run, url=str)
    assert seen["state"] == "interrupted"
    assert "ended from outside" in seen["error"]["text"]
    assert make(FAKE_PACE="0.02").resume(run, no_card).path == run.path
    wait(run.is_alive, "it lives again")


def test_after_a_restart_a_killed_trainer_is_explained_too(make, config):
    jobs = make(FAKE_PACE="0.02", FAKE_CRASH_AT="3")
    run = jobs.start(config, no_card)
    wait(lambda: jobs.active() is None, "it crashed")
    again = make()
    seen = Watcher(again.ending_of, again.is_starting).live(run, url=str)
    assert seen["state"] == "interrupted"
    assert "the card has not enough memory" in seen["error"]["text"]
    assert "resolution" in seen["error"]["remedy"]


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("input", InputError, "there is no such file"),
        ("traceback", DreamboothError, "the sky fell"),
        ("memory", DreamboothError, "the card has not enough memory"),
        ("killed", DreamboothError, "ended from outside"),
    ],
)
def test_a_trainer_that_dies_before_its_run_says_why_also_after_a_restart(make, config, how, kind, said):
    jobs = make(FAKE_DIES=how)
    with pytest.raises(kind) as told:
        jobs.start(config, no_card)
    assert said in str(told.value)
    assert told.value.remedy
    for one in (jobs, make()):
        _, ending = one.failed_start()
        assert said in ending.text
    assert jobs.active() is None


def test_a_start_after_a_failed_one_works_and_forgets_it(make, config):
    with pytest.raises(InputError):
        make(FAKE_DIES="input").start(config, no_card)
    jobs = make(FAKE_PACE="0.05")
    jobs.start(config, no_card)
    assert jobs.failed_start() is None


def test_a_trainer_that_cannot_be_started_is_said(make, config, tmp_path):
    with pytest.raises(DreamboothError, match="cannot be started"):
        make(command=[str(tmp_path / "no python")]).start(config, no_card)
    assert make().jobs() == []


def test_the_card_is_taken_before_the_trainer_starts_and_is_remembered(make, config):
    jobs = make(FAKE_PACE="0.05")
    states = []

    def take(taken: Callable[[], None]) -> Card:
        taken()
        states.append((jobs.active() is not None, len(jobs.jobs())))
        return Card(2.0, 7.5)

    run = jobs.start(config, take)
    assert states == [(True, 0)]
    assert make().job_of(run).card == Card(2.0, 7.5)


def test_a_card_that_cannot_be_had_leaves_nothing_behind(make, config):
    jobs = make()

    def busy(taken: Callable[[], None]) -> Card:
        raise DreamboothError("the WebUI is busy making pictures")

    with pytest.raises(DreamboothError, match="busy"):
        jobs.start(config, busy)
    assert jobs.active() is None
    assert jobs.jobs() == [] and jobs.failed_start() is None


def test_a_trainer_that_cannot_be_recorded_does_not_live_on(make, config, monkeypatch):
    jobs = make(FAKE_DELAY="60")

    def full(path: Path, content: object) -> None:
        raise DreamboothError("no space is left on the disk")

    monkeypatch.setitem(Jobs._record.__globals__, "write_json", full)
    with pytest.raises(DreamboothError, match="no space"):
        jobs.start(config, no_card)
    (process,) = jobs._processes.values()
    assert process.wait(10) == -signal.SIGKILL
    assert jobs.active() is None


def test_old_jobs_are_swept_away(make, config):
    jobs = make(FAKE_DIES="input")
    with pytest.raises(InputError):
        jobs.start(config, no_card)
    told = (jobs.jobs()[0].folder / "job.json").read_text()
    for number in range(KEPT + 5):
        folder = jobs.folder / f"2020{number:04d}-000000-x"
        folder.mkdir()
        (folder / "job.json").write_text(told)
    jobs._sweep()
    assert len(jobs.jobs()) == KEPT - 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}'])
def test_a_broken_record_of_a_job_is_passed_over(make, content, tmp_path):
    folder = tmp_path / "jobs" / "20260101-000000-aa"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(content)
    jobs = make()
    assert jobs.jobs() == [] and jobs.active() is None and jobs.failed_start() is None


def test_a_run_lives_as_long_as_its_lock_is_held(make, tmp_path, config):
    jobs = make()
    assert jobs.active() is None
    run = jobs.start(config, no_card)
    wait(lambda: jobs.active() is None, "a run of no time ends")
    assert isinstance(run, RunFolder)
    assert Watcher(jobs.ending_of, jobs.is_starting).live(run, url=str)["state"] == "finished"
