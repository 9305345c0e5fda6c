"""Several processes of one run: they go on together and end together, promptly, each with a message."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import base, config, dreambooth, tree
from watching import at_event, events, run_in

from dreambooth.shared.errors import DreamboothError, InputError, RunFailed
from dreambooth.shared.settings import Settings, TrainingSettings
from dreambooth.trainer import engine, run
from dreambooth.trainer.data import encoding
from dreambooth.trainer.processes import ALONE, check_cards, shared_out
from dreambooth.trainer.sampling import previews
from dreambooth.trainer.saving import keeper

PATIENCE = 180  # seconds, on a machine with much other work
Spoil = Callable[[int], None]  # changes the process of that index before it begins
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are started by forking here")


def _life(index: int, folder: Path, order: tuple[str, Path], port: int, spoil: Spoil) -> None:
    os.environ |= {
        "WORLD_SIZE": "2", "RANK": str(index), "LOCAL_RANK": str(index), "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    forget_being_alone()
    with (folder / f"said by {index}").open("w", encoding="utf-8") as sys.stderr:
        faulthandler.dump_traceback_later(PATIENCE - 20, file=sys.stderr)  # where it waits, if it ever does
        spoil(index)
        code = dreambooth(*order)
    os._exit(code)


def forget_being_alone() -> None:
    """accelerate keeps, for the life of a process, how many it found; a test before this one may have asked it."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


def trained_together(folder: Path, spoil: Spoil, **values) -> list[tuple[int | None, str]]:
    """(exit code, what it said) of each of two processes of one run."""
    return done_together(folder, spoil, ("train", config(folder, **values)))


def done_together(folder: Path, spoil: Spoil, order: tuple[str, Path]) -> list[tuple[int | None, str]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_life, args=(index, folder, order, port, spoil)) for index in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE)
        worker.kill()
    said = [(folder / f"said by {index}").read_text(encoding="utf-8") for index in range(2)]
    return [(worker.exitcode, text) for worker, text in zip(workers, said, strict=True)]


def a_save_that_fails(index: int) -> None:
    def full(*arguments, **options):
        raise DreamboothError("no space is left on the disk", remedy="make room")

    keeper.save_state = full


def the_second_one_s_cache_fails(index: int) -> None:
    def broken(*arguments, **options):
        raise OSError(28, "No space left on device", "the cache")

    if index == 1:
        encoding.encode_missing = broken


def the_second_one_s_memory_runs_out(index: int) -> None:
    forward = engine.Denoiser.forward

    def full(self, noisy, *rest):
        if noisy.is_meta:  # a plan counts without memory
            return forward(self, noisy, *rest)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    if index == 1:
        engine.Denoiser.forward = full


@needs_fork
@pytest.mark.parametrize(
    ("spoil", "guilty", "why"),
    [
        (the_second_one_s_memory_runs_out, 1, "memory ran out"),
        (a_save_that_fails, 0, "no space is left"),
        (the_second_one_s_cache_fails, 1, "No space left on device"),
    ],
)
def test_where_one_process_fails_all_end_at_once_and_each_says_why(spoil, guilty, why, tmp_path) -> None:
    ended = trained_together(tmp_path, spoil, checkpointing_steps=2, prior_loss_weight=0)
    assert [code for code, _ in ended] == [1, 1], ended
    assert why in ended[guilty][1]
    assert f"process {guilty}" in ended[1 - guilty][1] or "another process" in ended[1 - guilty][1]
    assert not any("Traceback" in said for _, said in ended)
    assert not (tmp_path / "out" / "sks.safetensors").exists()
    assert events(run_in(tmp_path), "error")


@needs_fork
def test_two_processes_go_through_to_the_end(tmp_path) -> None:
    def quickly(index: int) -> None:
        previews.STEPS = 1

    ended = trained_together(tmp_path, quickly, num_validation_images=1, checkpointing_steps=2)
    assert [code for code, _ in ended] == [0, 0], ended
    assert (tmp_path / "out" / "sks.safetensors").is_file()
    assert [event["step"] for event in events(run_in(tmp_path), "sample")] == [0, 4]


def test_a_process_alone_raises_its_own_error_and_waits_for_nobody() -> None:
    with pytest.raises(RunFailed, match="mine"), ALONE.together():
        raise RunFailed("mine")
    with ALONE.together():
        pass


# ---- another number of processes ---------------------------------------------------------------------------------


def stopping_after_two(index: int) -> None:
    """The run stops at its state of step 2. Nothing is put back: the process ends with it."""
    at_event(pytest.MonkeyPatch(), "checkpoint", lambda found: found.order("stop"), step=2)


def as_it_is(index: int) -> None:
    """Nothing is changed."""


def apart(one: Path, other: Path) -> float:
    """How far two results are from each other, against the way from the base."""
    start, one_end, other_end = (load_file(path) for path in (base(), one, other))
    names = [name for name, tensor in start.items() if tensor.is_floating_point()]
    way, between = (
        torch.cat([(some[name].float() - one_end[name].float()).flatten() for name in names])
        for some in (start, other_end)
    )
    return float(between.norm() / way.norm())


