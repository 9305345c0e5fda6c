"""How long a run will take: told by an earlier run with like settings, by arithmetic, or not at all."""

from __future__ import annotations

import json
import os

import pytest
import torch
from tiny import config, dreambooth, tree
from watching import events, run_in

from dreambooth.shared.config import load_settings, setting_fields
from dreambooth.shared.runfolder import create_run
from dreambooth.trainer.planning import expected
from dreambooth.trainer.planning.expected import likeness, time_text
from dreambooth.trainer.planning.plan import make_plan


def planned(folder, *, measure: bool = False, **values):
    return make_plan(load_settings(config(folder, **values)), measure=measure)


def earlier(folder, like, name="before", *, it_s: float = 2.0, more=(), ends: bool = True) -> None:
    """A run that had 4 s before its first step (without 10 s for 5 class images), and 3 s after its last; `more` are
    other moments of it."""
    run = create_run(folder / "runs", name, "")
    moments = [
        (0, "plan", {"like": like}), (1, "phase", {"name": "class images", "of": 5}),
        (11, "progress", {"name": "class images", "done": 5, "of": 5}), (14, "phase", {"name": "training", "of": 9}),
        (20, "step", {"step": 9, "it_s": it_s}), *more, (23, "done", {"path": "x"}),
    ]  # fmt: skip
    with run.events.open("w") as file:
        for moment, event, fields in sorted(moments, key=lambda one: one[0])[: None if ends else -1]:
            file.write(json.dumps({"time": 1000.0 + moment, "event": event, **fields}) + "\n")


def test_an_earlier_run_with_like_settings_tells_by_its_own_pace(tmp_path) -> None:
    before = planned(tmp_path, max_train_steps=100, num_class_images=7)
    assert before.expected.seconds is None
    earlier(tmp_path, likeness(before))
    found = planned(tmp_path, max_train_steps=100, num_class_images=7).expected
    assert found.seconds == pytest.approx(4 + 7 * 2.0 + 100 / 2.0 + 3)
    assert "before" in found.by


def test_the_pace_of_class_images_is_counted_from_when_the_model_was_there(tmp_path) -> None:
    before = planned(tmp_path, max_train_steps=100, num_class_images=7)
    loaded = (6, "progress", {"name": "class images", "done": 0, "of": 5})
    earlier(tmp_path, likeness(before), more=[loaded])
    found = planned(tmp_path, max_train_steps=100, num_class_images=7).expected
    assert found.seconds == pytest.approx((4 + 5) + 7 * 1.0 + 100 / 2.0 + 3)


def test_an_earlier_run_s_sample_pictures_tell_what_pictures_take(tmp_path) -> None:
    """Its first two came in 30 s, its last two in 2 s: 0.04 s a sampling step of one, and so for class images."""
    values = {"max_train_steps": 100, "num_class_images": 3, "class_infer_steps": 10}
    pictures = [
        (moment, "progress", {"name": "samples", "done": done, "of": 2})
        for moment, done in ((14.0, 0), (15.0, 1), (44.0, 2), (60.5, 0), (62.0, 1), (62.5, 2))
    ]
    like = likeness(planned(tmp_path, **values))
    run = create_run(tmp_path / "runs", "before", "")
    moments = [
        (0, "plan", {"like": like}), (4, "phase", {"name": "training", "of": 9}), *pictures,
        (60, "step", {"step": 9, "it_s": 2.0}), (63, "done", {"path": "x"}),
    ]  # fmt: skip
    told = [json.dumps({"time": moment, "event": event, **fields}) for moment, event, fields in moments]
    run.events.write_text("\n".join(told) + "\n")
    found = planned(tmp_path, **values, num_validation_images=1).expected
    assert found.seconds == pytest.approx(4 + 3 * 10 * 0.04 + 25 * 0.04 + 100 / 2.0 + 3, abs=0.06)


def test_sample_pictures_are_counted_by_their_forward_passes(tmp_path) -> None:
    values = {"max_train_steps": 100, "num_class_images": 0, "prior_loss_weight": 0}
    earlier(tmp_path, likeness(planned(tmp_path, **values)))
    without = planned(tmp_path, **values).expected.seconds
    looking = {"num_validation_images": 2, "validation_steps": 50}
    found = planned(tmp_path, **values, **looking).expected.seconds
    pictures = 2 * (
        1 + 1
    )  # of step 50, and of the untrained model; the last ones were in the earlier run's end
    assert found - without == pytest.approx(pictures * 25 * (0.5 * 2 / 3), abs=0.1)


