"""The border at work: a real process that trains nothing, watched and ordered about from this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_trainer import started, wait_for

from dreambooth.shared.config import dump_settings, settings_from
from dreambooth.shared.events import SCHEMA, EventLog, read_events
from dreambooth.shared.runfolder import RunFolder, create_run, summarize

FOREVER = {"max_train_steps": "1000000", "checkpointing_steps": "0"}
SLOWLY = ("--pace", "0.002")


@pytest.fixture
def make_run(tmp_path: Path):
    def make(**values: str) -> RunFolder:
        values = {"num_class_images": "2", **values}
        return create_run(tmp_path / "runs é", "sks dög", dump_settings(settings_from(values, where="test")))

    return make


def names(run: RunFolder) -> list[str]:
    return [event.name for event in read_events(run.events)[0]]


def test_a_run_goes_from_plan_to_done_with_every_event_of_the_schema_in_full(make_run) -> None:
    run = make_run(
        max_train_steps="6",
        checkpointing_steps="3",
        validation_steps="2",
        export_steps="4",
        output_dtype="bfloat16",
    )
    asked = run.order("save")
    with started(run) as trainer:
        assert trainer.wait(30) == 0, trainer.stderr.read()
    events, _ = read_events(run.events)
    assert asked not in [event.fields.get("id") for event in events], "it was meant for an earlier life"
    assert {event.name for event in events} == SCHEMA.keys() - {"ack", "error"}
    for event in events:
        assert set(event.fields) == set(SCHEMA[event.name])
    assert [event["step"] for event in events if event.name == "step"] == [1, 2, 3, 4, 5, 6]
    assert [event["step"] for event in events if event.name == "checkpoint"] == [3, 6]
    assert [event.time for event in events] == sorted(event.time for event in events)
    told = {event["path"] for event in events if event.name in ("sample", "exported", "checkpoint")}
    assert all(Path(path).exists() for path in told)

    summary = summarize(run)
    assert (summary.state, summary.step, summary.steps) == ("finished", 6, 6)
    assert summary.result == json.loads(run.result.read_bytes())
    assert summary.result["sha256"] == [event for event in events if event.name == "exported"][-1]["sha256"]


def test_a_second_trainer_is_refused_and_leaves_the_first_alone(make_run) -> None:
    run = make_run(**FOREVER)
    with started(run, *SLOWLY) as first:
        wait_for(first, run, "step")
        with started(run) as second:
            assert second.wait(30) == 2
            message = second.stderr.read()
        assert f"process {first.pid}" in message and "What to do" in message and "Traceback" not in message
        assert first.poll() is None
        assert summarize(run).state == "running"
        assert names(run).count("plan") == 1


def test_a_killed_trainer_leaves_the_lock_free_and_its_events_readable(make_run) -> None:
    run = make_run(**FOREVER)
    with started(run, *SLOWLY) as trainer:
        wait_for(trainer, run, "step")
        assert run.is_alive()
        trainer.kill()
        trainer.wait(30)
    assert not run.is_alive()
    before, _ = read_events(run.events)
    summary = summarize(run)
    assert (summary.state, summary.steps) == ("interrupted", 1000000)
    assert summary.step == [event["step"] for event in before if event.name == "step"][-1] >= 1

    with run.events.open("ab") as file:  # what a kill in the middle of a line leaves
        file.write('{"time": 1.0, "event": "step", "prompt": "dö'.encode()[:-1])
    assert read_events(run.events)[0] == before
    with run.hold():
        log = EventLog(run.events)
        log.emit("ack", id="after")
        log.close()
    after, _ = read_events(run.events)
    assert after[:-1] == before
    assert after[-1]["id"] == "after"


def test_a_stop_is_acknowledged_after_saving_and_a_resumed_run_goes_on_to_its_end(make_run) -> None:
    run = make_run(max_train_steps="1000", checkpointing_steps="0")
    with started(run, "--pace", "0.01") as trainer:
        wait_for(trainer, run, "step")
        asked = run.order("stop")
        assert wait_for(trainer, run, "ack")["id"] == asked
        assert trainer.wait(30) == 130
    assert not run.is_alive()
    assert run.waiting_commands() == []
    stopped = summarize(run)
    assert stopped.state == "stopped"
    assert 1 <= stopped.step < 1000
    assert names(run)[-3:] == ["checkpoint", "ack", "phase"]

    with started(run) as trainer:
        assert trainer.wait(30) == 0
    events, _ = read_events(run.events)
    assert [event["step"] for event in events if event.name == "step"] == list(range(1, 1001))
    assert summarize(run).state == "finished"


def test_commands_are_answered_one_by_one_in_the_order_in_which_they_were_given(make_run) -> None:
    run = make_run(**FOREVER)
    with started(run, *SLOWLY) as trainer:
        wait_for(trainer, run, "step")
        asked = [run.order(do) for do in ("save", "export", "sample", "save", "stop_now")]
        assert trainer.wait(30) == 1
    events, _ = read_events(run.events)
    assert [event["id"] for event in events if event.name == "ack"] == asked
    steps = {
        name: [event["step"] for event in events if event.name == name]
        for name in ("sample", "exported", "checkpoint")
    }
    assert len(steps["exported"]) == 1 and len(steps["checkpoint"]) == 2
    assert len(steps["sample"]) == 2 and steps["sample"][0] == 0, (
        "the untrained model's, and the one asked for"
    )
    assert summarize(run).state == "stopped"


def test_a_failed_run_says_why_and_what_to_do_until_it_is_resumed(make_run) -> None:
    run = make_run(max_train_steps="6", checkpointing_steps="2")
    with started(run, "--fail-at", "5") as trainer:
        assert trainer.wait(30) == 1
        assert "learning_rate" in trainer.stderr.read()
    summary = summarize(run)
    assert (summary.state, summary.step) == ("failed", 4)
    assert summary.error == "the loss is not a number"
    assert "learning_rate" in read_events(run.events)[0][-1]["remedy"]
    with started(run) as trainer:
        assert trainer.wait(30) == 0
    assert (summarize(run).state, summarize(run).error) == ("finished", "")
