from __future__ import annotations

import errno
import functools
import itertools
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import racing

from dreambooth.shared import paths, runfolder
from dreambooth.shared.errors import DreamboothError, InputError
from dreambooth.shared.events import EventLog
from dreambooth.shared.lock import HeldElsewhere
from dreambooth.shared.runfolder import (
    COMMANDS,
    RunFolder,
    create_run,
    find_run,
    list_runs,
    read_result,
    summarize,
)


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs with spaces é"


@pytest.fixture
def run(runs_dir: Path) -> RunFolder:
    return create_run(runs_dir, "sks dog", "max_train_steps: 5\n")


def tell(run: RunFolder, *events: tuple[str, dict[str, object]]) -> None:
    log = EventLog(run.events)
    for name, fields in events:
        log.emit(name, **fields)
    log.close()


# making one


def test_a_new_run_has_its_config_and_its_folders_and_nothing_beside_it(
    runs_dir: Path, run: RunFolder
) -> None:
    assert run.path == runs_dir / "sks dog"
    assert run.name == "sks dog"
    assert run.config.read_text(encoding="utf-8") == "max_train_steps: 5\n"
    assert run.commands.is_dir() and run.samples.is_dir()
    assert list(runs_dir.iterdir()) == [run.path]


def test_every_file_of_a_run_lies_in_its_folder(run: RunFolder) -> None:
    named = [
        run.config, run.log, run.events, run.commands, run.lock, run.states, run.samples, run.result,
    ]  # fmt: skip
    assert [path.name for path in named] == [
        "config.yaml", "log.txt", "events.jsonl", "commands", "lock", "state", "samples", "result.json",
    ]  # fmt: skip
    assert {path.parent for path in named} == {run.path}


def test_a_name_that_is_taken_gets_a_number(runs_dir: Path) -> None:
    names = [create_run(runs_dir, "cat", f"seed: {n}\n").name for n in range(3)]
    assert names == ["cat", "cat-2", "cat-3"]
    assert [(runs_dir / name / "config.yaml").read_text() for name in names] == [
        "seed: 0\n",
        "seed: 1\n",
        "seed: 2\n",
    ]


def test_whatever_has_the_name_is_left_alone(runs_dir: Path) -> None:
    runs_dir.mkdir()
    (runs_dir / "cat").mkdir()  # an empty folder, which a rename would replace
    (runs_dir / "cat-2").write_text("a file")
    if os.name == "posix":
        (runs_dir / "cat-3").symlink_to("nowhere")
    else:
        (runs_dir / "cat-3").mkdir()
    assert create_run(runs_dir, "cat", "").name == "cat-4"
    assert list((runs_dir / "cat").iterdir()) == []
    assert (runs_dir / "cat-2").read_text() == "a file"


def test_creators_at_the_same_moment_get_a_folder_each(runs_dir: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, count, owners = context.Barrier(3), 10, ["a", "b", "c"]
    makers = [
        context.Process(target=racing.create_runs, args=(runs_dir, "cat", count, owner, start))
        for owner in owners
    ]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(60)
        assert maker.exitcode == 0
        maker.close()
    made = {path.name: (path / "config.yaml").read_text() for path in runs_dir.iterdir()}
    assert set(made) == {"cat", *(f"cat-{number}" for number in range(2, 3 * count + 1))}
    assert sorted(made.values()) == sorted([f"output_name: {owner}\n" for owner in owners] * count)


@pytest.mark.parametrize("name", ["../up", "a/b", "a\\b", ".", "", ".hidden", "con", "a:b", "x" * 300])
def test_a_name_that_leaves_its_folder_or_is_none_on_windows_is_refused(runs_dir: Path, name: str) -> None:
    with pytest.raises(InputError) as error:
        create_run(runs_dir, name, "")
    assert error.value.where == "output_name"
    assert not runs_dir.exists()


def test_a_run_can_have_a_name_that_looks_unfinished(runs_dir: Path) -> None:
    create_run(runs_dir, "a.partial", "")
    assert [run.name for run in list_runs(runs_dir)] == ["a.partial"]


def test_a_file_where_runs_should_be_is_named(runs_dir: Path) -> None:
    runs_dir.write_text("")
    with pytest.raises(InputError, match="is a file, not a folder") as error:
        create_run(runs_dir, "cat", "")
    assert error.value.where == "runs_dir"


def test_a_disk_that_is_full_leaves_no_half_made_run(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(paths.os, "fsync", full)
    with pytest.raises(DreamboothError, match="no space"):
        create_run(runs_dir, "cat", "seed: 1\n")
    assert list(runs_dir.iterdir()) == []


def test_a_rename_that_fails_for_another_reason_is_not_tried_for_ever(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(runfolder, "replace", fail)
    with pytest.raises(OSError, match="I/O error"):
        create_run(runs_dir, "cat", "")
    assert list(runs_dir.iterdir()) == []


# holding one


def test_a_run_is_alive_while_it_is_held(run: RunFolder) -> None:
    assert not run.is_alive()
    with run.hold():
        assert run.is_alive()
    assert not run.is_alive()


def test_a_run_that_is_held_refuses_another_trainer_in_one_message(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runfolder.lock, "hold", functools.partial(runfolder.lock.hold, patience=0))
    with run.hold(), pytest.raises(InputError) as error, run.hold():
        pass
    assert f"process {os.getpid()}" in error.value.what
    assert error.value.where == str(run.path)
    assert "stop" in error.value.remedy


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "broken"), HeldElsewhere(Path("another"), 3)])
def test_what_fails_inside_is_not_taken_for_a_failure_of_the_lock(run: RunFolder, failure: Exception) -> None:
    with pytest.raises(type(failure)) as error, run.hold():
        raise failure
    assert error.value is failure
    assert not run.is_alive()