@pytest.mark.parametrize(
    "other",
    [{"resolution": 128}, {"train_batch_size": 2}, {"gradient_checkpointing": True}, {"train_unet": False}],
)
def test_runs_with_other_settings_tell_nothing(other, tmp_path) -> None:
    earlier(tmp_path, likeness(planned(tmp_path)))
    assert planned(tmp_path).expected.seconds is not None
    assert planned(tmp_path, **other).expected.seconds is None
    assert planned(tmp_path, learning_rate=1e-4, seed=3).expected.seconds is not None, (
        "no step is slower for it"
    )


def test_settings_on_which_no_step_s_time_depends_are_settings() -> None:
    assert setting_fields().keys() >= expected.INDIFFERENT


def test_the_newest_whole_run_wins_and_damaged_ones_are_passed_over(tmp_path) -> None:
    like = likeness(planned(tmp_path))
    earlier(tmp_path, like, "old", it_s=1.0)
    earlier(tmp_path, like, "new", it_s=4.0)
    earlier(tmp_path, like, "unfinished", ends=False)
    (create_run(tmp_path / "runs", "torn", "").events).write_text(
        '{"event": "plan", "like": "' + like + '"}\n{"ev'
    )
    for number, name in enumerate(("old", "new", "unfinished", "torn")):
        os.utime(tmp_path / "runs" / name / "events.jsonl", (1000 + number, 1000 + number))
    assert "new" in planned(tmp_path).expected.by


def test_a_real_run_tells_the_next_one(tmp_path) -> None:
    assert dreambooth("train", config(tmp_path)) == 0
    (plan,) = events(run_in(tmp_path), "plan")
    assert plan["expected_seconds"] is None and plan["like"]
    found = planned(tmp_path, output_name="other").expected
    assert "sks" in found.by and 0 < found.seconds < 60


def test_arithmetic_is_asked_only_where_it_may_be_measured_and_grows_with_the_steps(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(expected, "_rate", lambda plan: 1e12)
    monkeypatch.setattr(expected, "_bandwidth", lambda device: 1e10)
    assert planned(tmp_path).expected.seconds is None
    short, long = (planned(tmp_path, measure=True, max_train_steps=steps).expected for steps in (10, 10_000))
    assert "1 TFLOP/s" in short.by and long.seconds > 10 * short.seconds


def test_the_step_of_the_published_model_costs_its_published_arithmetic(tmp_path, monkeypatch) -> None:
    """SD1.5 at 512: 2.41 TFLOP an image, and 28 bytes for each of 860M weights."""
    monkeypatch.setattr(expected, "_rate", lambda plan: 1e12 / expected.EFFICIENCY)
    monkeypatch.setattr(expected, "_bandwidth", lambda device: 28 * 860e6)
    monkeypatch.setattr(expected, "_weights", lambda plan: {"unet": 860e6, "vae": 84e6})
    monkeypatch.setattr(expected, "SECONDS_A_TENSOR", 0.0)
    monkeypatch.setattr(expected, "START", 0.0)
    monkeypatch.setattr(expected, "ENCODE", 0.0)
    values = {"resolution": 512, "prior_loss_weight": 0, "max_train_steps": 1000, "train_text_encoder": False}
    plan = planned(tmp_path, **values)
    object.__setattr__(plan, "trained", {"unet": 860_000_000})
    assert expected.expect(plan, measure=True).seconds == pytest.approx(1000 * (2.41 + 1), rel=0.02)


def test_the_rate_of_this_machine_is_measured_in_a_moment(tmp_path) -> None:
    found = planned(tmp_path, measure=True).expected
    assert found.seconds > 0 and "TFLOP/s" in found.by


def test_a_card_that_is_full_leaves_the_time_unknown(tmp_path, monkeypatch) -> None:
    def full(plan):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(expected, "_rate", full)
    found = planned(tmp_path, measure=True).expected
    assert found.seconds is None and found.by.endswith("CUDA out of memory.")


def test_the_plan_command_says_the_time_and_writes_nothing(tmp_path, capsys) -> None:
    settings = config(tmp_path)
    before = tree(tmp_path)
    assert dreambooth("plan", settings) == 0
    assert "Time       about " in capsys.readouterr().out
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (59, "59 s"), (600, "10 min"), (5400, "1 h 30 min"), (36000, "10 h 00 min")],
)
def test_times_are_read_like_a_clock(seconds, text) -> None:
    assert time_text(seconds) == text
