import builtins
import contextlib
import os
import pickle
import struct
import subprocess
from pathlib import Path

import pytest
import torch

from dreambooth.shared.errors import InputError
from dreambooth.trainer.weights import open_weights, restricted_pickle
from dreambooth.trainer.weights.restricted_pickle import FUNCTIONS, Malformed, Refused, load


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def refused(content, protocol=2):
    with pytest.raises(Refused) as caught:
        load(pickle.dumps(content, protocol=protocol))
    return str(caught.value)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_no_function_of_the_system_is_ever_called(tmp_path, protocol):
    proof = tmp_path / "ran"
    for content in (
        Calls(os.system, f"touch {proof}"),
        Calls(subprocess.call, ["touch", str(proof)]),
        Calls(eval, f"open({str(proof)!r}, 'w')"),
        Calls(exec, f"open({str(proof)!r}, 'w')"),
        Calls(open, str(proof), "w"),
        Calls(Path(proof).touch),
        Calls(__import__, "antigravity"),
        {"state_dict": {"x": [Calls(os.system, f"touch {proof}")]}},
    ):
        refused(content, protocol)
    assert not proof.exists()


def test_the_refusal_names_what_was_asked_for():
    assert refused(Calls(eval, "1")) == "builtins.eval"
    assert refused(Calls(os.system, "true")).endswith(".system")
    assert refused(Calls(getattr, "", "format")) == "builtins.getattr"
    assert refused(Calls(torch.load, "x")) == "torch.serialization.load"
    assert refused(Calls(torch.hub.load, "x", "y")) == "torch.hub.load"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "nn.Module"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections", "OrderedDict.__init__.__globals__"),
        ("builtins", "int.__class__.__base__.__subclasses__"),
        ("os", "path.join"),
        ("_codecs", "decode"),
        ("copyreg", "_reconstructor"),
        ("pathlib", "Path.unlink"),
        ("numpy.core.multiarray", "load"),
        ("dreambooth.trainer.weights.restricted_pickle", "load"),
    ],
)
def test_attributes_of_what_is_allowed_are_not_reached(module, name):
    code = (
        b"\x80\x04"
        + b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
        + b"\x93."
    )
    with pytest.raises(Refused, match=name.rpartition(".")[2]):
        load(code)


def test_what_stands_for_an_allowed_function_cannot_be_changed():
    before = {name: (function.__defaults__, dict(function.__dict__)) for name, function in FUNCTIONS.items()}
    change = b"ctorch._utils\n_rebuild_tensor_v2\n}(Vx\nI1\nub."
    slots = b"ctorch._utils\n_rebuild_tensor_v2\nN}(V__defaults__\n(I1\ntus\x86b."
    for code in (change, slots.replace(b"us\x86b", b"u\x86b")):
        with pytest.raises((Malformed, Refused)):
            load(code)
    assert before == {
        name: (function.__defaults__, dict(function.__dict__)) for name, function in FUNCTIONS.items()
    }


@pytest.mark.parametrize(
    "code",
    [
        b"c__builtin__\nset\n}(Vx\nI1\nub.",
        b"cpytorch_lightning.a\nB\n}(V__init__\nI1\nub.",
        b"ccollections\nOrderedDict\n}(V__init__\nI1\nub.",
    ],
)
def test_setting_attributes_of_an_inert_class_changes_nothing_of_ours(code):
    before = dict(vars(restricted_pickle.Inert))
    table = dict(vars(restricted_pickle.Table))
    with contextlib.suppress(Malformed, Refused):
        load(code)
    assert before == dict(vars(restricted_pickle.Inert)) and table == dict(vars(restricted_pickle.Table))


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02\x82\x01.",  # EXT1
        b"(ios\nsystem\n(S'true'\no.",  # INST
        b"Pname\n.",  # PERSID
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",  # BYTEARRAY8
    ],
)
def test_opcodes_that_no_checkpoint_needs_are_refused(code):
    with pytest.raises((Refused, Malformed)):
        load(code)


def test_places_in_the_memo_cannot_be_used_to_fill_the_memory():
    with pytest.raises(Malformed, match="memo"):
        load(b"\x80\x02Nr" + struct.pack("<I", 0x7FFFFFFF) + b".")


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02K",
        b"not a pickle",
        b"\x80\x02h\x05.",
        b"\x80\x02]a.",
        b"\x80\x02X\xff\xff\xff\x7f.",
        b"\x80\x02}(}K\x01u.",
        b"\x80\x02(" * 3,
        b"\x80\x02K\x01Q.",
        b"\x80\x02(X\x07\x00\x00\x00storageK\x01K\x02K\x03K\x04tQ.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03K\x04tR.",
    ],
)
def test_a_damaged_pickle_is_an_error_of_its_own(code):
    with pytest.raises(Malformed):
        load(code)


def test_nested_lists_very_deep_do_not_break_the_process():
    code = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    try:
        found = load(code)
    except Malformed:
        return
    while found:  # taken apart from outside, since freeing it recursively would be the interpreter's problem
        found = found.pop()


def test_only_the_tables_of_allowed_names_decide(monkeypatch):
    """Nothing is imported, whatever a pickle names."""

    def forbidden(*args, **kwargs):
        raise AssertionError(f"imported {args[0]}")

    code = pickle.dumps({"a": Calls(set, [1]), "b": torch.float16, "c": torch.Size([2])}, protocol=4)
    monkeypatch.setattr(builtins, "__import__", forbidden)
    assert load(code)["b"] is torch.float16


def test_a_checkpoint_that_runs_code_is_refused_by_name_and_file(tmp_path):
    proof = tmp_path / "ran"
    torch.save(
        {"state_dict": {"x": torch.ones(1)}, "extra": Calls(os.system, f"touch {proof}")}, tmp_path / "a.ckpt"
    )
    with pytest.raises(InputError, match=r"asks for .*\.system") as caught:
        open_weights(tmp_path / "a.ckpt")
    assert caught.value.where == str(tmp_path / "a.ckpt") and caught.value.exit_code == 2
    assert not proof.exists()
