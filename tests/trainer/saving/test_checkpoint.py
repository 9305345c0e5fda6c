import builtins
import errno
import io
import itertools
import json
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dreambooth.shared.errors import DreamboothError, RunFailed
from dreambooth.trainer.saving import checkpoint
from dreambooth.trainer.saving.checkpoint import (
    Progress,
    State,
    latest_step,
    load_state,
    save_state,
    saved_steps,
)


def state(step: int, *, averages=True) -> State:
    """All of it depends on the step."""
    torch.manual_seed(step)
    weights = {
        name: {"a.weight": torch.randn(5, 3), "b": torch.randn(7)} for name in ("unet", "text_encoder")
    }
    moments = {"step": torch.tensor(float(step)), "exp_avg": torch.randn(5, 3)}
    group = {"lr": 1e-3 * step, "betas": (0.9, 0.999), "params": [0], "name": "unet", "fused": True}
    return State(
        progress=Progress(step, ema_updates=step * 2),
        weights=weights,
        averages={"unet": {"b": torch.randn(7)}} if averages else {},
        optimizer={"state": {0: moments}, "param_groups": [group]},
        scaler={"scale": 2.0**step, "_growth_tracker": step},
    )


def content(found: State) -> list[bytes]:
    """A state's bits, to be compared."""
    tensors = [
        (kind, component, name, tensor.dtype, tensor.numpy().tobytes())
        for kind, parts in (("weights", found.weights), ("averages", found.averages))
        for component, named in sorted(parts.items())
        for name, tensor in sorted(named.items())
    ]
    remembered = [(key, value.numpy().tobytes()) for key, value in found.optimizer["state"][0].items()]
    rest = (found.progress, found.optimizer["param_groups"], found.scaler)
    return [repr(part).encode() for part in (tensors, remembered, rest)]


@pytest.fixture
def states(tmp_path) -> Path:
    return tmp_path / "state"


def is_step(found: State, step: int) -> bool:
    return content(found) == content(state(step))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- what is saved comes back --------------------------------------------------------------------------------------


def test_a_state_comes_back_bit_for_bit(states):
    assert save_state(states, state(7)) == states / "step-7"
    assert latest_step(states) == 7
    assert is_step(load_state(states), 7)


def test_tensors_of_any_layout_and_eight_bits_come_back(states):
    given = state(1)
    given.weights["unet"]["view"] = torch.arange(12.0).reshape(3, 4).t()
    given.weights["unet"]["scalar"] = torch.tensor(3.0)
    given.optimizer["state"][0]["codes"] = {"state1": torch.arange(256, dtype=torch.uint8)}
    save_state(states, given)
    found = load_state(states)
    assert torch.equal(found.weights["unet"]["view"], given.weights["unet"]["view"])
    assert found.weights["unet"]["scalar"].shape == ()
    assert torch.equal(found.optimizer["state"][0]["codes"]["state1"], torch.arange(256, dtype=torch.uint8))


def test_torch_2_1s_warning_of_its_own_loading_is_nobodys_business(states, monkeypatch):
    save_state(states, state(3), keep=2)
    load = torch.load

    def warning(*given, **named):
        warnings.warn(
            "TypedStorage is deprecated. It will be removed in the future", UserWarning, stacklevel=2
        )
        return load(*given, **named)

    monkeypatch.setattr(torch, "load", warning)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        load_state(states)
    assert told == []


def test_who_only_writes_a_checkpoint_needs_nothing_of_the_optimizer(states):
    """Some keep tensors of their own kinds, which only their library can read."""
    save_state(states, state(4))
    (states / "step-4" / "optimizer.pt").write_bytes(b"of another library")
    found = load_state(states, weights_alone=True)
    whole = state(4)
    assert torch.equal(found.weights["unet"]["b"], whole.weights["unet"]["b"])
    assert torch.equal(found.averages["unet"]["b"], whole.averages["unet"]["b"])
    assert found.progress == whole.progress and found.optimizer == {} == found.scaler
    with pytest.raises(RunFailed, match="cannot be read"):
        load_state(states)


def test_without_averages_there_are_none(states):
    save_state(states, state(1, averages=False))
    assert load_state(states).averages == {}
    assert names(states / "step-1") == {
        "unet.weights.safetensors", "text_encoder.weights.safetensors", "optimizer.pt", "state.json",
    }  # fmt: skip


def test_a_state_that_is_there_is_not_written_again(states, monkeypatch):
    save_state(states, state(4))
    monkeypatch.setattr(checkpoint, "_write", lambda *_: pytest.fail("written again"))
    assert save_state(states, state(4)) == states / "step-4"


# ---- which state ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_newest_ones_are_kept_as_many_as_asked_for(states, keep):
    for step in (2, 4, 6, 10):
        save_state(states, state(step), keep=keep)
    assert saved_steps(states) == [2, 4, 6, 10][-keep:]
    assert names(states) == {f"step-{step}" for step in saved_steps(states)} | {"latest.json"}
    assert is_step(load_state(states), 10)
    if keep > 1:
        assert is_step(load_state(states, 6), 6)