@pytest.mark.parametrize(
    "failure", [PermissionError(errno.EACCES, "denied"), OSError(errno.ENOLCK, "no locks")]
)
def test_a_lock_that_nobody_can_take_is_an_error_about_the_place(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, failure: OSError
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(runfolder.lock, "_try_lock", refuse)
    with pytest.raises(InputError, match=str(failure.strerror)) as error, run.hold():
        pass
    assert error.value.where == str(run.path) and "runs_dir" in error.value.remedy


# commands


def test_commands_wait_in_the_order_in_which_they_were_given(run: RunFolder) -> None:
    assert run.waiting_commands() == []
    given = [(run.order(do), do) for do in COMMANDS * 4]
    assert [(command.id, command.do) for command in run.waiting_commands()] == given
    run.waiting_commands()[0].path.unlink()
    assert [(command.id, command.do) for command in run.waiting_commands()] == given[1:]


def test_commands_keep_their_order_also_in_one_moment_and_from_two_processes(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    for now, counter in ((1, itertools.count(7)), (2, itertools.count())):
        monkeypatch.setattr(runfolder.time, "time_ns", lambda now=now: now)
        monkeypatch.setattr(runfolder, "_order", counter)
        given += [run.order("save") for _ in range(12)]
    assert [command.id for command in run.waiting_commands()] == given


def test_a_command_is_a_small_file_of_its_own(run: RunFolder) -> None:
    identifier = run.order("stop")
    [file] = run.commands.iterdir()
    assert file.suffix == ".json"
    assert json.loads(file.read_bytes()) == {"id": identifier, "do": "stop"}


def test_a_run_that_lost_its_empty_folders_takes_commands_all_the_same(run: RunFolder) -> None:
    shutil.rmtree(run.commands)
    assert run.waiting_commands() == []
    run.order("save")
    assert [command.do for command in run.waiting_commands()] == ["save"]


def test_a_command_that_cannot_be_left_is_an_error_that_names_the_place(run: RunFolder) -> None:
    run.commands.rmdir()
    run.commands.touch()
    with pytest.raises(InputError, match="no command can be left") as error:
        run.order("stop")
    assert error.value.where == str(run.commands)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"3", b"\xff", b'{"do": "stop"}', b'{"id": "1"}', b'{"id": "1", "do": "dance"}',
        b'{"id": 1, "do": []}',
    ],
)  # fmt: skip
def test_a_file_that_is_no_command_is_removed_and_the_others_are_kept(run: RunFolder, content: bytes) -> None:
    (run.commands / "0.json").write_bytes(content)
    (run.commands / "0.json.x.partial").write_bytes(content)  # one that is just being written
    asked = run.order("stop")
    assert [command.id for command in run.waiting_commands()] == [asked]
    assert sorted(path.name for path in run.commands.iterdir()) == ["0.json.x.partial", f"{asked}.json"]


def test_a_command_that_cannot_be_read_at_this_moment_is_not_lost(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = run.order("stop")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(PermissionError(13, "in use")))
        assert run.waiting_commands() == []
    assert [command.id for command in run.waiting_commands()] == [asked]


# finding and listing


