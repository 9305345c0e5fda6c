"""Whole runs on a tiny checkpoint: what they leave, how they end, and that they go on as if nothing had happened."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from tiny import config, dreambooth, tree
from watching import at_event, events, is_finite, metadata, raw, run_in, same_tensors, sha256

from dreambooth.shared.commands import dreambooth_command
from dreambooth.shared.config import load_settings
from dreambooth.shared.errors import InputError, RunFailed
from dreambooth.shared.events import SCHEMA
from dreambooth.shared.runfolder import create_run, list_runs, saved_step, summarize
from dreambooth.trainer import control, run, session
from dreambooth.trainer.data.batches import StepBatches
from dreambooth.trainer.sampling import previews
from dreambooth.trainer.saving.checkpoint import latest_step, load_state
from dreambooth.trainer.saving.outputs import Outputs, claim, claimant
from dreambooth.trainer.steplog import StepLog


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a run that went through without a stop: the reference of many tests."""
    folder = tmp_path_factory.mktemp("a finished run é")
    base = shutil.copy(tiny.base(), folder / "base with a yaml.safetensors")
    tiny.write_yaml(base.with_suffix(".yaml"))
    settings = config(
        folder,
        model=str(base),
        checkpointing_steps=2,
        export_steps=2,
        num_validation_images=1,
        validation_steps=2,
    )
    assert dreambooth("train", settings) == 0
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The checkpoint of the quick run, uninterrupted."""
    folder = tmp_path_factory.mktemp("plain")
    assert dreambooth("train", config(folder)) == 0
    return folder / "out" / "sks.safetensors"


@pytest.fixture
def looks_always(monkeypatch) -> None:
    """Commands are looked for at every opportunity, so that a test need not wait."""
    monkeypatch.setattr(run, "Inbox", functools.partial(control.Inbox, every=0.0))


# ---- from the plan to the result -----------------------------------------------------------------------------------


def test_the_result_is_the_base_with_the_trained_tensors_replaced(finished) -> None:
    base, result = raw(finished / "base with a yaml.safetensors"), raw(finished / "out" / "sks.safetensors")
    assert list(result) == list(base), "no key lost, none invented"
    trained = ("model.diffusion_model.", "cond_stage_model.transformer.")
    changed = {name for name in base if base[name] != result[name]}
    assert all(name.startswith(trained) for name in changed)
    assert {name.split(".")[0] for name in changed} == {"model", "cond_stage_model"}
    assert len([name for name in changed if name.startswith(trained[0])]) > 100
    assert all(base[name][:2] == result[name][:2] for name in base), "no dtype and no shape changed"


def test_the_result_knows_its_run_and_tells_nothing_of_the_machine(finished) -> None:
    about = metadata(finished / "out" / "sks.safetensors")
    assert about["dreambooth.run_id"] == run.run_id(run_in(finished))
    settings = json.loads(about["dreambooth.settings"])
    assert (
        settings["max_train_steps"] == 4 and settings["concepts"][0]["instance_prompt"] == "photo of sks cat"
    )
    assert about["dreambooth.base_sha256"] == sha256(finished / "base with a yaml.safetensors")
    assert about["modelspec.architecture"] == "stable-diffusion-v1"
    assert str(finished) not in json.dumps(about) and str(tiny.photos()) not in json.dumps(about)


def test_result_json_names_every_file_with_its_hash_and_the_change(finished) -> None:
    result = json.loads(run_in(finished).result.read_bytes())
    assert Path(result["path"]) == finished / "out" / "sks.safetensors"
    assert {Path(file["path"]).name for file in result["files"]} == {"sks.safetensors", "sks.yaml"}
    for file in result["files"]:
        assert file["sha256"] == sha256(Path(file["path"]))
    assert set(result["weight_change"]) == {"unet", "text_encoder"}
    assert all(
        change["relative"] > 0 and 0 < change["changed"] <= 1 for change in result["weight_change"].values()
    )
    mode = (finished / "out" / "sks.safetensors").stat().st_mode
    (finished / "any new file").touch()
    assert stat.S_IMODE(mode) == stat.S_IMODE((finished / "any new file").stat().st_mode)


def test_events_have_the_schema_s_fields_and_come_in_order(finished) -> None:
    told = events(run_in(finished))
    for event in told:
        assert set(SCHEMA[event.name]) <= set(event.fields), event
    order = [
        event.name if event.name not in ("phase", "sample", "exported", "checkpoint")
        else f"{event.name} {event.fields.get('name', event.fields.get('step'))}"
        for event in told
        if event.name not in ("progress", "step")
    ]  # fmt: skip
    assert order == [
        "plan",
        "phase class images",
        "phase caching",
        "phase training",
        "sample 0",
        "checkpoint 2",
        "exported 2",
        "sample 2",
        "checkpoint 4",
        "phase export",
        "exported 4",
        "phase samples",
        "sample 4",
        "done",
    ]
    steps = [event for event in told if event.name == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4]
    assert all(event["of"] == 4 and event["loss"] > 0 and event["lr"] == 1e-3 for event in steps)
    for event in steps:
        assert event["loss"] == pytest.approx(event["instance_loss"] + event["prior_loss"], rel=1e-5)
    made = [event for event in told if event.name == "progress" and event["name"] == "class images"]
    assert [(event["done"], event["of"]) for event in made] == [(0, 2), (1, 2), (2, 2)]
    assert [event.time for event in told] == sorted(event.time for event in told)
    for event in told:
        if event.name in ("sample", "exported", "done") or (event.name, event.fields.get("step")) == (
            "checkpoint",
            4,
        ):
            assert Path(event["path"]).exists()


def test_a_checkpoint_on_the_way_can_be_used_and_differs_from_the_last(finished) -> None:
    folder = finished / "out"
    assert sorted(path.name for path in folder.iterdir()) == [
        "sks-2.safetensors", "sks-2.yaml", "sks.safetensors", "sks.yaml",
    ]  # fmt: skip
    assert (folder / "sks.yaml").read_text() == (finished / "base with a yaml.yaml").read_text()
    assert not same_tensors(folder / "sks-2.safetensors", folder / "sks.safetensors")
    assert raw(folder / "sks-2.safetensors").keys() == raw(folder / "sks.safetensors").keys()


def test_a_picture_can_be_made_with_the_result(finished, tmp_path, capsys) -> None:
    out = tmp_path / "a cat.png"
    model = finished / "out" / "sks.safetensors"
    assert (
        dreambooth("generate", model, "photo of sks cat", "--out", out, "--steps", "2", "--size", "64") == 0
    )
    with Image.open(out) as picture:
        assert picture.size == (64, 64)


def test_a_finished_run_says_so_when_it_is_resumed_and_is_left_alone(finished, capsys) -> None:
    before = tree(finished)
    assert dreambooth("resume", run_in(finished).path) == 0
    assert "finished" in capsys.readouterr().err
    assert tree(finished) == before


def test_who_starts_a_trainer_is_told_the_run_s_folder_before_anything_is_made(
    finished, tmp_path, monkeypatch, capsys
) -> None:
    note = tmp_path / "note é.json"
    seen = []
    at_event(monkeypatch, "plan", lambda found: seen.append(json.loads(note.read_bytes())))
    at_event(monkeypatch, "progress", lambda found: found.order("stop"))
    settings = config(tmp_path, num_class_images=2)
    (tmp_path / "runs" / "sks").mkdir(parents=True)
    assert dreambooth("train", settings, "--note", note) == 130
    assert seen == [{"run": str(tmp_path / "runs" / "sks-2")}], "the name was taken, so it got a number"
    note.unlink()
    assert dreambooth("resume", finished / "runs" / "sks", "--note", note) == 0
    assert json.loads(note.read_bytes()) == {"run": str(finished / "runs" / "sks")}
    note.unlink()
    assert dreambooth("resume", tmp_path / "runs" / "sks-2", "--note", note) == 0
    assert json.loads(note.read_bytes()) == {"run": str(tmp_path / "runs" / "sks-2")}
    before = tree(tmp_path)
    capsys.readouterr()
    assert dreambooth("train", settings, "--note", tmp_path / "nowhere" / "note") == 2
    assert "--note" in capsys.readouterr().err and tree(tmp_path) == before


def test_the_list_of_runs_shows_how_each_one_stands(finished, capsys) -> None:
    assert dreambooth("runs", finished / "runs") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[:4] == ["sks", "finished", "step", "4/4"]


def test_a_run_whose_settings_are_gone_says_so_and_what_would_bring_them_back(
    tmp_path, monkeypatch, capsys
) -> None:
    at_event(monkeypatch, "plan", lambda found: found.order("stop"))
    assert dreambooth("train", config(tmp_path)) == 130
    run = run_in(tmp_path)
    for content in ("", "# nothing\n"):
        run.config.write_text(content)
        before = tree(tmp_path / "runs" / "sks" / "state"), events(run)
        for command in ("resume", "export"):
            capsys.readouterr()
            assert dreambooth(command, run.path) == 2
            said = capsys.readouterr().err
            assert f"{run.config}: this run's settings are gone: the file is empty" in said
            assert "put a copy of the file back" in said and f"train anew with {run.asked}" in said
        assert (tree(tmp_path / "runs" / "sks" / "state"), events(run)) == before


def test_export_writes_the_saved_state_which_is_the_result_also_without_the_photos(
    finished, tmp_path, capsys
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(finished / "runs" / "sks", moved)
    text = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(
        text.replace(str(finished / "out"), str(tmp_path / "out")).replace(
            str(tiny.photos()), str(tmp_path / "gone")
        )
    )
    assert dreambooth("export", moved) == 0
    assert same_tensors(tmp_path / "out" / "sks-4.safetensors", finished / "out" / "sks.safetensors")
    assert dreambooth("export", moved, "--step", "3") == 2
    assert "step 3" in capsys.readouterr().err


@pytest.mark.parametrize("step", [[], ["--step", "4"]])
def test_export_of_a_finished_run_names_the_result_that_is_there_and_writes_no_second_one(
    step, finished, capsys
) -> None:
    before = tree(finished / "out")
    assert dreambooth("export", finished / "runs" / "sks", *step) == 0
    assert f"is there: {finished / 'out' / 'sks.safetensors'}" in capsys.readouterr().err
    assert tree(finished / "out") == before


@pytest.mark.parametrize(
    ("settings", "still"),
    [
        ({"train_text_encoder": False}, "cond_stage_model."),
        ({"train_unet": False, "text_encoder_learning_rate": 1e-3}, "model.diffusion_model."),
        ({"text_encoder_stop": 0}, "cond_stage_model."),
    ],
)
def test_what_is_not_trained_stays_byte_for_byte(settings, still, tmp_path) -> None:
    assert dreambooth("train", config(tmp_path, max_train_steps=2, **settings)) == 0
    base, result = raw(tiny.base()), raw(tmp_path / "out" / "sks.safetensors")
    changed = [name for name in base if base[name] != result[name]]
    assert changed and not any(name.startswith(still) for name in changed)


@pytest.mark.parametrize(
    "settings",
    [
        {"output_format": "ckpt"},
        {"output_kind": "diffusers"},
        {"mixed_precision": "bf16", "gradient_checkpointing": True, "output_dtype": "bfloat16"},
        {"prior_loss_weight": 0, "gradient_accumulation_steps": 2, "cache_latents": False, "shuffle_tags": True},
    ],
    ids=["ckpt", "diffusers", "bf16", "native"],
)  # fmt: skip
def test_other_ways_through_lead_to_a_result_that_draws(settings, tmp_path) -> None:
    assert dreambooth("train", config(tmp_path, max_train_steps=2, **settings)) == 0
    (result,) = [Path(event["path"]) for event in events(run_in(tmp_path), "done")]
    out = tmp_path / "cat.png"
    assert dreambooth("generate", result, "cat", "--out", out, "--steps", "1", "--size", "64") == 0
    assert sorted(path.name for path in result.parent.iterdir()) == [result.name], "nothing is left beside it"


def test_weights_in_bf16_go_on_bit_for_bit_on_a_processor_too(tmp_path, monkeypatch, looks_always) -> None:
    narrow = {"mixed_precision": "bf16", "weights_dtype": "bfloat16", "checkpointing_steps": 2}
    assert dreambooth("train", config(tmp_path, output_name="whole", **narrow)) == 0
    at_event(monkeypatch, "checkpoint", lambda found: found.order("stop"), step=2)
    assert dreambooth("train", config(tmp_path, **narrow)) == 130
    run = run_in(tmp_path)
    kept = load_state(run.states).weights["unet"].values()
    assert {tensor.dtype for tensor in kept} == {torch.bfloat16}
    assert dreambooth("export", run.path) == 0
    assert is_finite(tmp_path / "out" / f"sks-{latest_step(run.states)}.safetensors")
    assert dreambooth("resume", run.path) == 0
    whole, again = (tmp_path / "out" / f"{name}.safetensors" for name in ("whole", "sks"))
    assert same_tensors(whole, again) and not same_tensors(whole, tiny.base())


def test_the_second_run_of_a_config_repeats_the_first_bit_for_bit(plain, tmp_path) -> None:
    assert dreambooth("train", config(tmp_path)) == 0
    assert same_tensors(tmp_path / "out" / "sks.safetensors", plain)
    assert dreambooth("train", config(tmp_path, seed=1, overwrite=True)) == 0
    assert not same_tensors(tmp_path / "out" / "sks.safetensors", plain)
    assert [found.name for found in list_runs(tmp_path / "runs")] == ["sks-2", "sks"]


def test_a_run_keeps_what_was_asked_for_beside_what_it_goes_by(tmp_path) -> None:
    settings = config(tmp_path, learning_rate=None, max_train_steps=None, steps_per_image=1, overwrite=True)
    assert dreambooth("train", settings) == 0
    found = run_in(tmp_path)
    asked, resolved = load_settings(found.asked), load_settings(found.config)
    assert asked == load_settings(settings)
    assert (asked.training.learning_rate, asked.training.max_train_steps) == (0, 0)
    assert resolved.training.learning_rate > 0 and resolved.training.max_train_steps > 0
    assert dreambooth("train", found.asked, "output_name=again") == 0
    assert same_tensors(tmp_path / "out" / "again.safetensors", tmp_path / "out" / "sks.safetensors")


def test_tensorboard_gets_the_losses_in_one_folder_of_the_run(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert dreambooth("train", config(tmp_path, report_to="tensorboard")) == 0
    (found,) = run_in(tmp_path).path.rglob("events.out.tfevents.*")
    assert found.parent == run_in(tmp_path).path / "dreambooth"
    read = EventAccumulator(str(found))
    read.Reload()
    losses = [scalar.value for scalar in read.Scalars("loss")]
    assert losses == pytest.approx([event["loss"] for event in events(run_in(tmp_path), "step")])


# ---- what goes wrong -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def nan_at(monkeypatch, poisoned_step: int) -> Iterator[None]:
    """The photos of one step are no numbers."""
    real = StepBatches.of_step

    def poisoned(self, step, *, encoded):
        for micro in real(self, step, encoded=encoded):
            if step == poisoned_step:
                micro.instance.latents.fill_(torch.nan)
            yield micro

    with monkeypatch.context() as patched:
        patched.setattr(StepBatches, "of_step", poisoned)
        yield


def test_a_nan_ends_the_run_within_a_step_and_reaches_no_weight(tmp_path, plain, capsys, monkeypatch) -> None:
    with nan_at(monkeypatch, 2):
        assert dreambooth("train", config(tmp_path, checkpointing_steps=1)) == 1
    said = capsys.readouterr().err
    found = run_in(tmp_path)
    anew = dreambooth_command("train", found.asked, "output_name=sks-2", "learning_rate=0.0001")
    kept = dreambooth_command("export", found.path)
    assert said.endswith(
        "\nthe loss became NaN or infinite; the weights were not touched by it\n"
        "  What to do: train anew with a lower learning_rate; look for broken images, too: "
        f"`{anew}`; what was learned by step 2 is written by `{kept}`\n"
    )
    assert latest_step(found.states) == 2
    assert all(is_finite(path) for path in (found.states / "step-2").glob("*.safetensors"))
    assert [event["step"] for event in events(found, "step")][-1] <= 3
    assert events(found)[-1].name == "error" and "learning_rate" in events(found)[-1]["remedy"]
    assert summarize(found).state == "failed" and not (tmp_path / "out" / "sks.safetensors").exists()
    assert dreambooth("resume", found.path) == 0
    assert same_tensors(tmp_path / "out" / "sks.safetensors", plain), "the NaN touched nothing"


def test_weights_that_are_no_numbers_are_named_as_such_after_the_first_step(tmp_path, capsys) -> None:
    tensors = tiny.tensors()
    tensors["model.diffusion_model.out.2.weight"].fill_(torch.nan)
    model = tiny.save(tensors, tmp_path / "broken.safetensors")
    settings = config(tmp_path, model=str(model), prior_loss_weight=0)
    assert dreambooth("train", settings) == 2
    assert capsys.readouterr().err.endswith(
        f"\n{model}: its weights are broken: model.diffusion_model.out.2.weight holds NaN or infinite numbers\n"
        "  What to do: download the file again, or take another model\n"
    )
    assert len(events(run_in(tmp_path), "step")) <= 1
    assert not list((tmp_path / "out").iterdir()), "the name is free again"


def test_a_nan_before_anything_was_saved_leaves_the_name_to_the_training_that_is_advised(
    tmp_path, capsys, monkeypatch
) -> None:
    with nan_at(monkeypatch, 1):
        assert dreambooth("train", config(tmp_path, prior_loss_weight=0)) == 1
    said = capsys.readouterr().err
    assert f"`{dreambooth_command('train', run_in(tmp_path).asked, 'learning_rate=0.0001')}`\n" in said
    assert not list((tmp_path / "out").iterdir())
    assert dreambooth("train", run_in(tmp_path).asked, "learning_rate=0.0001") == 0
    assert (tmp_path / "out" / "sks.safetensors").exists() and run_in(tmp_path, "sks-2").result.exists()


def test_a_run_that_changed_nothing_is_a_failure_and_said_as_one(tmp_path, capsys) -> None:
    assert dreambooth("train", config(tmp_path, learning_rate=1e-12)) == 1
    said = capsys.readouterr().err
    assert "changed nothing" in said and "float16" in said and "learning_rate" in said
    assert summarize(run_in(tmp_path)).state == "failed"
    assert not (tmp_path / "out" / "sks.safetensors").exists()


def test_samples_that_fail_are_a_warning_and_never_end_a_run(tmp_path, plain, monkeypatch) -> None:
    def fails(*arguments, **options):
        raise RuntimeError("no picture today")

    monkeypatch.setattr(previews, "sample", fails)
    assert dreambooth("train", config(tmp_path, num_validation_images=1, validation_steps=2)) == 0
    warnings = [event["text"] for event in events(run_in(tmp_path), "warning")]
    assert len(warnings) == 3 and all("no picture today" in text for text in warnings)
    assert same_tensors(tmp_path / "out" / "sks.safetensors", plain)


def test_a_file_that_takes_the_result_s_name_meanwhile_is_not_touched(
    tmp_path, plain, capsys, monkeypatch
) -> None:
    theirs = tmp_path / "out" / "sks.safetensors"
    at_event(monkeypatch, "phase", lambda found: theirs.write_bytes(b"precious"), name="training")
    assert dreambooth("train", config(tmp_path)) == 2
    said = capsys.readouterr().err
    assert str(theirs) in said and "resume" in said
    assert theirs.read_bytes() == b"precious"
    theirs.rename(tmp_path / "elsewhere")
    assert dreambooth("resume", run_in(tmp_path).path) == 0
    assert same_tensors(theirs, plain)


def test_wrong_input_before_the_first_step_leaves_the_name_free(tmp_path, capsys, monkeypatch) -> None:
    photos = tiny.write_photos(tmp_path / "photos")
    concept = {"instance_prompt": "sks cat", "class_prompt": "cat", "instance_data_dir": str(photos)}
    settings = config(tmp_path, concepts=[concept])
    at_event(
        monkeypatch,
        "phase",
        lambda found: (photos / "photo 0.png").write_bytes(b"no picture"),
        name="caching",
    )
    assert dreambooth("train", settings) == 2
    assert "photo 0.png" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir()), "no claim is left"
    tiny.write_photos(photos)
    assert dreambooth("train", settings) == 0
    assert [found.name for found in list_runs(tmp_path / "runs")] == ["sks-2", "sks"]


def test_of_two_runs_into_one_name_at_once_the_later_one_leaves_nothing(
    tmp_path, capsys, monkeypatch
) -> None:
    made = Outputs(tmp_path / "out", "sks", ".safetensors")
    quicker = create_run(tmp_path / "runs", "sks", "")

    def a_moment_later(*asked):
        claim(made, quicker.path)
        return create_run(*asked)

    monkeypatch.setattr(run, "create_run", a_moment_later)
    assert dreambooth("train", config(tmp_path), "--note", tmp_path / "note") == 2
    assert "belongs to the run 'sks'" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["sks"]
    assert claimant(made) == quicker.path and not (tmp_path / "note").exists()


def test_wrong_input_later_keeps_the_name_for_resume(tmp_path, monkeypatch) -> None:
    def spoil(found) -> None:
        raise InputError("something is wrong")

    at_event(monkeypatch, "checkpoint", spoil, step=2)
    assert dreambooth("train", config(tmp_path, checkpointing_steps=2)) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sks.claimed-by-a-run"]


def test_an_error_that_nobody_foresaw_is_one_message_and_its_traceback_is_in_the_log(
    tmp_path, capsys, monkeypatch
) -> None:
    def broken(self, step, *, encoded):
        raise ZeroDivisionError("never seen before")

    monkeypatch.setattr(StepBatches, "of_step", broken)
    assert dreambooth("train", config(tmp_path)) == 1
    said = capsys.readouterr().err
    assert "never seen before" in said and str(run_in(tmp_path).log) in said and "Traceback" not in said
    assert "Traceback" in run_in(tmp_path).log.read_text()
    assert "never seen before" in events(run_in(tmp_path))[-1]["text"]


@pytest.mark.parametrize(
    "error", [MemoryError("no more"), torch.cuda.OutOfMemoryError("tried to allocate 2 GiB")]
)
def test_full_memory_is_said_with_what_helps(error, tmp_path, capsys, monkeypatch) -> None:
    def greedy(self, step, *, encoded):
        raise error

    monkeypatch.setattr(StepBatches, "of_step", greedy)
    assert dreambooth("train", config(tmp_path)) == 1
    said = capsys.readouterr().err
    assert "memory ran out" in said and "gradient_checkpointing" in said


# ---- interrupted and gone on with ----------------------------------------------------------------------------------

STOPS = {
    "a command among class images": ("command", "progress", {"name": "class images", "done": 1}),
    "Ctrl-C before class images": ("signal", "phase", {"name": "class images"}),
    "a command in caching": ("command", "phase", {"name": "caching"}),
    "Ctrl-C before the first step": ("signal", "phase", {"name": "training"}),
    "a command after a save": ("command", "checkpoint", {"step": 2}),
}


@pytest.mark.parametrize(("way", "name", "fields"), STOPS.values(), ids=STOPS.keys())
def test_a_stop_is_heard_in_every_phase_and_resume_gives_the_same_bits(
    way, name, fields, tmp_path, plain, capsys, monkeypatch, looks_always
) -> None:
    def stop(found):
        found.order("stop") if way == "command" else signal.raise_signal(signal.SIGINT)

    at_event(monkeypatch, name, stop, **fields)
    settings = config(tmp_path, checkpointing_steps=2)
    assert dreambooth("train", settings) == 130
    found = run_in(tmp_path)
    assert capsys.readouterr().err.endswith(f"`python3 -m dreambooth resume {found.path}` goes on with it\n")
    assert summarize(found).state == "stopped"
    assert events(found)[-1].name == "phase" and events(found)[-1]["name"] == "stopped"
    assert len(events(found, "ack")) == (way == "command")
    assert not found.waiting_commands()
    if name == "checkpoint" or fields["name"] == "training":
        assert latest_step(found.states) is not None
    assert dreambooth("resume", found.path) == 0
    assert same_tensors(tmp_path / "out" / "sks.safetensors", plain)


@pytest.mark.parametrize("way", ["command", "signal"])
def test_stop_now_ends_without_a_save_with_exit_code_1(
    way, tmp_path, plain, capsys, monkeypatch, looks_always
) -> None:
    def stop(found):
        if way == "command":
            found.order("stop_now")
            return
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

    at_event(monkeypatch, "phase", stop, name="training")
    assert dreambooth("train", config(tmp_path)) == 1
    found = run_in(tmp_path)
    assert "without saving" in capsys.readouterr().err
    assert latest_step(found.states) is None and summarize(found).state == "stopped"
    if way == "command":
        assert dreambooth("resume", found.path) == 0, "a run without a state starts over"
        assert same_tensors(tmp_path / "out" / "sks.safetensors", plain)


def test_what_stop_now_loses_is_said_with_the_steps(tmp_path, capsys, monkeypatch, looks_always) -> None:
    monkeypatch.setattr(session, "StepLog", functools.partial(StepLog, every=0.0))
    at_event(monkeypatch, "step", lambda found: found.order("stop_now"), step=3)
    assert dreambooth("train", config(tmp_path, checkpointing_steps=2, max_train_steps=9)) == 1
    found = run_in(tmp_path)
    said = capsys.readouterr().err
    assert (saved_step(found), summarize(found).step) == (2, 3)
    assert "stopped at once, without saving: 1 step is lost, those since step 2" in said
    assert said.endswith(
        f"`python3 -m dreambooth resume {found.path}` goes on from step 2, the last that was saved\n"
    )
    assert dreambooth("runs", tmp_path / "runs") == 0
    assert "saved up to step 2" in capsys.readouterr().out


def test_a_third_ctrl_c_does_not_tear_the_end(tmp_path, capsys, monkeypatch) -> None:
    def twice(found):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_event(monkeypatch, "phase", twice, name="training")
    at_event(monkeypatch, "phase", lambda found: signal.raise_signal(signal.SIGINT), name="stopped")
    assert dreambooth("train", config(tmp_path)) == 1
    assert "without saving" in capsys.readouterr().err


def test_commands_are_obeyed_between_steps_and_answered(tmp_path, plain, monkeypatch, looks_always) -> None:
    asked = []
    at_event(
        monkeypatch,
        "sample",
        lambda found: asked.extend(found.order(do) for do in ("save", "export", "sample")),
        step=0,
    )
    assert dreambooth("train", config(tmp_path, num_validation_images=1)) == 0
    found = run_in(tmp_path)
    told = [(event.name, event.fields.get("id", event.fields.get("step"))) for event in events(found)]
    told = [entry for entry in told if entry[0] in ("checkpoint", "exported", "sample", "ack")]
    assert told[1:7] == [
        ("checkpoint", 1), ("ack", asked[0]), ("exported", 1), ("ack", asked[1]), ("sample", 1), ("ack", asked[2]),
    ]  # fmt: skip
    assert (tmp_path / "out" / "sks-1.safetensors").is_file()
    assert same_tensors(tmp_path / "out" / "sks.safetensors", plain), "looking changes nothing"


def test_commands_that_come_after_the_last_step_are_answered_too(tmp_path, monkeypatch) -> None:
    asked = []
    at_event(
        monkeypatch,
        "phase",
        lambda found: asked.extend(found.order(do) for do in ("stop", "save")),
        name="export",
    )
    assert dreambooth("train", config(tmp_path)) == 0
    found = run_in(tmp_path)
    assert [event["id"] for event in events(found, "ack")] == asked
    assert events(found)[-1].name == "done" and not found.waiting_commands()


def test_commands_for_an_earlier_life_are_dropped(tmp_path, monkeypatch) -> None:
    at_event(monkeypatch, "phase", lambda found: signal.raise_signal(signal.SIGINT), name="training")
    assert dreambooth("train", config(tmp_path)) == 130
    run_in(tmp_path).order("stop")
    assert dreambooth("resume", run_in(tmp_path).path) == 0
    begun, gone_on = events(run_in(tmp_path), "plan")
    assert gone_on["memory"]["ways"] == begun["memory"]["ways"], (
        "what was chosen for the user nobody asked for"
    )


def test_changed_photos_are_noticed_on_resume(tmp_path, monkeypatch) -> None:
    photos = shutil.copytree(tiny.photos(), tmp_path / "photos")
    concepts = [{"instance_prompt": "sks cat", "class_prompt": "cat", "instance_data_dir": str(photos)}]
    at_event(monkeypatch, "phase", lambda found: signal.raise_signal(signal.SIGINT), name="training")
    assert dreambooth("train", config(tmp_path, concepts=concepts)) == 130
    shutil.copy(photos / "photo 0.png", photos / "photo 1.png")
    assert dreambooth("resume", run_in(tmp_path).path) == 0
    assert any("have changed" in event["text"] for event in events(run_in(tmp_path), "warning"))


@pytest.mark.parametrize(
    ("remedy", "told"),
    [
        ("", "COMMAND begins with the first step"),
        ("lower learning_rate.", "lower learning_rate; then COMMAND begins with the first step"),
        ("`resume` goes on with less", "COMMAND goes on with less"),
    ],
)
def test_a_run_that_failed_says_at_the_command_line_how_it_goes_on(remedy, told, tmp_path) -> None:
    folder = create_run(tmp_path / "my runs", "sks", "")
    failed = RunFailed("no", remedy=remedy)
    run._tell_the_way_on(failed, folder)
    assert failed.remedy == told.replace("COMMAND", f"`{dreambooth_command('resume', folder.path)}`")
    wrong = InputError("no", remedy=remedy)
    run._tell_the_way_on(wrong, folder)
    assert wrong.remedy == remedy, "what is wrong in the input comes first"