def test_the_pointer_decides_which_state_is_the_newest(states):
    for step in (1, 2, 3):
        save_state(states, state(step), keep=3)
    (states / "latest.json").write_text(json.dumps({"format": 1, "step": 2, "folder": "step-2"}))
    assert latest_step(states) == 2
    assert is_step(load_state(states), 2)


@pytest.mark.parametrize("pointer", [None, "", "{", "[]", '{"step": "x"}', '{"step": 77}'])
def test_without_a_good_pointer_the_newest_whole_state_counts(states, pointer):
    for step in (9, 10):
        save_state(states, state(step), keep=2)
    (states / "latest.json").unlink()
    if pointer is not None:
        (states / "latest.json").write_text(pointer)
    (states / "step-11").mkdir()  # no state.json: not whole
    (states / "step-12.partial").mkdir()
    assert latest_step(states) == 10
    assert is_step(load_state(states), 10)


def test_a_state_that_is_ahead_of_the_pointer_never_costs_the_pointed_one(states):
    """Killed between a rename and its pointer, resumed from the state before, stopped before it came there again."""
    save_state(states, state(9))
    (states / "latest.json").write_text(json.dumps({"step": 4}))
    save_state(states, state(4), keep=2)
    assert latest_step(states) == 4
    save_state(states, state(5), keep=1)
    assert latest_step(states) == 5 and saved_steps(states) == [5]
    assert is_step(load_state(states), 5)


def test_nothing_saved_is_said_with_what_is_there(states):
    assert latest_step(states) is None
    with pytest.raises(RunFailed, match="there is no saved state") as failure:
        load_state(states)
    assert "none" in failure.value.remedy
    for step in (1, 2):
        save_state(states, state(step), keep=2)
    with pytest.raises(RunFailed, match="no saved state of step 5") as failure:
        load_state(states, 5)
    assert "1, 2" in failure.value.remedy


# ---- damage --------------------------------------------------------------------------------------------------------

FILES = (
    "unet.weights.safetensors",
    "text_encoder.weights.safetensors",
    "unet.average.safetensors",
    "optimizer.pt",
)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other"])
@pytest.mark.parametrize("name", [*FILES, "state.json"])
def test_a_damaged_state_is_one_message_that_names_it(states, name, damage):
    save_state(states, state(1), keep=2)
    save_state(states, state(2), keep=2)
    path = states / "step-2" / name
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"empty": b"", "cut": whole[: len(whole) // 2], "other": b"\x07" * len(whole)}[damage]
        )
    if name == "state.json" and damage == "missing":
        assert is_step(load_state(states), 1)  # that is no state at all
        return
    with pytest.raises(RunFailed, match="the saved state cannot be read") as failure:
        load_state(states)
    assert failure.value.where == str(states / "step-2")
    assert name in failure.value.what and "\n" not in failure.value.what
    assert "delete this folder" in failure.value.remedy and "step 1" in failure.value.remedy
    shutil.rmtree(states / "step-2")
    assert is_step(load_state(states), 1)


def test_the_only_state_damaged_means_from_the_beginning(states):
    save_state(states, state(1))
    (states / "step-1" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(RunFailed) as failure:
        load_state(states)
    assert "from the beginning" in failure.value.remedy
    shutil.rmtree(states / "step-1")
    assert latest_step(states) is None


@pytest.mark.parametrize(
    ("code", "said"), [(errno.EINVAL, r"optimizer\.pt is damaged"), (errno.EIO, os.strerror(errno.EIO))]
)
def test_what_torch_makes_of_a_cut_file_is_damage_and_what_the_disk_says_is_not(
    states, monkeypatch, code, said
):
    save_state(states, state(1))
    (states / "step-1" / "optimizer.pt").write_bytes(b"PK")

    def fail(*arguments, **named):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(RunFailed, match=said):
        load_state(states)


@pytest.mark.parametrize("about", [{"format": 99}, {"format": 1}, []])
def test_a_description_that_is_not_understood_is_said(states, about):
    save_state(states, state(1))
    (states / "step-1" / "state.json").write_text(json.dumps(about))
    with pytest.raises(RunFailed, match="cannot be read"):
        load_state(states)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_state_never_runs_code(states, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_state(states, state(1))
    path = states / "step-1" / "optimizer.pt"
    torch.save({"optimizer": {}, "scaler": {}, "evil": Evil()}, path)
    with pytest.raises(RunFailed, match="cannot be read"):
        load_state(states)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RunFailed, match="cannot be read"):
        load_state(states)
    assert not (tmp_path / "owned").exists()


# ---- killed, and the disk full, at every moment --------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone: from here on nothing that it does has an effect."""


class Disk:
    """Counts what is done to files, and ends it at the `last`-th: the process dies, or the disk is full.

    A write that is cut short leaves a half. A dead process does nothing more; on a full disk things can be removed.
    """

    ADD = ("mkdir", "replace", "fsync", "chmod", "open")
    REMOVE = ("unlink", "rmdir")

    def __init__(self, patch: pytest.MonkeyPatch, last: int, *, full: bool) -> None:
        self.count, self.last, self.full = 0, last, full
        self.over = False
        for name in (*self.ADD, *self.REMOVE):
            patch.setattr(os, name, self._counted(name, getattr(os, name)))
        self._open = io.open
        patch.setattr(io, "open", self.open)
        patch.setattr(builtins, "open", self.open)

    def _counted(self, name, real):
        def act(*args, **options):
            if name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR):
                return real(*args, **options)
            if not self.full or name in self.ADD:
                self.allow()
            return None if name == "fsync" else real(*args, **options)  # a real one takes milliseconds

        return act

    def allow(self) -> None:
        self.count += 1
        if self.over or self.count == self.last:
            self.over = True
            raise OSError(errno.ENOSPC, "No space left on device") if self.full else Killed

    def open(self, file, mode="r", *args, **options):
        if not set(mode) & set("wxa+"):
            return self._open(file, mode, *args, **options)
        if not isinstance(file, int):
            self.allow()
        return Written(self, self._open(file, mode, *args, **options))


