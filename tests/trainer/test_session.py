"""A session in a world that changes under it: disks that fill up or may not be written, another number of threads."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny import config, dreambooth, tree
from watching import at_event, events, run_in, same_tensors

from dreambooth.shared.config import load_settings
from dreambooth.shared.runfolder import summarize
from dreambooth.trainer import arithmetic, control, engine, run, run_models, session
from dreambooth.trainer.sampling import class_phase
from dreambooth.trainer.saving.checkpoint import latest_step, load_state


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The checkpoint of the quick run, undisturbed."""
    folder = tmp_path_factory.mktemp("plain")
    assert dreambooth("train", config(folder)) == 0
    return folder / "out" / "sks.safetensors"


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, which only root can have."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", place], capture_output=True
    ).returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path) -> None:
    """Leaves no byte free."""
    with (disk / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
    with (disk / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1)):
            pass


MOMENTS = {
    "in class images": ("progress", {"name": "class images", "done": 1}),
    "in training": ("checkpoint", {"step": 2}),
    "before the export": ("phase", {"name": "export"}),
    "after the export": ("exported", {"step": 4}),
}


@pytest.mark.parametrize(("name", "fields"), MOMENTS.values(), ids=MOMENTS.keys())
def test_a_disk_that_fills_up_leaves_the_last_state_and_the_run_goes_on_after_room_is_made(
    name, fields, disk, plain, capsys, monkeypatch
) -> None:
    settings = config(disk, checkpointing_steps=2)
    at_event(monkeypatch, name, lambda found: fill(disk), **fields)
    assert dreambooth("train", settings) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    message = said[said.rindex("Run   ") :].split("\n", 1)[1]
    assert "room" in message and str(disk) in message and "What to do: " in message.splitlines()[-1]
    found = run_in(disk)
    if name != "progress":
        saved = latest_step(found.states)
        assert saved == (2 if name == "checkpoint" else 4)
        assert load_state(found.states).progress.step == saved
    assert not list((disk / "out").glob(".*.tmp*")), "half a file takes no room"
    (disk / "filler").unlink()
    assert dreambooth("resume", found.path) == 0
    assert same_tensors(disk / "out" / "sks.safetensors", plain)
    assert summarize(found).state == "finished"


def test_too_little_room_for_going_on_is_said_before_anything_is_done(disk, capsys, monkeypatch) -> None:
    at_event(monkeypatch, "checkpoint", lambda found: found.order("stop"), step=2)
    assert dreambooth("train", config(disk, checkpointing_steps=2, max_train_steps=1000)) == 130
    fill(disk)
    before = events(run_in(disk))
    assert dreambooth("resume", run_in(disk).path) == 2
    assert "free, and this run needs" in capsys.readouterr().err
    assert events(run_in(disk)) == before


