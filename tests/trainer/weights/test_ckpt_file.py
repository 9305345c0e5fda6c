import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy
import pytest
import torch

from dreambooth.shared.errors import InputError
from dreambooth.trainer.weights import open_weights


def save(path, content, **options):
    torch.save(content, path, **options)
    return open_weights(path)


def refused(path):
    with pytest.raises(InputError) as caught:
        open_weights(path)
    assert caught.value.where == str(path) and caught.value.remedy
    return caught.value.what


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
        pytest.param(
            torch.float8_e4m3fn,
            marks=pytest.mark.skipif(
                not hasattr(torch._utils, "_rebuild_tensor_v3"), reason="this torch cannot save it"
            ),
        ),
    ],
)
def test_every_dtype_is_read_as_torch_reads_it(tmp_path, dtype):
    tensor = torch.arange(-4, 8).reshape(3, 4).to(dtype)
    found = save(tmp_path / "a.ckpt", {"state_dict": {"x": tensor}}).read("x")
    assert found.dtype == dtype and torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


def test_views_shared_storages_and_parameters_are_read_as_they_look(tmp_path):
    base = torch.randn(6, 5)
    tensors = OrderedDict(
        whole=base,
        transposed=base.t(),
        row=base[2],
        strided=base[1::2, ::2],
        expanded=base[:, :1].expand(6, 4),
        channels_last=torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        parameter=torch.nn.Parameter(base[3:]),
        scalar=base[0, 0],
        empty=base[:0],
    )
    found = save(tmp_path / "a.ckpt", {"state_dict": tensors})
    assert list(found.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert found.tensors[name].shape == tuple(tensor.shape)
        assert found.read(name).is_contiguous() and torch.equal(found.read(name), tensor.detach())


def test_a_view_is_cast_while_it_is_read(tmp_path):
    base = torch.randn(6, 5)
    out = torch.empty(5, 6, dtype=torch.float16)
    save(tmp_path / "a.ckpt", {"x": base.t()}).read_into("x", out)
    assert torch.equal(out, base.t().half())


def test_the_state_dict_may_stand_in_a_wrapper_or_alone(tmp_path):
    tensors = {"x": torch.ones(2), "y": torch.zeros(3)}
    wrapped = save(tmp_path / "a.ckpt", {"state_dict": tensors, "global_step": 7, "epoch": 1})
    alone = save(tmp_path / "b.ckpt", {**tensors, "note": "plain"})
    assert list(wrapped.tensors) == list(alone.tensors) == ["x", "y"]
    assert wrapped.extras == {"global_step": 7, "epoch": 1} and alone.extras == {"note": "plain"}


def test_a_modules_own_state_dict_is_read(tmp_path):
    module = torch.nn.Linear(3, 2)
    found = save(tmp_path / "a.ckpt", module.state_dict())
    assert torch.equal(found.read("weight"), module.weight.detach())


def test_what_is_no_plain_value_beside_the_weights_is_named_as_dropped(tmp_path):
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}}
    found = save(
        tmp_path / "a.ckpt",
        {
            "state_dict": {"x": torch.ones(1)},
            "optimizer_states": [optimizer],
            "loops": {"epoch": [1, None, "a"]},
        },
    )
    assert found.dropped == ("optimizer_states",) and found.extras == {"loops": {"epoch": [1, None, "a"]}}


@pytest.fixture
def lightning(monkeypatch):
    """A module of Lightning's name, there while a file is written and gone when it is read."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")

    class ModelCheckpoint:
        def __init__(self):
            self.best = numpy.float64(0.25)

    ModelCheckpoint.__module__ = module.__name__
    ModelCheckpoint.__qualname__ = "ModelCheckpoint"
    module.ModelCheckpoint = ModelCheckpoint
    for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return ModelCheckpoint


def test_lightnings_files_load_and_their_callbacks_stay_inert(tmp_path, lightning, monkeypatch):
    content = {
        "state_dict": OrderedDict(x=torch.ones(2)),
        "global_step": 840000,
        "callbacks": {
            lightning: {"monitor": "val", "best_model_score": torch.tensor(0.1), "object": lightning()}
        },
        "lr_schedulers": [{"base_lrs": numpy.array([1e-4]), "scale": numpy.float32(2.0), "kinds": {1, 2}}],
    }
    torch.save(content, tmp_path / "a.ckpt")
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, name)
    found = open_weights(tmp_path / "a.ckpt")
    assert torch.equal(found.read("x"), torch.ones(2))
    assert found.extras == {"global_step": 840000}
    assert found.dropped == ("callbacks", "lr_schedulers")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_that_torch_can_be_told_to_use_is_read(tmp_path, protocol):
    content = {"state_dict": OrderedDict(x=torch.ones(2, 3))}
    found = save(tmp_path / "a.ckpt", content, pickle_protocol=protocol)
    assert torch.equal(found.read("x"), torch.ones(2, 3))


def test_the_old_format_and_a_bare_pickle_are_refused_by_name(tmp_path):
    torch.save({"x": torch.ones(2)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert "torch before 1.6" in refused(tmp_path / "old.ckpt")
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps({"x": 1}))
    assert "bare pickle" in refused(tmp_path / "bare.ckpt")


def test_a_truncated_archive_is_refused(tmp_path):
    torch.save({"x": torch.ones(1000)}, tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:-200])
    assert "truncated or damaged" in refused(tmp_path / "a.ckpt")


def test_an_archive_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "a zip archive, not a model" in refused(tmp_path / "a.ckpt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "b.ckpt")
    assert "TorchScript" in refused(tmp_path / "b.ckpt")


def test_text_called_ckpt_is_refused(tmp_path):
    (tmp_path / "a.ckpt").write_text("not a model " * 100)
    assert "text file" in refused(tmp_path / "a.ckpt")


def rewritten(path, change):
    """The archive at `path` with `change(name, content)` for each record's content; None leaves it out."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            new = change(name, content)
            if new is not None:
                archive.writestr(name, new)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda name, content: None if name.endswith("data/0") else content, "are missing"),
        (lambda name, content: content[:8] if name.endswith("data/0") else content, "does not agree"),
        (lambda name, content: content[:20] if name.endswith("data.pkl") else content, "pickle is damaged"),
        (lambda name, content: b"big" if name.endswith("byteorder") else content, "big-endian"),
    ],
)
def test_a_damaged_archive_says_what_is_wrong(tmp_path, change, expected):
    torch.save({"x": torch.ones(1000)}, tmp_path / "a.ckpt")
    rewritten(tmp_path / "a.ckpt", change)
    with pytest.raises(InputError, match=expected):
        open_weights(tmp_path / "a.ckpt")


def test_compressed_records_are_refused(tmp_path):
    torch.save({"x": torch.ones(1000)}, tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    assert "compressed or encrypted" in refused(tmp_path / "a.ckpt")


def test_a_table_without_tensors_is_refused(tmp_path):
    torch.save({"state_dict": {"x": 1}}, tmp_path / "a.ckpt")
    assert "holds no tensors" in refused(tmp_path / "a.ckpt")
    torch.save([torch.ones(1)], tmp_path / "b.ckpt")
    assert "no table of tensors" in refused(tmp_path / "b.ckpt")


def test_a_view_that_would_fill_the_memory_is_refused(tmp_path):
    enormous = torch.ones(1).expand(1 << 20, 1 << 20)
    buffer = io.BytesIO()
    torch.save({"x": enormous}, buffer)
    (tmp_path / "a.ckpt").write_bytes(buffer.getvalue())
    assert "does not agree with its bytes" in refused(tmp_path / "a.ckpt")