class Written:
    """A file whose writes are counted."""

    def __init__(self, disk: Disk, file) -> None:
        self.disk, self.file = disk, file

    def write(self, data) -> int:
        try:
            self.disk.allow()
        except BaseException:
            self.file.write(memoryview(data)[: len(data) // 2])
            self.file.flush()
            raise
        return self.file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


def small(step: int) -> State:
    """A state that is written quickly."""
    torch.manual_seed(step)
    weights = {"unet": {"a": torch.randn(9)}}
    return State(Progress(step), weights, {}, {"state": {0: {"m": torch.randn(9)}}, "param_groups": []}, {})


def moments(folder: Path, *, full: bool, before: bool, every: int = 1):
    """Saves state 2 (over state 1, with `before`), each time ended at a later moment, `every` so many.

    Yields the folder and the error that ended the save, until a save gets through.
    """
    if before:
        save_state(folder / "before", small(1))
    for last in itertools.count(1, every):
        states = folder / str(last)
        if before:
            shutil.copytree(folder / "before", states)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, last, full=full)
            try:
                save_state(states, small(2))
                ended = None
            except (Killed, DreamboothError) as error:
                ended = error
        if not disk.over:
            assert disk.count < last and is_small(states, 2)
            assert last > 15  # there are that many moments, more where torch writes in smaller parts
            return
        yield states, ended


def is_small(states: Path, step: int) -> bool:
    return latest_step(states) == step and content(load_state(states)) == content(small(step))


@pytest.fixture
def fast_disk(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder in memory where there is such a thing, that nobody waits for."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def check_goes_on(states: Path) -> None:
    """A next life saves as if nothing had been, and nothing is left over."""
    save_state(states, small(3))
    assert is_small(states, 3)
    assert names(states) == {"step-3", "latest.json"}


def test_a_kill_at_any_moment_of_a_save_leaves_the_state_before_or_the_one_after(fast_disk):
    found = set()
    for states, ended in moments(fast_disk, full=False, before=True):
        step = latest_step(states)
        assert step in (1, 2) and is_small(states, step)
        if ended is None:  # what is old could not be removed any more
            assert step == 2
        found.add(step)
        check_goes_on(states)
    assert found == {1, 2}


def test_a_kill_at_any_moment_of_the_first_save_leaves_it_or_nothing(fast_disk):
    found = set()
    for states, _ in moments(fast_disk, full=False, before=False, every=3):
        step = latest_step(states)
        assert step is None or is_small(states, 2)
        found.add(step)
        check_goes_on(states)
    assert found == {None, 2}


def test_a_full_disk_at_any_moment_of_a_save_is_one_message_and_leaves_a_whole_state(fast_disk):
    refused = []
    for states, ended in moments(fast_disk, full=True, before=True, every=2):
        step = latest_step(states)
        assert step in (1, 2) and is_small(states, step)
        if ended is None:  # it only could not give the old one another name
            assert step == 2
        else:
            refused.append(step)
            assert type(ended) is DreamboothError
            assert "no space" in ended.what and "make room" in ended.remedy
        assert not [path for path in states.rglob("*") if "partial" in path.name]
        check_goes_on(states)
    assert refused[:8] == [1] * 8
    assert refused.count(2) <= 1  # where the pointer is written and cannot be synced any more


def test_an_error_that_is_not_a_full_disk_is_not_called_one(states, monkeypatch):
    save_state(states, state(1))

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "_torch_save", broken)
    with pytest.raises(OSError, match="Input/output error"):
        save_state(states, state(2))
    assert is_step(load_state(states), 1) and names(states) == {"step-1", "latest.json"}


def test_what_torch_cannot_save_is_said_as_torch_says_it(states):
    given = state(1)
    given.optimizer["state"][0]["odd"] = lambda: None
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_state(states, given)
    assert names(states) == set()