def test_a_folder_that_may_not_be_written_is_an_error_before_the_start(disk, tmp_path, capsys) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for key, setting in (("output_dir", "output_dir"), ("runs_dir", "runs_dir")):
        settings = config(tmp_path, **{key: str(disk / "below")})
        before = tree(tmp_path)
        assert dreambooth("train", settings) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"{setting}: ") and str(disk) in message and "What to do: " in message
        assert tree(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_an_error_before_the_start(tmp_path, capsys) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    assert dreambooth("train", config(tmp_path, output_dir=str(locked))) == 2
    assert str(locked) in capsys.readouterr().err


def test_a_folder_that_may_not_be_written_any_more_keeps_the_state_and_can_be_mended(
    disk, tmp_path, plain, capsys, monkeypatch
) -> None:
    def lock(found):
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

    at_event(monkeypatch, "phase", lock, name="export")
    assert dreambooth("train", config(tmp_path, output_dir=str(disk))) == 2
    assert str(disk) in capsys.readouterr().err
    assert latest_step(run_in(tmp_path).states) == 4
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert dreambooth("resume", run_in(tmp_path).path) == 0
    assert same_tensors(disk / "sks.safetensors", plain)


def test_a_resumed_run_computes_with_as_many_threads_as_at_its_beginning(tmp_path, monkeypatch) -> None:
    def stop(found):
        found.order("stop")

    assert torch.get_num_threads() == 1
    at_event(monkeypatch, "phase", stop, name="class images")
    assert dreambooth("train", config(tmp_path, class_infer_steps=40)) == 130
    seen = []
    at_event(monkeypatch, "phase", lambda found: seen.append(torch.get_num_threads()), name="class images")
    try:
        torch.set_num_threads(2)
        assert dreambooth("resume", run_in(tmp_path).path) == 0
    finally:
        torch.set_num_threads(1)
    assert seen == [1]


def test_a_run_removes_what_killed_ones_left_where_it_writes_and_says_so(
    tmp_path, capsys, monkeypatch
) -> None:
    settings = config(tmp_path)
    at_event(monkeypatch, "phase", lambda found: found.order("stop"), name="class images")
    assert dreambooth("train", settings) == 130
    found = run_in(tmp_path)
    for folder in (tmp_path / "out", found.path):
        (folder / ".sks-7-0123abcd.tmp").write_bytes(bytes(1000))
        (folder / ".sks-7-0123abcd.tmp.lock").touch()
    at_event(monkeypatch, "phase", lambda found: found.order("stop"), name="class images")
    assert dreambooth("resume", found.path) == 130
    assert not list(tmp_path.rglob(".*.tmp*"))
    text = "removed .sks-7-0123abcd.tmp (1 kB), which a killed process had left half written"
    assert [event["text"] for event in events(found, "warning")] == [text, text]
    assert f"Note: {text}\n" in capsys.readouterr().err


def test_a_run_bounds_the_cache_and_keeps_its_own_part(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(session.TensorStore, "trim", functools.partialmethod(session.TensorStore.trim, 0))
    assert dreambooth("train", config(tmp_path, random_flip=True)) == 0
    cache = tmp_path / "runs" / "cache"
    flipped = set(cache.rglob("*.safetensors"))
    assert dreambooth("train", config(tmp_path, output_name="other")) == 0
    plain = set(cache.rglob("*.safetensors"))
    assert plain < flipped, "the mirrored ones are gone, those of this run are not"


def test_a_result_is_written_in_the_usual_order_though_channels_come_last(
    tmp_path, plain, monkeypatch
) -> None:
    """As a card has it, here on the processor; sums are made in another order there."""
    monkeypatch.setattr(arithmetic, "memory_format", lambda device, compute: torch.channels_last)
    seen = set()
    forward = engine.Denoiser.forward

    def looked_at(self, *arguments):
        weight = self.unet.conv_in.weight
        seen.add(weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous())
        return forward(self, *arguments)

    monkeypatch.setattr(engine.Denoiser, "forward", looked_at)
    assert dreambooth("train", config(tmp_path)) == 0
    assert seen == {True}
    written, usual = load_file(tmp_path / "out" / "sks.safetensors"), load_file(plain)
    assert written.keys() == usual.keys()
    for name, tensor in usual.items():
        assert torch.allclose(written[name], tensor, atol=3e-3), name


@pytest.mark.parametrize("narrow", [True, False])
def test_only_the_unet_that_draws_class_images_is_narrower_on_a_processor_with_bf16(
    narrow, tmp_path, monkeypatch
) -> None:
    drawn = []

    def drawing(model, *arguments, **options):
        drawn.append({name: next(part.parameters()).dtype for name, part in model.components.items()})
        return made(model, *arguments, **options)

    made = class_phase.make_class_images
    monkeypatch.setattr(class_phase, "make_class_images", drawing)
    monkeypatch.setattr(arithmetic, "multiplies_bf16", lambda: narrow)
    assert dreambooth("train", config(tmp_path, max_train_steps=1)) == 0
    wide = dict.fromkeys(("unet", "vae", "text_encoder"), torch.float32)
    assert drawn == [wide | ({"unet": torch.bfloat16} if narrow else {})]


@pytest.fixture
def quick_pictures(monkeypatch) -> None:
    monkeypatch.setattr("dreambooth.trainer.sampling.previews.STEPS", 1)


def test_the_untrained_model_s_samples_come_before_the_first_step_and_change_no_bit(
    plain, tmp_path, quick_pictures
) -> None:
    assert dreambooth("train", config(tmp_path, num_validation_images=2)) == 0
    told = events(run_in(tmp_path))
    order = [(event.name, event["step"]) for event in told if event.name in ("sample", "step")]
    assert order[:3] == [("sample", 0), ("sample", 0), ("step", 1)]
    asked = [(event["number"], event["seed"]) for event in told if event.name == "sample"]
    assert asked == [(0, 0), (1, 1)] * 2, "the same pictures again, by the trained model"
    assert same_tensors(tmp_path / "out" / "sks.safetensors", plain)


def test_the_untrained_model_s_samples_are_made_once_however_often_a_run_starts_over(
    plain, tmp_path, monkeypatch, quick_pictures
) -> None:
    at_event(monkeypatch, "sample", lambda found: found.order("stop_now"), step=0)
    monkeypatch.setattr(run, "Inbox", functools.partial(control.Inbox, every=0.0))
    assert dreambooth("train", config(tmp_path, num_validation_images=1)) == 1
    found = run_in(tmp_path)
    (first,) = found.samples.iterdir()
    made = first.stat().st_mtime_ns
    assert latest_step(found.states) is None
    assert dreambooth("resume", found.path) == 0
    assert first.stat().st_mtime_ns == made
    assert [event["step"] for event in events(found, "sample")] == [0, 4]
    assert same_tensors(tmp_path / "out" / "sks.safetensors", plain)


def test_samples_of_the_untrained_model_that_fail_are_a_warning_and_are_made_at_the_end(
    plain, tmp_path, monkeypatch, quick_pictures
) -> None:
    real = session.Session._sample_live

    def broken(self, step, model):
        raise torch.cuda.OutOfMemoryError("no more to be had")

    monkeypatch.setattr(session.Session, "_sample_live", broken)
    assert dreambooth("train", config(tmp_path, num_validation_images=1)) == 0
    monkeypatch.setattr(session.Session, "_sample_live", real)
    (warning,) = events(run_in(tmp_path), "warning")
    assert "step 0" in warning["text"] and "no more to be had" in warning["text"]
    assert [event["step"] for event in events(run_in(tmp_path), "sample")] == [0, 4]
    assert same_tensors(tmp_path / "out" / "sks.safetensors", plain)


@pytest.mark.parametrize(("device", "mapped"), [("cpu", False), ("meta", True)])
def test_weights_stay_in_the_file_s_pages_only_on_their_way_to_a_card(
    device, mapped, tmp_path, monkeypatch
) -> None:
    """On a CPU they would stay there as long as the training lasts, in which another program may write to the file."""
    asked = []
    real = run_models.load_model

    def noted(path, **options):
        asked.append(options["mapped"])
        return real(path, **options)

    monkeypatch.setattr(run_models, "load_model", noted)
    plan = SimpleNamespace(
        settings=load_settings(config(tmp_path)), machine=SimpleNamespace(device=torch.device(device))
    )
    model = run_models.RunModels(plan).base(torch.float16)  # type: ignore[arg-type]
    assert asked == [mapped]
    assert {weight.device.type for module in model.components.values() for weight in module.parameters()} == {
        device
    }


def test_the_last_samples_come_from_the_written_file(tmp_path, monkeypatch, quick_pictures) -> None:
    loaded = []
    real = run_models.load_model

    def noted(path, **options):
        loaded.append(Path(path))
        return real(path, **options)

    monkeypatch.setattr(run_models, "load_model", noted)
    assert dreambooth("train", config(tmp_path, num_validation_images=1, prior_loss_weight=0)) == 0
    assert loaded == [tiny.base(), tmp_path / "out" / "sks.safetensors"], "trained, sampled"
    assert [event["step"] for event in events(run_in(tmp_path), "sample")] == [0, 4]
