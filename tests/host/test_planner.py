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


def test_a_plan_knows_what_of_the_card_will_be_given_back():
    told = "import os, json; print(json.dumps({'returned': os.environ['DREAMBOOTH_CARD_RETURNED']}))"
    asked = Planner(
        lambda: Trainer([sys.executable, "-c", told], dict(os.environ), ROOT), returned=lambda: 7 * 2**30
    )
    assert asked.plan("max_train_steps: 7\n") == {"returned": str(7 * 2**30)}


def test_what_is_wrong_is_said_of_its_field_and_not_of_our_file():
    with pytest.raises(InputError) as told:
        planner().plan("output_name: wrong\n")
    assert told.value.as_json() == {
        "text": "wrong.safetensors is there already", "where": "output_name", "remedy": "choose another name",
    }  # fmt: skip


def test_each_of_several_problems_comes_along_and_the_form_itself_is_no_place():
    code = (
        "import json, sys; told = [{'text': 'no', 'where': 'optimizer', 'remedy': 'choose'},"
        " {'text': 'bad', 'where': sys.argv[2], 'remedy': ''}];"
        "print(json.dumps({'error': told[0], 'problems': told})); raise SystemExit(2)"
    )
    with pytest.raises(InputError) as told:
        planner([sys.executable, "-c", code]).plan("optimizer: adamw8bit\n")
    assert told.value.more["problems"] == [
        {"text": "no", "where": "optimizer", "remedy": "choose"},
        {"text": "bad", "where": "", "remedy": ""},
    ]


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


def asking(asked: Planner, config: str, page: str, ended: list) -> threading.Thread:
    """A plan that is asked for in a thread of its own, and is being made; its steps or its error go to `ended`."""

    def ask() -> None:
        try:
            ended.append(asked.plan(config, page)["steps"])
        except Conflict as error:
            ended.append(error)

    before = processes(asked)
    thread = threading.Thread(target=ask)
    thread.start()
    deadline = time.monotonic() + 10
    while processes(asked) == before and time.monotonic() < deadline:
        time.sleep(0.01)
    return thread


def processes(asked: Planner) -> int:
    return sum(question.process is not None for question in list(asked._asked.values()))


def test_a_newer_plan_ends_the_older_one_of_its_page():
    ended: list = []
    asked = planner(FAKE_DELAY="30")
    older = asking(asked, "max_train_steps: 7\n", "mine", ended)
    asked._trainer = lambda: Trainer(COMMAND, os.environ, ROOT)
    assert asked.plan("max_train_steps: 8\n", "mine")["steps"] == 8
    older.join(10)
    assert [type(one) for one in ended] == [Conflict]


@pytest.mark.parametrize(("first", "second"), [("mine", "yours"), ("", "mine"), ("", "")])
def test_two_pages_that_plan_at_one_moment_both_have_their_answer(first, second):
    ended: list = []
    asked = planner(FAKE_DELAY="1")
    older = asking(asked, "max_train_steps: 7\n", first, ended)
    asked._trainer = lambda: Trainer(COMMAND, os.environ, ROOT)
    assert asked.plan("max_train_steps: 8\n", second)["steps"] == 8
    older.join(10)
    assert ended == [7]
    assert asked._asked == {}


def test_more_pages_than_there_are_places_wait_for_one_but_never_for_an_old_plan(monkeypatch):
    # by the module that was imported here: other tests import it anew
    monkeypatch.setitem(Planner.__init__.__globals__, "MOST_AT_ONCE", 1)
    ended: list = []
    asked = planner(FAKE_DELAY="30")
    older = asking(asked, "max_train_steps: 7\n", "mine", ended)
    asked._trainer = lambda: Trainer(COMMAND, os.environ, ROOT)
    waits = threading.Thread(
        target=lambda: ended.append(asked.plan("max_train_steps: 8\n", "yours")["steps"])
    )
    waits.start()
    assert asked.plan("max_train_steps: 9\n", "mine")["steps"] == 9
    older.join(10)
    waits.join(10)
    assert sorted(ended, key=str)[0] == 8 and len(ended) == 2
    assert asked._places.acquire(blocking=False), "the place is free again"


def test_a_trainer_that_breaks_says_its_last_word():
    broken = [sys.executable, "-c", "raise ValueError('the sky fell')"]
    with pytest.raises(DreamboothError, match="the sky fell"):
        planner(broken).plan("")


def test_a_trainer_that_is_not_there_is_said():
    with pytest.raises(DreamboothError, match="cannot be started"):
        planner(["/none/python"]).plan("")


def test_a_plan_that_nobody_waits_for_any_more_is_ended():
    asked, gone = planner(FAKE_DELAY="60"), threading.Event()
    threading.Timer(0.5, gone.set).start()
    before = time.monotonic()
    with pytest.raises(Conflict, match="nobody waits"):
        asked.plan("max_train_steps: 1\n", "page", gone.is_set)
    assert time.monotonic() - before < 10 and asked._asked == {}


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
