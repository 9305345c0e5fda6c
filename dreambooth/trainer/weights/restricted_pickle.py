"""Reading the pickle inside a `.ckpt` without ever running what it says.

A pickle is a program: it names functions and calls them. Here every name is looked up in a list of our own and
nothing is imported. Tensors become notes of where their bytes lie (`StoredView`); what Lightning, numpy and
omegaconf leave in training checkpoints becomes an `Inert` that swallows everything; any other name is refused.

torch's own `weights_only` refuses Lightning's files, and could be bypassed before torch 2.6 (CVE-2025-32434).
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

STORAGES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (*STORAGES.values(), torch.float8_e4m3fn, torch.float8_e5m2)
}
INERT_PACKAGES = ("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "omegaconf")
INERT_NAMES = frozenset(
    {
        "argparse.Namespace",
        *(f"builtins.{name}" for name in ("bool", "bytes", "complex", "float", "frozenset", "int", "list")),
        *(f"builtins.{name}" for name in ("set", "slice", "str", "tuple")),
        "collections.Counter",
        "datetime.datetime",
        "datetime.timedelta",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy.dtype",
        "numpy.ndarray",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "pathlib.WindowsPath",
        "torch.Tensor",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.torch_version.TorchVersion",
        "typing.Any",
    }
)
PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
REFUSED_OPCODES = frozenset(
    {"EXT1", "EXT2", "EXT4", "INST", "OBJ", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER", "BYTEARRAY8"}
)
MALFORMED = (
    pickle.UnpicklingError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    UnicodeError,
)


class Refused(Exception):
    """The pickle asks for something that is not on the list; the message names it."""


class Malformed(Exception):
    """The pickle is damaged or not a pickle."""


class Fixed:
    """Refuses the opcode that overwrites an object's attributes."""

    def __setstate__(self, state: object) -> None:
        raise Malformed("an attempt to change what was built")


@dataclass(frozen=True)
class Storage(Fixed):
    """A run of elements in the archive: the record's key and its length; an untyped one counts bytes."""

    key: str
    dtype: torch.dtype | None
    length: int


@dataclass(frozen=True)
class StoredView(Fixed):
    """A tensor: a view of a storage, counted in elements."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Inert:
    """Stands for an object that is of no use here: it can be built, filled and asked nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object = None) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass

    def extend(self, values: object) -> None:
        pass

    def add(self, value: object) -> None:
        pass


class Table(dict[Any, Any]):
    """A dictionary of any kind; what is attached to it (`_metadata`, a default factory) is left out."""

    def __init__(self, items: object = None) -> None:
        super().__init__()
        if isinstance(items, (list, tuple)):
            self.update(items)

    def __setstate__(self, state: object = None) -> None:
        pass


class Function(Fixed):
    """One of our own functions as the pickle sees it: it can be called, and nothing of it can be changed."""

    def __init__(self, run: Callable[..., object]) -> None:
        self._run = run

    def __call__(self, *args: object) -> object:
        return self._run(*args)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: object) -> StoredView:
    if not isinstance(storage, Storage) or storage.dtype is None:
        raise Malformed("a tensor without a storage")
    return StoredView(storage, storage.dtype, _count(offset), _counts(shape), _counts(stride))


def _rebuild_untyped(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: object, hooks: object, dtype: Any, *rest: object
) -> StoredView:
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise Malformed("a tensor without a storage or a dtype")
    return StoredView(storage, dtype, _count(offset), _counts(shape), _counts(stride))


def _rebuild_parameter(data: Any, *rest: object) -> Any:
    return data


def _rebuild_from_type(function: Any, kind: object, args: Any, state: object) -> Any:
    if not isinstance(function, Function) or not isinstance(args, tuple):
        raise Malformed("a tensor of an unknown kind")
    return function(*args)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Malformed("an unknown encoding")
    return text.encode("latin1")


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Malformed("a tensor with an impossible size")
    return value


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)):
        raise Malformed("a tensor with an impossible shape")
    return tuple(map(_count, values))


def _size(values: Any = ()) -> tuple[int, ...]:
    return _counts(values)


FUNCTIONS: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_untyped,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _size,
    "_codecs.encode": _encode,
}
TABLES = frozenset({"collections.OrderedDict", "collections.defaultdict", "builtins.dict"})
STORAGE_CLASSES: dict[str, torch.dtype | None] = {
    **{f"torch.{name}": dtype for name, dtype in STORAGES.items()},
    "torch.storage.UntypedStorage": None,
    "torch.UntypedStorage": None,
}


@dataclass(frozen=True)
class StorageClass(Fixed):
    """The class of a storage, as the pickle names it."""

    dtype: torch.dtype | None


class RestrictedUnpickler(pickle.Unpickler):
    """Builds only what the tables of this module name."""

    def find_class(self, module: str, name: str) -> Any:
        """Whatever stands for the global `module.name`; raises Refused for those that are not on the list."""
        path = f"{PYTHON_2.get(module, module)}.{name}"
        if path in FUNCTIONS:
            return Function(FUNCTIONS[path])
        if path in TABLES:
            return Table
        if path in STORAGE_CLASSES:
            return StorageClass(STORAGE_CLASSES[path])
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if path in INERT_NAMES or module.partition(".")[0] in INERT_PACKAGES:
            return type("Inert", (Inert,), {})
        raise Refused(path)

    def persistent_load(self, pid: Any) -> Storage:
        """torch's reference to a storage: ('storage', class, key, device, number of elements)."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise Malformed("a reference to something other than a storage")
        _, kind, key, _, length = pid
        if not isinstance(kind, StorageClass) or not isinstance(key, str):
            raise Malformed("a storage of an unknown kind")
        return Storage(key, kind.dtype, _count(length))


def load(data: bytes) -> Any:
    """What the pickle describes, built from plain values, `StoredView`s and `Inert`s alone.

    Raises Refused naming the global that is not on the list, or Malformed.
    """
    try:
        _check_opcodes(data)
        return RestrictedUnpickler(io.BytesIO(data)).load()
    except MALFORMED as error:
        raise Malformed(f"{type(error).__name__}: {error}") from error


def _check_opcodes(data: bytes) -> None:
    """Refuses the opcodes that no checkpoint needs, and memo places that would only serve to fill memory."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in REFUSED_OPCODES:
            raise Refused(f"the pickle opcode {opcode.name}")
        if opcode.name == "LONG_BINPUT" and (argument or 0) > len(data):
            raise Malformed("a memo place beyond the pickle's end")
