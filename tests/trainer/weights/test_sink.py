import errno
import hashlib
import threading

import pytest
import torch

from dreambooth.trainer.weights import Entry
from dreambooth.trainer.weights.sink import PIECE, PIECES, Sink


def bytes_entry(name, data):
    """An entry that is read piece by piece, as those of a file are."""

    def raw(start, memory):
        memory[:] = data[start : start + len(memory)]

    return Entry(name, torch.uint8, (len(data),), lambda: torch.frombuffer(data, dtype=torch.uint8), raw)


def pattern(length, first):
    return bytearray((first + i * 7 + (i >> 8)) % 251 for i in range(1 << 10)) * (
        length // (1 << 10)
    ) + b"x" * (length % (1 << 10))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_tensors_across_the_borders_of_pieces_arrive_whole_in_order_and_are_hashed(tmp_path, as_tensor):
    lengths = [3, PIECE - 1, 0, 2 * PIECE + 5, 1, PIECE, 77]
    contents = [pattern(length, index) for index, length in enumerate(lengths)]
    with Sink(tmp_path / "a", hashed=True, checked=True) as sink:
        sink.write(b"start")
        for index, data in enumerate(contents):
            entry = bytes_entry(str(index), data)
            if as_tensor and data:
                entry = Entry(entry.name, entry.dtype, entry.shape, entry.data)
            sink.write_entry(entry)
        sink.finish()
    whole = b"start" + b"".join(contents)
    assert (tmp_path / "a").read_bytes() == whole and sink.position == len(whole)
    assert sink.hexdigest() == hashlib.sha256(whole).hexdigest() and not sink.wrong
    for index, data in enumerate(contents):
        start, length = sink.places[str(index)]
        assert whole[start : start + length] == data


def test_a_disk_that_fails_stops_the_taking_long_before_the_end(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(Sink, "_put", full)
    taken, data = [], bytearray(PIECE)
    with pytest.raises(OSError, match="no space"), Sink(tmp_path / "a", hashed=True, checked=True) as sink:
        for index in range(4 * PIECES):
            sink.write_entry(bytes_entry(str(index), data))
            taken.append(index)
    assert len(taken) <= PIECES


def test_what_fails_at_the_very_end_is_an_error_too(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(Sink, "_put", full)
    with pytest.raises(OSError, match="no space"), Sink(tmp_path / "a", hashed=False, checked=False) as sink:
        sink.write(b"a little")
        sink.finish()


def test_a_tensor_that_cannot_be_made_leaves_no_thread_behind(tmp_path):
    def broken(start, memory):
        raise RuntimeError("the source is gone")

    before = threading.active_count()
    with (
        pytest.raises(RuntimeError, match="source is gone"),
        Sink(tmp_path / "a", hashed=True, checked=True) as sink,
    ):
        sink.write(bytes(3 * PIECE))
        sink.write_entry(Entry("x", torch.uint8, (5,), lambda: torch.zeros(5, dtype=torch.uint8), broken))
    assert threading.active_count() == before
