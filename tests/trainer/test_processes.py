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
from tiny import config, dreambooth
from watching import events, run_in

from dreambooth.shared.errors import DreamboothError, RunFailed
from dreambooth.trainer import encoding, engine, keeper, previews
from dreambooth.trainer.processes import ALONE

PATIENCE = 180  # seconds, on a machine with much other work
Spoil = Callable[[int], None]  # changes the process of that index before it begins
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are started by forking here")


def _life(index: int, folder: Path, settings: Path, port: int, spoil: Spoil) -> None:
    os.environ |= {
        "WORLD_SIZE": "2", "RANK": str(index), "LOCAL_RANK": str(index), "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with (folder / f"said by {index}").open("w", encoding="utf-8") as sys.stderr:
        faulthandler.dump_traceback_later(PATIENCE - 20, file=sys.stderr)  # where it waits, if it ever does
        spoil(index)
        code = dreambooth("train", settings)
    os._exit(code)


def trained_together(folder: Path, spoil: Spoil, **values) -> list[tuple[int | None, str]]:
    """(exit code, what it said) of each of two processes of one run."""
    settings = config(folder, **values)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_life, args=(index, folder, settings, port, spoil)) for index in range(2)
    ]
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
    def full(*arguments, **options):
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
