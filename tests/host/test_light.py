"""A long run stays light for the page: what a poll is answered with does not grow with the steps."""

from __future__ import annotations

import json

import pytest
from long_runs import make_long_run

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