@needs_fork
def test_a_run_goes_on_with_another_number_of_processes_as_the_same_run(
    tmp_path, monkeypatch, capsys
) -> None:
    """Two processes at batch 1 are one at batch 2, and each goes on with what the other began."""
    values = {"checkpointing_steps": 2, "num_class_images": 4, "output_dtype": "float32"}
    # else a gradient that is nothing but rounding moves its weight as far as any other
    values["adam_epsilon"] = 1e-4
    two, one, begun_by_one = (tmp_path / name for name in ("two", "one", "begun by one"))
    for folder in (two, one, begun_by_one):
        folder.mkdir()
    ended = trained_together(two, stopping_after_two, **values)
    assert [code for code, _ in ended] == [130, 130], ended
    made = events(run_in(two), "progress")
    assert [event["done"] for event in made if event["name"] == "class images"] == [0, 1, 2], (
        "its half of four"
    )
    assert dreambooth("resume", run_in(two).path) == 0
    assert "gradient_accumulation_steps 2" in capsys.readouterr().err

    assert dreambooth("train", config(one, train_batch_size=2, **values)) == 0
    with monkeypatch.context() as patch:
        at_event(patch, "checkpoint", lambda found: found.order("stop"), step=2)
        assert dreambooth("train", config(begun_by_one, train_batch_size=2, **values)) == 130
    ended = done_together(begun_by_one, as_it_is, ("resume", run_in(begun_by_one).path))
    assert [code for code, _ in ended] == [0, 0], ended

    result = Path("out") / "sks.safetensors"
    differences = [apart(one / result, folder / result) for folder in (two, begun_by_one)]
    assert max(differences) < 2e-3
    losses = [
        [event["loss"] for event in events(run_in(folder), "step")] for folder in (one, two, begun_by_one)
    ]
    assert [len(told) for told in losses] == [4, 4, 4]
    for told in losses[1:]:
        assert told == pytest.approx(losses[0], rel=1e-4)
    assert not any("have changed" in event["text"] for event in events(run_in(two), "warning"))


@pytest.mark.parametrize(
    ("batch", "accumulation", "before", "now", "expected"),
    [
        (1, 1, 2, 1, (1, 2)),
        (2, 1, 1, 2, (1, 1)),
        (2, 3, 2, 1, (2, 6)),
        (2, 3, 2, 3, (2, 2)),
        (4, 1, 3, 2, (3, 2)),
        (3, 2, 2, 2, (3, 2)),
    ],
)
def test_the_images_of_a_step_stay_however_many_share_them(
    batch, accumulation, before, now, expected
) -> None:
    training = TrainingSettings(train_batch_size=batch, gradient_accumulation_steps=accumulation)
    made = shared_out(Settings(training=training), before, now).training
    assert (made.train_batch_size, made.gradient_accumulation_steps) == expected
    assert made.train_batch_size * made.gradient_accumulation_steps * now == batch * accumulation * before
    assert made.train_batch_size <= batch


@pytest.mark.parametrize(
    ("batch", "before", "now", "remedy"),
    [(3, 2, 4, "--num_processes 1, 2, 3 or 6"), (1, 1, 2, "without accelerate")],
)
def test_a_step_that_so_many_cannot_share_is_refused(batch, before, now, remedy) -> None:
    settings = Settings(training=TrainingSettings(train_batch_size=batch))
    with pytest.raises(InputError, match=f"{now} processes cannot share") as refused:
        shared_out(settings, before, now)
    assert remedy in refused.value.remedy


# ---- more processes than cards -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "cards"),
    [
        ({"LOCAL_WORLD_SIZE": "2"}, 2),
        ({"LOCAL_WORLD_SIZE": "4"}, 0),
        ({"LOCAL_WORLD_SIZE": "4", "ACCELERATE_USE_CPU": "true"}, 1),
        ({"WORLD_SIZE": "8", "LOCAL_RANK": "3"}, 4),
    ],
)
def test_as_many_processes_as_cards_or_none_at_all_are_fine(environ, cards) -> None:
    check_cards(environ, cards)


@pytest.mark.parametrize(
    ("environ", "cards", "said"),
    [
        ({"LOCAL_WORLD_SIZE": "2"}, 1, "2 processes were started on this machine, and one card is there"),
        (
            {"WORLD_SIZE": "8", "LOCAL_RANK": "3"},
            2,
            "4 processes were started on this machine, and 2 cards are there",
        ),
    ],
)
def test_more_processes_than_cards_are_refused(environ, cards, said) -> None:
    with pytest.raises(InputError, match=said) as refused:
        check_cards(environ, cards)
    assert f"--num_processes {cards}" in refused.value.remedy


@pytest.mark.parametrize(("rank", "messages"), [("0", 1), ("1", 0)])
def test_it_is_said_once_with_exit_code_2_before_anything_is_loaded(
    rank, messages, tmp_path, monkeypatch, capsys
) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": rank, "RANK": rank}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)  # accelerate leaves it behind
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(run, "make_plan", None)  # the first that would look at the model
    settings = config(tmp_path)
    before = tree(tmp_path)
    try:
        code = dreambooth("train", settings)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert capsys.readouterr().err.count("2 processes were started") == messages
    assert tree(tmp_path) == before
