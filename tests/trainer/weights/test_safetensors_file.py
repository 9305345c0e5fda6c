import json
import os
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreambooth.shared.errors import DreamboothError, InputError
from dreambooth.trainer.weights import Entry, open_weights, write_weights

MIXED = {
    "b.half": torch.randn(3, 5).half(),
    "a.brain": torch.randn(7).bfloat16(),
    "a.byte": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "flag": torch.tensor([True, False]),
    "whole": torch.arange(4),
    "single": torch.randn(2, 2, 1, 1),
    "double": torch.randn(3, dtype=torch.float64),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "eight": torch.randn(5).to(torch.float8_e4m3fn),
}


def entries_of(tensors):
    return [
        Entry(name, tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor)
        for name, tensor in tensors.items()
    ]


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and bytes_of(one) == bytes_of(other)


def bytes_of(tensor):
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def test_every_dtype_that_safetensors_writes_reads_the_same(tmp_path):
    save_file(MIXED, tmp_path / "a.safetensors", metadata={"key": "value"})
    found = open_weights(tmp_path / "a.safetensors")
    assert found.format == "safetensors" and found.metadata == {"key": "value"}
    assert set(found.tensors) == set(MIXED)
    for name, tensor in MIXED.items():
        assert same(found.read(name), tensor)


def test_safetensors_reads_the_same_from_what_is_written_here(tmp_path):
    write_weights(tmp_path / "a.safetensors", entries_of(MIXED), {"key": "värde"})
    found = load_file(tmp_path / "a.safetensors")
    assert all(same(found[name], tensor) for name, tensor in MIXED.items()) and len(found) == len(MIXED)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"key": "värde"}


def test_the_order_of_the_names_is_kept_though_the_bytes_are_ordered_by_size(tmp_path):
    path = write_weights(tmp_path / "a.safetensors", entries_of(MIXED), {}).path
    assert list(open_weights(path).tensors) == list(MIXED)
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    assert start % 8 == 0
    for name, tensor in MIXED.items():
        assert (start + header[name]["data_offsets"][0]) % tensor.dtype.itemsize == 0


def test_reading_into_another_dtype_casts_as_torch_does(tmp_path):
    tensor = torch.randn(3000, 1500).half()
    save_file({"x": tensor}, tmp_path / "a.safetensors")
    out = torch.empty(3000, 1500)
    open_weights(tmp_path / "a.safetensors").read_into("x", out)
    assert torch.equal(out, tensor.float())


def test_tensors_that_are_not_aligned_are_read(tmp_path):
    header = {
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "single": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + b"\x07" + struct.pack("<f", 1.5)
    )
    assert open_weights(tmp_path / "a.safetensors").read("single").item() == 1.5


def test_a_safetensors_file_called_ckpt_is_read_for_what_it_is(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "a.ckpt")
    assert open_weights(tmp_path / "a.ckpt").format == "safetensors"


def refused(path):
    with pytest.raises(InputError) as caught:
        open_weights(path)
    assert caught.value.where == str(path) and caught.value.remedy
    return caught.value.what


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"a note about the model, not the model itself\n" * 30, "text file"),
        (b"short", "text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>" + b" " * 400, "web page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(600), "picture"),
        (b"GGUF" + bytes(600), "GGUF"),
        (bytes(range(256)) * 4, "not a model"),
        (struct.pack("<Q", 40) + b"{" + bytes(60), "not JSON"),
        (struct.pack("<Q", 12) + b'["a", "b"]  ', "not a table"),
        (struct.pack("<Q", 9999) + b'{"x":{"dtype":"F32"', "truncated within its header"),
    ],
)
def test_what_is_no_model_is_named_for_what_it_is(tmp_path, content, expected):
    (tmp_path / "a.safetensors").write_bytes(content)
    assert expected in refused(tmp_path / "a.safetensors")


def test_a_truncated_file_names_the_tensor_that_is_cut(tmp_path):
    save_file({"x": torch.ones(1000)}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-10])
    assert "truncated: 'x'" in refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}, "'F4', which is not supported"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "does not agree with its shape"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}, "does not agree with its shape"),
        ({"dtype": "F32", "shape": "1"}, "malformed"),
        ("x", "malformed"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, row, expected):
    text = json.dumps({"x": row}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))
    assert expected in refused(tmp_path / "a.safetensors")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert "no such model file" in refused(tmp_path / "nothing.safetensors")
    assert "not a file" in refused(tmp_path)


def test_a_file_that_changes_while_it_is_in_use_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(10)}, path)
    found = open_weights(path)
    save_file({"x": torch.zeros(10)}, path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DreamboothError, match="changed while it was in use"):
        found.read("x")
