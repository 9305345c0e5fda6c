"""The live view of a run: read as it grows, and small."""

from __future__ import annotations

import json
import os
import time

import pytest

from dreambooth.host.endings import Ending
from dreambooth.host.watch import LARGEST, Watcher, read_page
from dreambooth.shared.events import EventLog
from dreambooth.shared.runfolder import RunFolder, create_run


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return create_run(tmp_path, "dog", "resolution: 64\n")


@pytest.fixture
def log(run):
    log = EventLog(run.events)
    yield log
    log.close()


def watcher(starting: bool = False) -> Watcher:
    return Watcher(lambda run: Ending("it died", "resume"), lambda run: starting)


def look(watcher: Watcher, run: RunFolder, since: int | None = None) -> dict:
    found = watcher.live(run, since=since, url=lambda file: f"/s/{file}")
    while found["behind"]:
        found = watcher.live(run, since=since, url=lambda file: f"/s/{file}")
    return found


def step(log: EventLog, number: int, of: int = 100, **more) -> None:
    fields = {"loss": 0.1, "instance_loss": 0.05, "prior_loss": 0.05, "lr": 1e-6, "it_s": 2.0, "eta_s": 9.0}
    log.emit("step", step=number, of=of, memory_gb=3.5, **{**fields, **more})


def test_a_view_shows_phase_step_samples_and_exports(run, log):
    with run.hold():
        log.emit("plan", steps=100)
        log.emit("phase", name="training", of=100)
        step(log, 3)
        log.emit("sample", step=0, number=0, seed=7, prompt="a dog", path=run.samples / "step-0.png")
        log.emit("exported", step=3, path=run.path / "dog-3.safetensors", sha256="ab")
        found = look(watcher(), run)
    assert found["state"] == "running"
    assert found["phase"] == {"name": "training", "of": 100, "done": 3}
    assert (found["step"], found["of"], found["eta_s"], found["lr"]) == (3, 100, 9.0, 1e-6)
    assert found["samples"] == [{"step": 0, "index": 0, "prompt": "a dog", "seed": 7, "url": "/s/step-0.png"}]
    assert [(one["name"], one["sha256"]) for one in found["exports"]] == [("dog-3.safetensors", "ab")]


def test_pictures_between_steps_are_told_of_and_training_goes_on_after_them(run, log):
    log.emit("phase", name="training", of=100)
    seen = watcher()
    with run.hold():
        log.emit("progress", name="samples", done=0, of=2)
        assert look(seen, run)["phase"] == {"name": "samples", "of": 2, "done": 0}
        step(log, 1)
        assert look(seen, run)["phase"] == {"name": "training", "of": 100, "done": 1}


def test_how_long_class_images_take_is_told_from_when_their_model_was_there(run):
    def line(moment, event, **fields):
        return json.dumps({"time": moment, "event": event, **fields}) + "\n"

    seen, name = watcher(), {"name": "class images", "of": 8}
    moments = [
        (line(100, "phase", **name), None),
        (line(130, "progress", done=0, **name), None),
        (line(134, "progress", done=2, **name), 12.0),
        (line(142, "progress", done=8, **name), 0.0),
        (line(143, "progress", name="captions", done=1, of=3), None),
        (line(145, "progress", name="captions", done=2, of=3), 2.0),
        (line(150, "phase", name="training", of=9), None),
        (line(151, "step", step=3, of=9), None),
    ]
    with run.hold(), run.events.open("a") as file:
        for text, seconds in moments:
            file.write(text)
            file.flush()
            assert look(seen, run)["phase_eta_s"] == seconds, text


def test_a_second_look_reads_only_what_is_new(run, log):
    seen = watcher()
    step(log, 1)
    first = look(seen, run)
    step(log, 2)
    second = look(seen, run, since=first["offset"])
    assert second["chart"]["steps"] == [1, 2]
    assert second["offset"] == run.events.stat().st_size > first["offset"]


def test_the_chart_is_left_out_while_nothing_is_new(run, log):
    step(log, 1)
    seen = watcher()
    offset = look(seen, run)["offset"]
    assert look(seen, run, since=offset)["chart"] is None
    assert look(seen, run, since=0)["chart"]["steps"] == [1]


def test_a_torn_last_line_waits_for_its_rest(run, log):
    step(log, 1)
    line = json.dumps({"time": 1.0, "event": "warning", "text": "halves"}) + "\n"
    seen = watcher()
    with run.events.open("a") as file:
        file.write(line[:20])
        file.flush()
        assert look(seen, run)["warnings"] == []
        file.write(line[20:])
    assert look(seen, run)["warnings"] == ["halves"]


def test_torn_lines_in_the_middle_are_passed_over(run, log):
    step(log, 1)
    with run.events.open("a") as file:
        file.write('{"time": 1, "event": "st\n[]\n\x00\n')
    step(log, 2)
    assert look(watcher(), run)["chart"]["steps"] == [1, 2]


