import errno
import hashlib
import os
import stat
import sys

import pytest
import torch

from dreambooth.shared.errors import DreamboothError, InputError
from dreambooth.trainer.weights import Entry, open_weights, write_weights, writing
from dreambooth.trainer.weights.sink import PIECE, Sink

SUFFIXES = pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
TENSOR = torch.arange(PIECE // 2, dtype=torch.float32)  # two pieces


def entry(name="x", tensor=TENSOR, data=None):
    return Entry(name, tensor.dtype, tuple(tensor.shape), data or (lambda: tensor))


@SUFFIXES
def test_the_hash_and_the_size_are_those_of_the_file(tmp_path, suffix):
    written = write_weights(tmp_path / f"a{suffix}", [entry()], {})
    content = written.path.read_bytes()
    assert (written.nbytes, written.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@SUFFIXES
def test_an_existing_file_is_only_replaced_when_asked(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"precious")
    with pytest.raises(InputError, match="exists already"):
        write_weights(path, [entry()], {})
    assert path.read_bytes() == b"precious"
    write_weights(path, [entry()], {}, overwrite=True)
    assert torch.equal(open_weights(path).read("x"), TENSOR)


def test_an_unknown_suffix_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="names no format"):
        write_weights(tmp_path / "a.bin", [entry()], {})
    assert not list(tmp_path.iterdir())


@SUFFIXES
def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"precious")

    def broken():
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        write_weights(path, [entry(), entry("y", data=broken)], {}, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.read_bytes() == b"precious"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_cleaned_up(tmp_path, monkeypatch, number):
    put = Sink._put

    def full(self, piece):
        if self.position >= PIECE:
            raise OSError(number, os.strerror(number))
        put(self, piece)

    monkeypatch.setattr(Sink, "_put", full)
    with pytest.raises(DreamboothError, match="disk is full") as caught:
        write_weights(tmp_path / "a.safetensors", [entry()], {})
    assert not isinstance(caught.value, InputError) and caught.value.remedy
    assert not list(tmp_path.iterdir())


@SUFFIXES
def test_a_byte_that_does_not_reach_the_file_is_noticed(tmp_path, monkeypatch, suffix):
    put = Sink._put

    def careless(self, piece):
        spoiled = bytearray(piece)
        if len(spoiled) == PIECE:
            spoiled[1000] ^= 1
        put(self, memoryview(spoiled))

    monkeypatch.setattr(Sink, "_put", careless)
    with pytest.raises(DreamboothError, match="does not read back") as caught:
        write_weights(tmp_path / f"a{suffix}", [entry()], {})
    assert caught.value.where == str(tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())


def test_a_header_that_names_another_place_is_noticed(tmp_path, monkeypatch):
    honest = writing.safetensors_file.layout

    def shifted(entries, metadata):
        start, offsets = honest(entries, metadata)
        return start.replace(b"[0,4]", b"[4,8]").replace(b'"y"', b'"X"').replace(b'"x"', b'"y"').replace(
            b'"X"', b'"x"'
        ), offsets

    monkeypatch.setattr(writing.safetensors_file, "layout", shifted)
    small = [entry("x", torch.ones(1)), entry("y", torch.zeros(1))]
    with pytest.raises(DreamboothError, match="does not read back as it was meant"):
        write_weights(tmp_path / "a.safetensors", small, {})


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX's")
@SUFFIXES
def test_permissions_are_those_of_any_new_file(tmp_path, suffix):
    (tmp_path / "usual").touch()
    path = write_weights(tmp_path / f"a{suffix}", [entry()], {}).path
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_a_folder_that_is_not_there_is_an_error_of_the_input(tmp_path):
    with pytest.raises(InputError, match="cannot be written there"):
        write_weights(tmp_path / "nowhere" / "a.safetensors", [entry()], {})


def test_what_goes_before_the_rename_finds_no_file_yet_and_can_stop_it(tmp_path):
    path, seen = tmp_path / "a.safetensors", []

    def before():
        seen.append(path.exists())
        raise InputError("not this one")

    with pytest.raises(InputError, match="not this one"):
        write_weights(path, [entry()], {}, before_rename=before)
    assert seen == [False] and not list(tmp_path.iterdir())


@SUFFIXES
def test_at_most_three_tensors_are_in_memory(tmp_path, suffix):
    alive, most = [0], [0]

    class Counted:
        def __init__(self):
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= 1

    def data():
        tensor = torch.zeros(1000)
        tensor.counted = Counted()
        return tensor

    write_weights(tmp_path / f"a{suffix}", [entry(str(i), torch.zeros(1000), data) for i in range(8)], {})
    assert most[0] <= 3  # one is checked, one written, one asked for
