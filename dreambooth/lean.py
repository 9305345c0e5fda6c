"""Keeps the libraries from importing what a training never uses: it is most of the time before the first step.
And keeps Python from looking for garbage where there is none.

- diffusers imports transformers, peft, bitsandbytes and others, where they are installed, for pipelines, adapters
  and quantization. It is written to do without each of them, so while diffusers is imported they are not to be found.
- torch's optimizers, and diffusers, import torch's compiler only to mark functions that it is not to compile, or not
  to look into. Here these marks are remembered, and the compiler is imported once anything else is asked of it; the
  marks are then as if it had been there from the start.
- torch's hundred thousands of objects stay as long as the process does. Python's collector is not to look through them
  again and again while they are made, nor whenever it looks through everything, nor at the end.

This is for a process that is ours (`start` is called from `__main__`); whoever imports the package as a library has
the libraries as they are.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

# xformers is not among them: `attention: xformers` is diffusers' own.
HIDDEN_FROM_DIFFUSERS = ("transformers", "peft", "bitsandbytes", "torchao", "optimum", "gguf", "torchvision")
COMPILER = "torch._dynamo"


def start() -> None:
    """From here on, this process imports lean. Called twice, it is as called once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Gives the few modules that are treated otherwise their own loaders; knows nothing of all others."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        top = fullname.partition(".")[0]
        if top == "diffusers":
            return _with_loader(fullname, path, functools.partial(_Within, _without_others))
        if fullname == "torch":
            return _with_loader(fullname, path, functools.partial(_Within, _never_collected))
        if fullname == COMPILER:
            return _with_loader(fullname, path, _Later)
        if fullname.startswith(COMPILER + "."):
            return _already_there(fullname)
        return None


def _with_loader(
    name: str, path: Sequence[str] | None, kind: Callable[[importlib.abc.Loader], importlib.abc.Loader]
) -> importlib.machinery.ModuleSpec | None:
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec is not None and spec.loader is not None:
        spec.loader = kind(spec.loader)
    return spec


class _Within(importlib.abc.Loader):
    """Runs a module in circumstances of its own."""

    def __init__(
        self,
        circumstances: Callable[[], contextlib.AbstractContextManager[None]],
        real: importlib.abc.Loader,
    ) -> None:
        self._circumstances = circumstances
        self._real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        _set_loader(module, self._real)
        with self._circumstances():
            self._real.exec_module(module)


@contextlib.contextmanager
def _without_others() -> Iterator[None]:
    """What is hidden from diffusers cannot be found. None in `sys.modules` is Python's own way to say that there is no
    such module. What is imported already is left alone: then there is nothing to win."""
    absent = [name for name in HIDDEN_FROM_DIFFUSERS if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextlib.contextmanager
def _never_collected() -> Iterator[None]:
    """All that is there when the block ends is out of the collector's sight from then on. Nothing of a run is: no model, no
    picture, of which cycles would never be given back."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if collects:
            gc.enable()


class _Later(importlib.abc.Loader):
    """Makes the compiler's module without running it."""

    def __init__(self, real: importlib.abc.Loader) -> None:
        self._real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Compiler(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        assert isinstance(module, _Compiler)
        _set_loader(module, self._real)
        module.wait(self._real)


# What the compiler can be asked for before it is there.
_MEANWHILE = ("disable", "allow_in_graph", "graph_break")


def _nothing(*_: Any, **__: Any) -> None:
    """What breaking a graph is where none is traced."""


class _Compiler(ModuleType):
    """torch's compiler, not imported yet: takes marks, and becomes the real one at whatever else it is asked for."""

    def wait(self, real: importlib.abc.Loader) -> None:
        """Makes the module wait for its first use."""
        self.__dict__.update(
            _real=real,
            _once=threading.RLock(),
            _allowed=[],
            disable=self._disable_later,
            allow_in_graph=self._allow_later,
            graph_break=_nothing,
        )

    def __getattr__(self, name: str) -> Any:
        # what Python's import system looks for in any module is not there, as it is not in the real one
        if name.startswith("__") or not self._run():
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(self, name)

    def _run(self) -> bool:
        """Runs the real module in this one's place; False when that is done or on its way."""
        known = self.__dict__
        with known["_once"]:
            real = known.pop("_real", None)
            if real is None:
                return False
            meanwhile = {name: known.pop(name) for name in _MEANWHILE}
            try:
                real.exec_module(self)
            except BaseException:
                known.update(meanwhile, _real=real)
                raise
            for function in known["_allowed"]:
                self.allow_in_graph(function)
            return True

    def _allow_later(self, function: Any) -> Any:
        self.__dict__["_allowed"].append(function)
        return function

    def _disable_later(self, fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        if fn is None:
            return functools.partial(self._disable_later, recursive=recursive, **options)
        disabled: list[Any] = []

        @functools.wraps(fn)
        def marked(*args: Any, **kwargs: Any) -> Any:
            if "_real" in self.__dict__:
                return fn(*args, **kwargs)
            if not disabled:
                disabled.append(self.disable(fn, recursive, **options))
            return disabled[0](*args, **kwargs)

        return marked


def _already_there(name: str) -> importlib.machinery.ModuleSpec | None:
    """A part of the compiler is asked for: first comes the whole, which brings most of its parts along."""
    compiler = sys.modules.get(COMPILER)
    if not isinstance(compiler, _Compiler) or not compiler._run() or name not in sys.modules:
        return None
    return importlib.util.spec_from_loader(name, _Present(sys.modules[name]))


class _Present(importlib.abc.Loader):
    """Gives a module that is there."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _set_loader(module: ModuleType, loader: importlib.abc.Loader) -> None:
    """What asks a module for its loader (its source, its files) gets the one that it would have had."""
    module.__loader__ = loader
    if module.__spec__ is not None:
        module.__spec__.loader = loader