def test_a_file_that_became_shorter_is_read_anew(run, log):
    for number in range(1, 5):
        step(log, number)
    seen = watcher()
    look(seen, run)
    content = run.events.read_bytes().split(b"\n")
    run.events.write_bytes(content[0] + b"\n")
    assert look(seen, run)["chart"]["steps"] == [1]


def test_a_dead_run_without_a_last_word_says_why_it_died(run, log):
    step(log, 1)
    found = look(watcher(), run)
    assert found["state"] == "interrupted"
    assert found["error"] == {"text": "it died", "remedy": "resume"}


def test_a_run_whose_trainer_is_on_its_way_is_running(run, log):
    log.emit("phase", name="stopped", of=0)
    assert look(watcher(starting=True), run)["state"] == "running"


@pytest.mark.parametrize(
    ("event", "fields", "state"),
    [
        ("phase", {"name": "stopped", "of": 0}, "stopped"),
        ("error", {"text": "nan", "remedy": "lower it"}, "failed"),
        ("done", {"path": "x", "weight_change": {}}, "finished"),
    ],
)
def test_the_last_word_of_a_run_is_its_state(run, log, event, fields, state):
    log.emit(event, **fields)
    found = look(watcher(), run)
    assert found["state"] == state
    assert found["error"] == (fields if event == "error" else None)


def test_a_resumed_run_has_no_error_of_its_earlier_life(run, log):
    log.emit("error", text="nan", remedy="")
    log.emit("plan", steps=100)
    with run.hold():
        assert look(watcher(), run)["error"] is None


def fill(run: RunFolder, log: EventLog, steps: int) -> None:
    """A long run at its worst: many samples with long prompts that are not ASCII, many exports and warnings."""
    log.emit("plan", steps=steps)
    log.emit("phase", name="training", of=steps)
    lines = []
    for number in range(1, steps + 1):
        fields = {
            "step": number,
            "of": steps,
            "loss": 0.123456789,
            "instance_loss": 0.0654321,
            "prior_loss": 0.0612,
        }
        lines.append(
            json.dumps({"time": 1e9, "event": "step", **fields, "lr": 1e-6, "it_s": 1.0, "eta_s": 1.0})
        )
        if number % 50 == 0:
            for picture in range(4):
                path = f"{run.samples}/step-{number}-{picture}.png"
                lines.append(json.dumps({"time": 1e9, "event": "sample", "step": number, "number": picture, "seed": 1,
                                         "prompt": "照片" * 300, "path": path}))  # fmt: skip
        if number % 100 == 0:
            lines.append(json.dumps({"time": 1e9, "event": "exported", "step": number, "sha256": "a" * 64,
                                     "path": f"/models/{'n' * 180}-{number}.safetensors"}))  # fmt: skip
            lines.append(json.dumps({"time": 1e9, "event": "warning", "text": f"{number} {'w' * 2000}"}))
    with run.events.open("a") as file:
        file.write("\n".join(lines) + "\n")
    run.log.write_text("训练" * 3000 + "\n" + ("x" * 900 + "\n") * 200, encoding="utf-8")


def test_a_poll_of_ten_thousand_steps_is_small_and_soon_answered(run, log):
    fill(run, log, 10_000)
    seen = watcher()
    with run.hold():
        found = look(seen, run)
        size = len(json.dumps(found, ensure_ascii=False).encode())
        assert size < 50_000
        assert size <= LARGEST
        assert found["samples"][-1]["step"] == 10_000
        assert found["exports"][-1]["step"] == 10_000
        assert len(found["chart"]["steps"]) >= 200
        times = []
        for number in range(10_001, 10_021):
            step(log, number)
            begin = time.perf_counter()
            look(seen, run)
            times.append(time.perf_counter() - begin)
    assert min(times) < 0.020


def test_the_untrained_models_pictures_stay_in_a_long_list(run, log):
    for number in range(0, 1000, 10):
        for picture in range(2):
            log.emit(
                "sample", step=number, number=picture, seed=1, prompt="p", path=f"{number}-{picture}.png"
            )
    steps = [sample["step"] for sample in look(watcher(), run)["samples"]]
    assert steps[0] == 0 and steps[-1] == 990 and len(steps) <= 48
    assert {steps.count(one) for one in steps} == {2}


def test_the_summary_has_every_export_and_the_plan(run, log):
    log.emit("plan", steps=7, images=3)
    for number in range(30):
        log.emit("exported", step=number, path=f"/m/{number}.safetensors", sha256="")
    found = watcher().summary(run, url=str)
    assert len(found["exports"]) == 30
    assert found["plan"]["images"] == 3
    assert found["steps"] == 7