def test_a_run_is_found_by_its_folder_and_by_its_name(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_dir = run.path.parent
    assert find_run(str(run.path)) == run
    assert find_run("sks dog", runs_dir) == run
    monkeypatch.setenv("DREAMBOOTH_RUNS_DIR", str(runs_dir))
    assert find_run("sks dog") == run
    monkeypatch.chdir(runs_dir)
    assert find_run("./sks dog").path == run.path, "absolute, so that it survives a change of folder"


@pytest.mark.parametrize("name", ["nobody", "", ".", "..", "sks dog/config.yaml", "a\0b", "x" * 5000])
def test_a_run_that_is_not_there_is_an_error_that_says_where_it_was_looked_for(
    run: RunFolder, name: str
) -> None:
    with pytest.raises(InputError, match="no such run") as error:
        find_run(name, run.path.parent)
    assert error.value.where == name
    assert str(run.path.parent) in error.value.remedy


def test_there_are_no_runs_where_there_is_no_folder(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "nothing") == []
    (tmp_path / "file").touch()
    assert list_runs(tmp_path / "file") == []


def test_runs_are_listed_with_the_newest_first_and_nothing_else_is(runs_dir: Path) -> None:
    for name in ("one", "two", "three"):
        tell(create_run(runs_dir, name, ""), ("plan", {"steps": 5}))
    (runs_dir / "no run").mkdir()
    (runs_dir / "file").touch()
    (runs_dir / ".four.1234.partial").mkdir()
    (runs_dir / ".four.1234.partial" / "config.yaml").touch()
    assert [run.name for run in list_runs(runs_dir)] == ["three", "two", "one"]


def test_a_run_that_is_deleted_while_runs_are_listed_is_left_out(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        create_run(runs_dir, name, "")
    real = summarize

    def summarize_late(run: RunFolder) -> object:
        shutil.rmtree(runs_dir / "one", ignore_errors=True)
        return real(run)

    monkeypatch.setattr(runfolder, "summarize", summarize_late)
    assert [run.name for run in list_runs(runs_dir)] == ["two"]


PLAN = ("plan", {"steps": 5})
STEP = ("step", {"step": 3})
STOPPED = ("phase", {"name": "stopped", "of": 0})
ERROR = ("error", {"text": "no luck", "remedy": "try again"})
DONE = ("done", {"path": "x"})


@pytest.mark.parametrize(
    ("events", "state", "step"),
    [
        ((), "interrupted", 0),
        ((PLAN,), "interrupted", 0),
        ((PLAN, ("phase", {"name": "training", "of": 5}), STEP), "interrupted", 3),
        ((PLAN, STEP, STOPPED), "stopped", 3),
        ((PLAN, STEP, ERROR), "failed", 3),
        ((PLAN, STEP, DONE), "finished", 3),
        ((PLAN, STEP, STOPPED, PLAN), "interrupted", 0),  # it began anew, since nothing was saved
        ((PLAN, STEP, ERROR, PLAN, STEP, STEP), "interrupted", 3),
        ((PLAN, STEP, ERROR, PLAN, ("checkpoint", {"step": 5}), DONE), "finished", 5),
        ((PLAN, STEP, ("step", {"step": 2})), "interrupted", 2),
        ((PLAN, ERROR, DONE), "finished", 0),
        ((PLAN, ("step", {"step": "many"}), ("step", {})), "interrupted", 0),
    ],
)
def test_the_state_of_a_run_that_is_not_alive_is_what_its_last_life_said(
    run: RunFolder, events: tuple, state: str, step: int
) -> None:
    tell(run, *events)
    summary = summarize(run)
    assert (summary.state, summary.step) == (state, step)
    assert summary.steps == (5 if events else 0)
    assert summary.error == ("no luck" if state == "failed" else "")
    with run.hold():
        assert summarize(run).state == "running"


def test_a_summary_names_the_run_and_when_it_changed(run: RunFolder) -> None:
    before = summarize(run)
    assert (before.name, before.path) == (run.name, run.path)
    assert before.changed == run.config.stat().st_mtime
    run.events.write_text('{"time": 1234.5, "event": "plan", "steps": 5}\n')
    assert summarize(run).changed == 1234.5


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff"])
def test_a_result_that_is_not_there_or_not_whole_is_empty(run: RunFolder, content: bytes | None) -> None:
    if content is not None:
        run.result.write_bytes(content)
    assert read_result(run) == summarize(run).result == {}


def test_a_result_is_what_its_file_says(run: RunFolder) -> None:
    run.result.write_text('{"path": "dög.safetensors"}', encoding="utf-8")
    assert read_result(run) == summarize(run).result == {"path": "dög.safetensors"}
