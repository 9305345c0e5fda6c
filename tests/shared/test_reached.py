"""How far a run came, and what of that an end without a save loses."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth.shared.events import EventLog
from dreambooth.shared.reached import Reached, reached
from dreambooth.shared.runfolder import RunFolder, create_run, saved_step, summarize


@pytest.mark.parametrize(
    ("step", "saved", "loss", "beginning"),
    [
        (137, 100, "37 steps are lost, those since step 100", "goes on from step 100, the last that was saved"),
        (101, 100, "1 step is lost, those since step 100", "goes on from step 100, the last that was saved"),
        (37, 0, "37 steps are lost, since nothing was saved yet", "begins with the first step"),
        (100, 100, "", "goes on from step 100, the last that was saved"),
        (0, 0, "", "begins with the first step"),
    ],
)  # fmt: skip
def test_what_is_lost_and_where_it_goes_on_is_said_with_numbers(step, saved, loss, beginning) -> None:
    found = Reached(step, saved)
    assert (found.loss(), found.beginning()) == (loss, beginning)


def emitted(run: RunFolder, *events: tuple[str, dict]) -> RunFolder:
    log = EventLog(run.events)
    for name, fields in events:
        log.emit(name, **fields)
    log.close()
    return run


def test_it_is_read_from_the_runs_folder(tmp_path: Path) -> None:
    run = create_run(tmp_path, "run", "")
    assert reached(run) == Reached(0, 0)
    for name in ("step-4", "step-10", "step-12.partial", "else"):
        (run.states / name).mkdir(parents=True)
        (run.states / name / "state.json").write_text("{}")
    (run.states / "step-11").mkdir()  # half removed
    assert saved_step(run) == 10
    emitted(run, ("plan", {"steps": 20}), ("step", {"step": 13}))
    assert reached(run) == Reached(13, 10)
    assert (summarize(run).step, summarize(run).saved) == (13, 10)


def test_steps_that_an_earlier_life_lost_are_not_lost_again(tmp_path: Path) -> None:
    run = create_run(tmp_path, "run", "")
    first = (("plan", {"steps": 20}), ("checkpoint", {"step": 10, "path": ""}), ("step", {"step": 13}))
    emitted(run, *first, ("plan", {"steps": 20}))
    (run.states / "step-10").mkdir(parents=True)
    (run.states / "step-10" / "state.json").write_text("{}")
    assert reached(run) == Reached(10, 10)
