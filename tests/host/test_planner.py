"""The trainer is asked for plans in the background; the newest question wins."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from dreambooth.host.answers import Conflict, problem
from dreambooth.host.jobs import Trainer
from dreambooth.host.planner import Planner
from dreambooth.shared.errors import DreamboothError, InputError

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(ROOT / "tests" / "fake_command.py")]


def planner(command: list[str] = COMMAND, **behaviour: str) -> Planner:
    return Planner(lambda: Trainer(command, {**os.environ, **behaviour}, ROOT))


def test_a_plan_is_the_trainers():
    assert planner().plan("max_train_steps: 7\n")["steps"] == 7


def test_what_is_wrong_is_said_of_its_field_and_not_of_our_file():
    with pytest.raises(InputError) as told:
        planner().plan("output_name: wrong\n")
    assert told.value.as_json() == {
        "text": "wrong.safetensors is there already", "where": "output_name", "remedy": "choose another name",
    }  # fmt: skip


def test_what_the_trainer_tells_programs_besides_comes_along():
    printed = (
        '{"error": {"text": "no", "where": "optimizer", "remedy": "choose"}, "eight_bit": {"works": false}}'
    )
    command = [sys.executable, "-c", f"print({printed!r}); raise SystemExit(2)"]
    with pytest.raises(InputError) as told:
        planner(command).plan("optimizer: adamw8bit\n")
    assert told.value.more == {"eight_bit": {"works": False}}
    body = json.loads(bytes(problem(told.value).body))
    assert body == {
        "error": {"text": "no", "where": "optimizer", "remedy": "choose"}, "eight_bit": {"works": False},
    }  # fmt: skip


def test_a_newer_plan_ends_the_older_one():
    asked, ended = planner(FAKE_DELAY="30"), []

    def ask() -> None:
        with pytest.raises(Conflict):
            asked.plan("max_train_steps: 7\n")
        ended.append(True)

    older = threading.Thread(target=ask)
    older.start()
    deadline = time.monotonic() + 10
    while asked._running is None and time.monotonic() < deadline:
        time.sleep(0.01)
    asked._trainer = lambda: Trainer(COMMAND, os.environ, ROOT)
    assert asked.plan("max_train_steps: 8\n")["steps"] == 8
    older.join(10)
    assert ended == [True]


def test_a_trainer_that_breaks_says_its_last_word():
    broken = [sys.executable, "-c", "raise ValueError('the sky fell')"]
    with pytest.raises(DreamboothError, match="the sky fell"):
        planner(broken).plan("")


def test_a_trainer_that_is_not_there_is_said():
    with pytest.raises(DreamboothError, match="cannot be started"):
        planner(["/none/python"]).plan("")


def test_a_file_is_inspected_once_while_it_is_the_same(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"x" * 8)
    asked = planner()
    assert asked.inspect(path)["size"] == 8
    asked._trainer = lambda: pytest.fail("asked again")
    assert asked.inspect(path)["size"] == 8
    path.write_bytes(b"x" * 9)
    asked._trainer = lambda: Trainer(COMMAND, os.environ, ROOT)
    assert asked.inspect(path)["size"] == 9
    path.unlink()
    with pytest.raises(InputError):
        asked.inspect(path)
