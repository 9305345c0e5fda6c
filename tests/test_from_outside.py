"""Trainers as processes of their own: ordered about, interrupted and killed by other processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import kill_test
import pytest
from forks import ROOT, trainers
from optional import skip_without
from tiny import config, dreambooth
from watching import events, run_in

from dreambooth.shared.runfolder import summarize
from dreambooth.trainer.saving.checkpoint import latest_step

FOREVER = {"max_train_steps": 1_000_000, "checkpointing_steps": 0}
posix = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")


@pytest.fixture(scope="module")
def start():
    with trainers() as start:
        yield start


def test_the_command_line_trains_and_draws_as_a_program(tmp_path) -> None:
    def dreambooth_program(*arguments):
        command = [sys.executable, "-m", "dreambooth", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    done = dreambooth_program("train", config(tmp_path, max_train_steps=2))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert "training 2/2" in done.stderr and "\r" not in done.stderr, "plain lines in a pipe"
    assert (tmp_path / "out" / "sks.safetensors").is_file()
    wrong = dreambooth_program("train", config(tmp_path, max_train_steps=2))
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("output_name: ") and wrong.stderr.count("\n") == 2


def test_a_second_trainer_is_refused_and_the_first_goes_on(start, tmp_path) -> None:
    found = run_in(tmp_path)
    first = start("train", config(tmp_path, **FOREVER), output=tmp_path / "first.txt")
    first.until(lambda: events(found, "step"), "the first step")
    second = start("resume", found.path, output=tmp_path / "second.txt")
    assert second.wait() == 2
    assert f"process {first.pid}" in second.said() and "Traceback" not in second.said()
    again = start("train", tmp_path / "config.yaml", output=tmp_path / "again.txt")
    assert again.wait() == 2
    assert "output_name" in again.said() and "sks" in again.said()
    assert summarize(found).state == "running"
    export = start("export", found.path, output=tmp_path / "export.txt")
    assert export.wait() == 2 and f"process {first.pid}" in export.said()
    stopper = start("stop", found.path, output=tmp_path / "stop.txt")
    assert stopper.wait() == 0 and "Stopped." in stopper.said()
    assert first.wait() == 130
    assert [line.name for line in events(found) if line.name in ("plan", "error")] == ["plan"]


@posix
def test_ctrl_c_once_saves_and_twice_ends_at_once(start, tmp_path) -> None:
    found = run_in(tmp_path)
    trainer = start("train", config(tmp_path, **FOREVER), output=tmp_path / "output.txt")
    trainer.until(lambda: events(found, "step"), "the first step")
    trainer.send(signal.SIGINT)
    assert trainer.wait() == 130
    saved = latest_step(found.states)
    assert saved and saved == events(found, "step")[-1]["step"]
    assert "Traceback" not in trainer.said() and "resume" in trainer.said()

    trainer = start("resume", found.path, output=tmp_path / "output.txt")
    trainer.until(lambda: events(found, "step")[-1]["step"] > saved, "a step more")
    trainer.send(signal.SIGTERM)
    trainer.send(signal.SIGINT)
    assert trainer.wait() in (1, 130), "the second may come when the save is done"
    assert "Traceback" not in trainer.said()


@posix
def test_a_killed_run_s_name_belongs_to_it_until_its_folder_is_deleted(start, tmp_path, capsys) -> None:
    found = run_in(tmp_path)
    trainer = start("train", config(tmp_path), output=tmp_path / "output.txt")
    trainer.until(lambda: events(found, "phase"), "the first phase")
    trainer.kill()
    assert summarize(found).state == "interrupted"
    for overwrite in ("no", "yes"):
        assert dreambooth("train", tmp_path / "config.yaml", f"overwrite={overwrite}") == 2
        message = capsys.readouterr().err
        assert "output_name" in message and f"resume {found.path}" in message
    shutil.rmtree(found.path)
    assert dreambooth("train", tmp_path / "config.yaml") == 0


@posix
def test_kills_at_any_moment_leave_no_trace_in_the_result(start, tmp_path) -> None:
    """The short form of `python -m tests.kill_test`."""
    skip_without("adamw8bit")
    assert kill_test.in_brief(start, tmp_path) == dict.fromkeys(kill_test.PHASES, 1)
