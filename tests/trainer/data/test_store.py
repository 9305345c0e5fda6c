import errno
import os
import stat
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from dreambooth.shared.errors import DreamboothError
from dreambooth.trainer.data.store import TensorStore, _name, module_id

KEY = {"kind": "test", "size": (3, 4), "flip": False}


@pytest.fixture
def store(tmp_path):
    return TensorStore(tmp_path / "cache")


def only_file(store: TensorStore) -> Path:
    [path] = [path for path in store.folder.rglob("*") if path.is_file()]
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_a_tensor_comes_back_bit_for_bit(store, dtype):
    tensor = torch.randn(2, 3, 4).mul(100).to(dtype)
    assert not store.has(KEY) and store.get(KEY) is None
    store.put(KEY, tensor.transpose(0, 2))
    back = store.get(KEY)
    assert store.has(KEY)
    assert back.dtype == dtype and torch.equal(back, tensor.transpose(0, 2))


def test_every_part_of_a_key_tells_tensors_apart(store):
    store.put(KEY, torch.zeros(1))
    assert store.get({**KEY, "flip": True}) is None
    assert store.get({**KEY, "size": (4, 3)}) is None
    assert store.get(dict(reversed(KEY.items()))) is not None


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: b"", lambda d: d[:-4] + b"\0\0\0\1", lambda d: bytes(len(d)),
                                    lambda d: b"\xff" * 8 + d[8:], lambda d: d[:30]])  # fmt: skip
def test_a_damaged_file_counts_as_absent_and_can_be_written_again(store, damage):
    store.put(KEY, torch.zeros(5))
    path = only_file(store)
    path.write_bytes(damage(path.read_bytes()))
    assert store.get(KEY) is None
    store.put(KEY, torch.ones(5))
    assert torch.equal(store.get(KEY), torch.ones(5))


def test_a_file_under_another_ones_name_is_not_taken(store):
    store.put(KEY, torch.zeros(5))
    path = only_file(store)
    other = {**KEY, "flip": True}
    store.put(other, torch.ones(5))
    [new] = [file for file in store.folder.rglob("*.safetensors") if file != path]
    os.replace(path, new)
    assert store.get(other) is None


def test_a_failed_write_leaves_nothing_and_says_why(store, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DreamboothError, match="no space is left") as caught:
        store.put(KEY, torch.zeros(5))
    assert caught.value.where == str(store.folder)
    assert [path for path in store.folder.rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DreamboothError, match="cannot be written") as caught:
        TensorStore(tmp_path / "file").put(KEY, torch.zeros(1))
    assert caught.value.where == str(tmp_path / "file")


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_files_have_the_permissions_of_any_new_file(store, tmp_path):
    store.put(KEY, torch.zeros(1))
    (tmp_path / "plain").write_bytes(b"")
    assert stat.S_IMODE(only_file(store).stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_modules_id_is_the_hash_of_its_weights():
    module = torch.nn.Linear(2, 1)
    digest = sha256()
    digest.update(b"bias torch.float32 (1,)\n" + module.bias.detach().numpy().tobytes())
    digest.update(b"weight torch.float32 (1, 2)\n" + module.weight.detach().numpy().tobytes())
    assert module_id(module) == digest.hexdigest()
    before = module_id(module)
    assert module_id(module.half()) != before
    with torch.no_grad():
        module.weight[0, 0] += 1
    assert module_id(module.float()) != before


def test_trimming_drops_what_was_used_longest_ago_and_nothing_of_this_run(tmp_path):
    keys = [{"kind": "test", "number": number} for number in range(5)]
    before = TensorStore(tmp_path)
    for age, key in enumerate(keys):
        before.put(key, torch.zeros(100))
        path = before._path(_name(key))
        os.utime(path, (1000 + age, 1000 + age))
    size = path.stat().st_size
    before.get(keys[1])  # used again, long after it was made
    now = TensorStore(tmp_path)
    assert now.has(keys[0]), "the oldest, and wanted by this run"
    assert now.trim(3 * size) == 2 * size
    assert [now.has(key) for key in keys] == [True, True, False, False, True]
    assert now.trim(3 * size) == 0
    unasked = TensorStore(tmp_path)
    assert unasked.trim(0) == 3 * size and not unasked.has(keys[1])


def test_trimming_a_cache_that_is_not_there_is_nothing(tmp_path):
    assert TensorStore(tmp_path / "nowhere").trim(0) == 0
