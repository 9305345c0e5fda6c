"""An optimizer's class: found by its import path or refused with what to install, and the arguments it takes."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from dreambooth import pins
from dreambooth.shared.errors import InputError
from dreambooth.trainer import eightbit
from dreambooth.trainer.optim.optimizer_table import BITSANDBYTES, TABLE, Library, OptimizerKind
from dreambooth.trainer.pip_command import pip_install

# What an optimizer is given by other settings, and where.
ELSEWHERE = {"lr": "learning_rate", "params": "train_unet and train_text_encoder"}
_TUPLE = re.compile(r"[(\[]?([^()\[\]]*,[^()\[\]]*)[)\]]?")
_WORDS = {"true": True, "yes": True, "false": False, "no": False, "none": None, "null": None}


def class_of(kind: OptimizerKind) -> type[torch.optim.Optimizer]:
    """The class of a row. Raises InputError if its library is not installed, or if the path leads to no optimizer."""
    require(kind)
    module, _, name = kind.target.rpartition(".")
    if kind.library is BITSANDBYTES:
        eightbit.prepare()  # before it is imported
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever a library raises while it is imported
        raise InputError(
            f"the module {module} cannot be imported: {type(error).__name__}: {error}",
            where="optimizer",
            remedy=f"reinstall it, or use one of {', '.join(TABLE)}",
        ) from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise InputError(
            f"{kind.target} is no optimizer" if found else f"there is no {name} in {module}",
            where="optimizer",
            remedy=f"use one of {', '.join(TABLE)}, or the import path of a torch.optim.Optimizer",
        )
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(
            f"{kind.target} computes each step several times over (it wants a closure), which a training here does not",
            where="optimizer",
            remedy=f"use one of {', '.join(TABLE)}",
        )
    return found


def require(kind: OptimizerKind) -> None:
    """Raises InputError, with what to type, if an optimizer's library is not installed. Imports nothing."""
    module = kind.library.name if kind.library else kind.target.split(".")[0]
    if is_installed(module):
        return
    if kind.library is None:
        raise InputError(
            f"the package {module} is not installed in the trainer's environment",
            where="optimizer",
            remedy=f"{pip_install('--no-deps', module)} may install it; or use one of {', '.join(TABLE)}",
        )
    raise InputError(
        f"{kind.title} needs {kind.library.name}, which is not installed in the trainer's environment",
        where="optimizer",
        remedy=f"{install_command(kind.library)}; or use optimizer: adamw or adafactor, which need nothing more",
    )


def is_installed(module: str) -> bool:
    """Whether a top-level module is there; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # one that runs without a spec of its own
        return False


def install_command(library: Library) -> str:
    """What to type to install an optional library as it was tried."""
    if not library.file:
        return pip_install("--no-deps", library.name)
    found = pins.read(library.file) | {
        name: version for name, version in pins.set_for(torch.__version__).items() if name == library.name
    }
    # without dependencies: all that these need is there, and torch must stay as it is
    return pip_install("--no-deps", f"{library.name}=={found[library.name]}")


def arguments_of(made_of: type[torch.optim.Optimizer]) -> frozenset[str]:
    """The names of all arguments that a class and those it is made from take."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(
        parameter.name
        for base in made_of.__mro__
        if "__init__" in vars(base) and base is not object
        for parameter in inspect.signature(vars(base)["__init__"]).parameters.values()
        if parameter.kind in kinds
    ) - {"self", "defaults"}


def check_arguments(title: str, made_of: type[torch.optim.Optimizer], names: Iterable[str]) -> None:
    """Raises InputError for an argument that the class does not take: some swallow whatever they are given."""
    signature = inspect.signature(made_of).parameters.values()
    named = {parameter.name for parameter in signature if parameter.kind is not inspect.Parameter.VAR_KEYWORD}
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature)
    own = (arguments_of(made_of) if takes_any else named) - ELSEWHERE.keys() - {"args", "kwargs"}
    for name in names:
        if name in ELSEWHERE:
            raise InputError(
                f"`{name}` is not set here", where="optimizer_args", remedy=f"use {ELSEWHERE[name]}"
            )
        if name not in own:
            near = difflib.get_close_matches(name, sorted(own), n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise InputError(
                f"{title} has no argument `{name}`",
                where="optimizer_args",
                remedy=f"{hint}It takes {', '.join(sorted(own))}",
            )


def literal(text: str) -> Any:
    """An argument as the number, truth value, None or tuple that it is, else the text itself."""
    plain = text.strip()
    if plain.lower() in _WORDS:
        return _WORDS[plain.lower()]
    several = _TUPLE.fullmatch(plain)
    if several:
        return tuple(literal(part) for part in several[1].split(",") if part.strip())
    for kind in (int, float):
        try:
            return kind(plain)
        except ValueError:
            continue
    return text


def literals(texts: Mapping[str, str]) -> dict[str, Any]:
    """All arguments so."""
    return {name: literal(text) for name, text in texts.items()}
