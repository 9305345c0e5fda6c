import contextlib
import json
import os
import signal
import time

import pytest

from dreambooth.shared.runfolder import RunFolder, create_run
from dreambooth.trainer import control
from dreambooth.trainer.control import STOP_SIGNALS, Inbox, Signals, StopNow


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return create_run(tmp_path, "a run", "")


class Acks(list):
    def emit(self, event, **fields):
        assert event == "ack"
        self.append(fields["id"])


def inbox(run, acks=None, signals=None, every=0.0) -> Inbox:
    return Inbox(run, signals or Signals(), (Acks() if acks is None else acks).emit, every=every)


def names(commands) -> list[str]:
    return [command.do for command in commands]


# ---- commands ----------------------------------------------------------------------------------------------------


def test_commands_are_given_in_the_order_in_which_they_were_left(run):
    for do in ("save", "export", "sample", "export"):
        run.order(do)
    assert names(inbox(run).commands()) == ["save", "export", "sample", "export"]


def test_a_command_waits_until_it_is_answered_and_is_then_gone(run):
    acks = Acks()
    box = inbox(run, acks)
    first, second = run.order("save"), run.order("export")
    for _ in range(2):
        assert names(box.commands()) == ["save", "export"]
    box.answer(box.commands()[0])
    assert acks == [first]
    assert names(box.commands()) == ["export"]
    box.answer(box.commands()[0])
    assert acks == [first, second]
    assert list(run.commands.iterdir()) == []


def test_a_stop_is_acknowledged_heard_for_good_and_no_ordinary_command(run):
    acks = Acks()
    box = inbox(run, acks)
    assert box.should_stop() is False
    run.order("save")
    stop = run.order("stop")
    assert names(box.commands()) == ["save"]
    assert box.should_stop() is True
    assert acks == [stop]
    assert box.should_stop() is True
    assert names(box.commands()) == ["save"]


def test_stop_now_is_acknowledged_and_stops_at_once(run):
    acks = Acks()
    stop = run.order("stop_now")
    with pytest.raises(StopNow):
        inbox(run, acks).should_stop()
    assert acks == [stop]
    assert list(run.commands.iterdir()) == []


def test_files_that_are_no_command_are_ignored(run):
    (run.commands / "1.json").write_text("{")
    (run.commands / "2.json").write_text(json.dumps({"id": "x", "do": "delete everything"}))
    (run.commands / "3.txt").write_text(json.dumps({"id": "x", "do": "stop"}))
    (run.commands / "4.json.partial").write_text(json.dumps({"id": "x", "do": "stop"}))
    (run.commands / "5.json").mkdir()
    box = inbox(run)
    run.order("save")
    assert not box.should_stop()
    assert names(box.commands()) == ["save"]


def test_what_was_left_for_an_earlier_trainer_is_dropped_and_not_acknowledged(run):
    acks = Acks()
    run.order("stop")
    run.order("export")
    box = inbox(run, acks)
    box.clear()
    assert not box.should_stop() and not box.commands() and not acks
    run.order("save")
    assert names(box.commands()) == ["save"]


def test_a_command_that_is_younger_than_the_trainers_lock_is_for_this_trainer(run):
    old, young = run.order("stop"), run.order("export")
    run.lock.touch()
    for path, moment in (
        (run.commands / f"{old}.json", 1),
        (run.lock, 2),
        (run.commands / f"{young}.json", 3),
    ):
        os.utime(path, (moment, moment))
    box = inbox(run)
    box.clear()
    assert not box.should_stop()
    assert names(box.commands()) == ["export"]


@pytest.mark.parametrize("drop", ["clear", "answer"])
def test_a_command_whose_file_cannot_be_removed_is_obeyed_once(run, monkeypatch, drop):
    acks = Acks()
    box = inbox(run, acks)
    run.order("export")

    def held(path, missing_ok=False):
        raise PermissionError("a virus scanner looks at it")

    (command,) = run.waiting_commands()
    monkeypatch.setattr(type(command.path), "unlink", held)
    if drop == "clear":
        box.clear()
    else:
        box.answer(box.commands()[0])
    assert box.commands() == []
    assert command.path.exists()
    run.order("export")  # another one is not the same
    assert len(box.commands()) == 1


def test_the_folder_is_read_now_and_then_only(run, monkeypatch):
    reads = []
    original = RunFolder.waiting_commands
    monkeypatch.setattr(RunFolder, "waiting_commands", lambda self: reads.append(1) or original(self))
    clock = [50.0]
    monkeypatch.setattr(control.time, "monotonic", lambda: clock[0])
    box = inbox(run, every=0.2)
    for _ in range(100):
        box.should_stop()
        box.commands()
        clock[0] += 0.01
    assert len(reads) == 5  # at 0.0, 0.2, 0.4, 0.6, 0.8


def test_looking_costs_next_to_nothing(run):
    box = inbox(run, every=0.2)
    box.should_stop()
    began = time.perf_counter()
    for _ in range(1000):
        box.should_stop()
        box.commands()
    assert (time.perf_counter() - began) / 1000 < 200e-6  # a tiny model's step takes a hundred times as long


# ---- signals -----------------------------------------------------------------------------------------------------


def test_one_signal_asks_for_a_stop_and_a_second_one_stops_at_once(run):
    with Signals().caught() as signals:
        box = inbox(run, signals=signals)
        assert not box.should_stop()
        signal.raise_signal(signal.SIGINT)
        assert box.should_stop() and box.should_stop()
        with pytest.raises(StopNow):
            signal.raise_signal(signal.SIGTERM)


def test_a_stop_command_and_one_signal_are_not_yet_at_once(run):
    with Signals().caught() as signals:
        box = inbox(run, signals=signals)
        run.order("stop")
        assert box.should_stop()
        signal.raise_signal(signal.SIGINT)
        assert box.should_stop()


@pytest.mark.parametrize("name", [name for name in STOP_SIGNALS if hasattr(signal, name)])
def test_every_stop_signal_is_caught_and_given_back(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with Signals().caught() as signals:
        signal.raise_signal(number)
        assert signals.count == 1
    assert signal.getsignal(number) is before


def test_a_signal_that_was_ignored_before_is_ignored_after():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Signals().caught() as signals:
            signal.raise_signal(signal.SIGTERM)
        assert signals.count == 1
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_that_is_not_pythons_is_replaced_by_the_systems(monkeypatch):
    set_to = []

    def fake(number, handler):
        set_to.append(handler)
        return None  # what Python says of a handler that it did not set

    monkeypatch.setattr(signal, "signal", fake)
    with Signals().caught():
        set_to.clear()
    assert set_to == [signal.SIG_DFL] * len(set_to) and set_to


@pytest.mark.skipif(os.name != "posix", reason="another process's signals")
def test_a_signal_from_outside_is_seen_at_the_next_look(run):
    with Signals().caught() as signals:
        box = inbox(run, signals=signals)
        os.kill(os.getpid(), signal.SIGTERM)
        assert box.should_stop()


def test_stop_now_passes_through_what_catches_errors():
    with pytest.raises(StopNow), contextlib.suppress(Exception):
        raise StopNow
