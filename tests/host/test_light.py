"""A long run stays light for the page: what a poll is answered with does not grow with the steps."""

from __future__ import annotations

import json

import pytest
from long_runs import make_long_run

from dreambooth.shared.events import EventLog

STEPS = 10_000
MOST = 50_000  # bytes


@pytest.fixture
def watcher():
    from dreambooth.host.endings import Ending
    from dreambooth.host.watch import Watcher

    return Watcher(lambda run: Ending("", ""), lambda run: False)


def poll(watcher, run, since=None):
    return watcher.live(run, since=since, url=lambda name: f"/dreambooth-trainer/v1/runs/long/samples/{name}")


def test_no_answer_about_ten_thousand_steps_has_more_than_fifty_kilobytes(tmp_path, watcher):
    run = make_long_run(tmp_path, STEPS)
    whole = run.events.read_bytes()
    assert whole.count(b"\n") > STEPS
    sizes, offset, read = [], None, -1
    for part in range(1, 41):  # polled all the way as it grows
        end = whole.rfind(b"\n", 0, len(whole) * part // 40) + 1
        run.events.write_bytes(whole[:end])
        answer = poll(watcher, run, offset)
        while answer["behind"]:
            answer = poll(watcher, run, answer["offset"])
        sizes.append(len(json.dumps(answer).encode()))
        assert answer["offset"] > read
        offset = read = answer["offset"]
    assert max(sizes) < MOST
    assert answer["step"] == STEPS
    assert poll(watcher, run, offset)["chart"] is None, "nothing came, so nothing is sent again"


def test_the_thinned_chart_spans_the_run_and_keeps_its_lines_together(tmp_path, watcher):
    run = make_long_run(tmp_path, STEPS)
    answer = poll(watcher, run)
    while answer["behind"]:
        answer = poll(watcher, run)
    chart = answer["chart"]
    assert {len(chart[name]) for name in ("steps", "loss", "smooth", "instance", "prior")} == {
        len(chart["steps"])
    }
    assert 100 <= len(chart["steps"]) <= 1000
    assert chart["steps"] == sorted(set(chart["steps"]))
    assert chart["steps"][0] <= STEPS // 50 and chart["steps"][-1] >= STEPS - STEPS // 50


@pytest.fixture
def counted(monkeypatch):
    """The lines that were parsed so far, in a list of one number; each block that is read takes a millisecond."""
    from dreambooth.host import watch
    from dreambooth.shared import events

    count, parse = [0], events.parse_event

    def counting(line):
        count[0] += 1
        return parse(line)

    clock = iter(range(10**9))
    monkeypatch.setattr(watch, "parse_event", counting)
    monkeypatch.setattr(events, "parse_event", counting)
    monkeypatch.setattr(watch.time, "perf_counter", lambda: next(clock) / 1000)
    return count


@pytest.mark.parametrize(
    ("ends_with", "state"), [({"event": "done", "path": "x"}, "finished"), (None, "interrupted")]
)
def test_the_first_look_at_a_run_that_is_over_is_read_in_slices_and_says_at_once_how_it_ended(
    tmp_path, watcher, counted, ends_with, state
):
    run = make_long_run(tmp_path, STEPS)
    if ends_with:
        log = EventLog(run.events)
        log.emit(**ends_with)
        log.close()
    work, answers, behind = [], [], True
    while behind:
        before = counted[0]
        answers.append(poll(watcher, run))
        work.append(counted[0] - before)
        behind = answers[-1]["behind"]
    assert sum(work) >= STEPS and max(work) < STEPS / 5, "no poll reads more than a part of it"
    assert {answer["state"] for answer in answers} == {state}
    assert {(answer["step"], answer["of"]) for answer in answers} == {(STEPS, STEPS)}
    assert answers[0]["chart"]["steps"][-1] < answers[-1]["chart"]["steps"][-1]


def test_a_list_of_runs_is_made_without_reading_them_all(tmp_path, counted):
    from dreambooth.host.endings import Ending
    from dreambooth.host.listing import Listing
    from dreambooth.host.watch import Watcher

    make_long_run(tmp_path, STEPS)
    ending = Ending("it died", "")
    row = Listing(Watcher(lambda run: ending, lambda run: False), lambda run: ending).rows(tmp_path)[0]
    assert (row["state"], row["step"], row["steps"], row["error"]) == ("interrupted", STEPS, STEPS, "it died")
    assert counted[0] < 20
