import math

import pytest
import torch

from dreambooth.shared.events import SCHEMA
from dreambooth.trainer import steplog
from dreambooth.trainer.objectives import Losses
from dreambooth.trainer.steplog import MemoryProbe, StepLog


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(steplog, "time", clock)
    return clock


class Events(list):
    def emit(self, event, **fields):
        assert event == "step"
        assert set(fields) == set(SCHEMA["step"])
        self.append(fields)


def losses(number: float) -> Losses:
    return Losses(torch.tensor(number), torch.tensor(number / 2), torch.tensor(number / 4))


def logging(events, steps=100, **more) -> StepLog:
    return StepLog(events.emit, steps, **more)


def test_steps_come_in_bundles_each_with_its_own_numbers(clock):
    events = Events()
    log = logging(events)
    log.start(0)
    for step in range(1, 4):
        clock.now += 0.125
        log.add(step, losses(step), step * 1e-3)
        assert not events
    clock.now += 0.125
    log.add(4, losses(4), 4e-3)
    assert [event["step"] for event in events] == [1, 2, 3, 4]
    assert [event["loss"] for event in events] == [1, 2, 3, 4]
    assert [event["instance_loss"] for event in events] == [0.5, 1, 1.5, 2]
    assert [event["prior_loss"] for event in events] == [0.25, 0.5, 0.75, 1]
    assert [event["lr"] for event in events] == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3])
    assert {event["of"] for event in events} == {100}


def test_who_watches_the_pace_is_told_what_a_step_took_without_the_time_between(clock):
    seen: list[float] = []
    log = logging(Events(), watch=seen.append)
    log.start(0)
    for step in (1, 2):
        clock.now += 0.25
        log.add(step, losses(step), 1e-3)
    with log.paused():
        clock.now += 60.0
    clock.now += 4.0
    log.add(3, losses(3), 1e-3)
    log.flush()
    assert seen == [0.25, 4.0]


def test_a_number_is_not_read_off_the_device_before_somebody_would_look_at_it(clock):
    events = Events()
    log = logging(events)
    log.start(0)
    value = torch.tensor(1.0)
    log.add(1, Losses(value, value, value), 1.0)
    value.fill_(7.0)  # the next step's loss in the same memory
    log.flush()
    assert events[0]["loss"] == 1.0


def test_what_was_kept_is_told_at_the_end_and_only_once(clock):
    events = Events()
    log = logging(events)
    log.start(0)
    log.add(1, losses(1), 1.0)
    log.flush()
    log.flush()
    assert [event["step"] for event in events] == [1]


def test_what_could_not_be_written_is_told_later_and_nothing_twice(clock):
    told: list[int] = []

    def emit(event, *, step, **fields):
        if step == 2 and len(told) == 1:
            told.append(-1)
            raise OSError("disk full")
        told.append(step)

    log = StepLog(emit, 10)
    log.start(0)
    for step in (1, 2, 3):
        log.add(step, losses(step), 1.0)
    with pytest.raises(OSError, match="disk full"):
        log.flush()
    log.flush()
    assert told == [1, -1, 2, 3]


def test_the_rate_and_what_remains_are_counted_from_the_start(clock):
    events = Events()
    log = logging(events, steps=110)
    log.start(10)
    for step in range(11, 21):
        clock.now += 0.25
        log.add(step, losses(1), 1.0)
    assert events[-1]["step"] == 20
    assert events[-1]["it_s"] == pytest.approx(4.0)
    assert events[-1]["eta_s"] == pytest.approx((110 - 20) / 4.0)


def test_the_rate_is_that_of_the_last_minutes_not_of_the_whole_run(clock):
    events = Events()
    log = logging(events, steps=2000)
    log.start(0)
    for step in range(1, 101):
        clock.now += 5.0
        log.add(step, losses(1), 1.0)
    for step in range(101, 401):
        clock.now += 0.5
        log.add(step, losses(1), 1.0)
    assert events[99]["it_s"] == pytest.approx(0.2)
    assert events[-1]["it_s"] == pytest.approx(2.0)


def test_the_time_of_saves_and_samples_does_not_slow_the_rate(clock):
    events = Events()
    log = logging(events)
    log.start(0)
    for step in range(1, 11):
        clock.now += 0.5
        log.add(step, losses(1), 1.0)
        if step == 5:
            log.add(6, losses(2), 1.0)
            with log.paused():
                assert events[-1]["step"] == 6
                clock.now += 60
    assert events[-1]["it_s"] == pytest.approx(2.0, rel=0.11)  # step 6 was told half a second early


def test_the_clock_goes_on_after_a_pause_that_failed(clock):
    events = Events()
    log = logging(events)
    log.start(0)
    with pytest.raises(KeyError), log.paused():
        clock.now += 60
        raise KeyError
    clock.now += 0.5
    log.add(1, losses(1), 1.0)
    assert events[-1]["it_s"] == pytest.approx(2.0)


def test_a_loss_that_is_not_finite_is_told_as_it_is(clock):
    events = Events()
    log = logging(events)
    log.start(0)
    log.add(1, losses(math.nan), 1.0)
    log.flush()
    assert math.isnan(events[0]["loss"])


def test_no_time_at_all_is_no_error(clock):
    events = Events()
    log = logging(events)
    log.start(0)
    log.add(1, losses(1), 1.0)
    log.flush()
    assert events[0]["it_s"] > 0 and events[0]["eta_s"] >= 0


def test_memory_is_that_of_the_process_where_there_is_no_card():
    import psutil

    seen = MemoryProbe(torch.device("cpu")).gigabytes()
    assert seen == pytest.approx(psutil.Process().memory_info().rss / 2**30, rel=0.2)
    assert seen > 0.05


@pytest.mark.gpu
def test_memory_is_the_cards_peak_where_there_is_one():
    probe = MemoryProbe(torch.device("cuda"))
    held = torch.zeros(2**28, device="cuda")
    assert probe.gigabytes() >= 1.0
    del held