def test_raw_events_come_page_by_page(run, log):
    for number in range(1, 8):
        step(log, number)
    first = read_page(run, 0, 5)
    second = read_page(run, first["offset"], 5)
    assert [event["step"] for event in first["events"] + second["events"]] == [1, 2, 3, 4, 5, 6, 7]
    assert (first["more"], second["more"]) == (True, False)
    assert read_page(run, second["offset"], 5)["events"] == []


def test_an_offset_behind_the_end_begins_anew(run, log):
    step(log, 1)
    assert [event["step"] for event in read_page(run, 10**9, 5)["events"]] == [1]


def test_a_run_without_events_has_none(run):
    assert read_page(run, 0, 5) == {"events": [], "offset": 0, "more": False}
    assert look(watcher(), run)["step"] == 0


def test_a_run_that_was_stopped_and_then_finished_is_never_shown_as_stopped(run, log):
    log.emit("phase", name="stopped", of=0)
    fill(run, log, 10_000)
    log.emit("done", path="x", weight_change={})
    seen = watcher()
    first = seen.live(run, url=str)
    assert (first["behind"], first["state"], look(seen, run)["state"]) == (True, "finished", "finished")


def test_a_run_that_is_resumed_between_two_looks_is_told_by_its_newest_word(run, log):
    fill(run, log, 10_000)
    log.emit("error", text="nan", remedy="lower it")
    seen = watcher()
    assert seen.live(run, url=str)["error"] == {"text": "nan", "remedy": "lower it"}
    log.emit("plan", steps=10_000)
    log.emit("phase", name="stopped", of=0)
    found = seen.live(run, url=str)
    assert (found["behind"], found["state"], found["error"]) == (True, "stopped", None)


def test_a_living_run_is_read_in_parts_so_that_no_poll_is_slow(run, log):
    fill(run, log, 10_000)
    seen = watcher()
    with run.hold():
        os.utime(run.lock, (0, 0))  # it said all of that in this life
        assert seen.live(run, url=str)["behind"]
        assert look(seen, run)["step"] == 10_000


def test_a_run_that_was_told_to_stop_says_so_until_it_is_gone(run, log):
    log.emit("plan", steps=9)
    step(log, 3)
    here = watcher()
    with run.hold():
        os.utime(run.lock, (0, 0))  # held since before its events
        assert look(here, run)["ending"] == ""
        told = run.order("stop")
        assert look(here, run)["ending"] == "stop"
        (run.commands / f"{told}.json").unlink()
        log.emit("ack", id=told)
        assert look(here, run)["ending"] == "stop", "answered, and not stopped yet"
        here.ordered(run, "2", "stop_now")
        assert look(here, run)["ending"] == "stop_now", "even if it was answered before anybody looked"
        log.emit("phase", name="stopped", of=0)
        assert look(here, run)["ending"] == "done"
    assert look(here, run)["ending"] == ""
    with run.hold():
        os.utime(run.lock, (time.time() + 60, time.time() + 60))
        found = look(here, run)
        assert (found["starting"], found["ending"]) == (True, ""), "a new trainer, whose run said this before"
        log.emit("plan", steps=9)
        os.utime(run.lock, (0, 0))
        found = look(here, run)
        assert (found["starting"], found["ending"]) == (False, "")


def test_a_process_that_is_not_gone_yet_is_told_from_one_that_is_on_its_way(run, log):
    log.emit("phase", name="stopped", of=0)
    for began, ending in ((0.0, "done"), (time.time() + 60, "")):
        seen = Watcher(lambda _: Ending("", ""), lambda _: True, began=lambda _, at=began: at)
        found = look(seen, run)
        assert (found["state"], found["ending"], found["starting"]) == ("running", ending, not ending)


def test_a_trainer_that_goes_on_after_a_kill_is_starting_until_it_says_something(run, log):
    log.emit("plan", steps=9)
    log.emit("phase", name="training", of=9)
    step(log, 3)
    seen = Watcher(lambda _: Ending("", ""), lambda _: True, began=lambda _: time.time() + 60)
    assert look(seen, run)["starting"], "what it did last is of the life before"
    assert (look(seen, run)["step"], seen.progress(run)[0]) == (0, 0), "nothing was saved"
    log.emit("checkpoint", step=2, path="x")
    step(log, 4)
    assert (look(seen, run)["step"], seen.progress(run)[0]) == (2, 2), "it goes on from there"
    log.emit("phase", name="training", of=9)
    seen = Watcher(lambda _: Ending("", ""), lambda _: True, began=lambda _: time.time() - 60)
    assert not look(seen, run)["starting"]


def test_a_stop_that_was_left_for_the_trainer_before_stops_no_later_one(run, log):
    told = run.order("stop")
    os.utime(run.commands / f"{told}.json", (time.time() - 60, time.time() - 60))
    with run.hold():
        log.emit("plan", steps=9)
        assert look(watcher(), run)["ending"] == ""
