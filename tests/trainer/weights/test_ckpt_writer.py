import re
import sys
import zipfile

import pytest
import torch

from dreambooth.shared.errors import InputError
from dreambooth.trainer.weights import Entry, ckpt_writer, open_weights, write_weights
from dreambooth.trainer.weights.sink import Sink

TENSORS = {
    "half": torch.randn(3, 5).half(),
    "brain": torch.randn(7).bfloat16(),
    "single": torch.randn(2, 2, 1, 1),
    "whole": torch.arange(77)[None],
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
}
# What the WebUI's modules/safe.py lets pass: the records' names, and the globals of the pickle.
WEBUI_RECORD = re.compile(r"^([^/]+)/((data/\d+)|version|byteorder|.data/serialization_id|(data\.pkl))$")
WEBUI_GLOBALS = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    *(("torch", f"{kind}Storage") for kind in ("Float", "Half", "Int", "Long", "Double", "Byte", "BFloat16")),
}


def entries(tensors=TENSORS):
    return [
        Entry(name, tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor)
        for name, tensor in tensors.items()
    ]


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_torch_loads_it_with_weights_only(tmp_path):
    write_weights(tmp_path / "a.ckpt", entries(), {"key": "value"}, extras={"global_step": 5, "epoch": None})
    found = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert list(found) == ["state_dict", "global_step", "epoch", "metadata"]
    assert list(found["state_dict"]) == list(TENSORS) and found["global_step"] == 5
    for name, tensor in TENSORS.items():
        assert found["state_dict"][name].dtype == tensor.dtype
        assert torch.equal(found["state_dict"][name], tensor)
    assert torch.equal(
        torch.load(str(tmp_path / "a.ckpt"), weights_only=True, mmap=True)["state_dict"]["half"],
        TENSORS["half"],
    )


def test_our_reader_gives_back_tensors_extras_and_metadata(tmp_path):
    write_weights(tmp_path / "a.ckpt", entries(), {"key": "value"}, extras={"global_step": 5})
    found = open_weights(tmp_path / "a.ckpt")
    assert list(found.tensors) == list(TENSORS)
    assert (found.metadata, found.extras) == ({"key": "value"}, {"global_step": 5})
    assert all(torch.equal(found.read(name), tensor) for name, tensor in TENSORS.items())


def test_it_holds_nothing_that_the_webui_would_refuse(tmp_path):
    import pickletools

    write_weights(tmp_path / "a.ckpt", entries(), {"key": "value"}, extras={"global_step": 5, "done": True})
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        assert archive.testzip() is None
        assert all(WEBUI_RECORD.match(name) for name in archive.namelist())
        code = archive.read("archive/data.pkl")
    named = {tuple(str(arg).split(" ")) for op, arg, _ in pickletools.genops(code) if op.name == "GLOBAL"}
    assert named <= WEBUI_GLOBALS
    assert not {op.name for op, _, _ in pickletools.genops(code)} & {"STACK_GLOBAL", "INST", "OBJ"}


def test_every_storage_is_aligned_to_64_bytes(tmp_path):
    path = write_weights(tmp_path / "a.ckpt", entries(), {}).path
    found = open_weights(path)
    assert {found.place(name)[0] % 64 for name in TENSORS} == {0}


def test_a_dtype_that_the_format_cannot_name_is_refused(tmp_path):
    eight = {"x": torch.ones(3).to(torch.float8_e4m3fn)}
    with pytest.raises(InputError, match="cannot hold 'x'"):
        write_weights(tmp_path / "a.ckpt", entries(eight), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="needs a sparse file")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_beyond_four_gibibytes_everybody_finds_the_records(tmp_path):
    with Sink(tmp_path / "a.ckpt", hashed=False, checked=True) as sink:
        sink._file.write(b"PK\x03\x04")  # torch looks there to tell an archive
        sink.position = sink._file.seek(5 << 30)
        ckpt_writer.write(sink, entries(), {}, {})
        sink.finish()
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        assert archive.testzip() is None
    ours, theirs = open_weights(tmp_path / "a.ckpt"), torch.load(tmp_path / "a.ckpt", weights_only=True)
    for name, tensor in TENSORS.items():
        assert torch.equal(ours.read(name), tensor) and torch.equal(theirs["state_dict"][name], tensor)
