from __future__ import annotations

import importlib.util
import shlex
import sys

import pytest
import torch

from dreambooth import pins
from dreambooth.shared.errors import InputError
from dreambooth.trainer.optim import optimizer_class
from dreambooth.trainer.optim.optimizer_class import (
    arguments_of,
    check_arguments,
    class_of,
    is_installed,
    literal,
    literals,
    require,
)
from dreambooth.trainer.optim.optimizer_table import TABLE, kind_of

LIBRARIES = {row.library.name: row.name for row in TABLE.values() if row.library}


@pytest.mark.parametrize(("library", "name"), LIBRARIES.items())
def test_without_its_library_an_optimizer_is_refused_with_what_to_type(library, name, monkeypatch):
    monkeypatch.setattr(optimizer_class, "is_installed", lambda module: module != library)
    with pytest.raises(InputError) as refused:
        require(TABLE[name])
    assert refused.value.where == "optimizer"
    assert TABLE[name].title in refused.value.what and library in refused.value.what
    pin = pins.set_for(torch.__version__).get(library) or pins.read(pins.OPTIMIZERS)[library]
    assert f"{shlex.quote(sys.executable)} -m pip install --no-deps {library}=={pin}" in refused.value.remedy


def test_a_library_is_looked_for_and_not_imported(monkeypatch):
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    for row in TABLE.values():
        require(row)


def test_a_module_without_a_spec_is_no_library():
    assert is_installed("torch") and not is_installed("no_such_library")
    main = sys.modules["__main__"]
    assert is_installed("__main__") is (getattr(main, "__spec__", None) is not None)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_such_library.Optimizer", "the package no_such_library is not installed"),
        ("torch.optim.NoSuch", "there is no NoSuch in torch.optim"),
        ("torch.no_such.SGD", "torch.no_such cannot be imported"),
        ("torch.nn.Linear", "torch.nn.Linear is no optimizer"),
        ("math.sqrt", "math.sqrt is no optimizer"),
        ("torch.optim.LBFGS", "several times over"),
    ],
)
def test_an_import_path_that_leads_to_no_optimizer_for_a_training_is_refused(path, said):
    with pytest.raises(InputError) as refused:
        class_of(kind_of(path))
    assert refused.value.where == "optimizer"
    assert said in refused.value.what
    assert "adamw" in refused.value.remedy


def test_an_import_path_leads_to_its_class():
    assert class_of(kind_of("torch.optim.RMSprop")) is torch.optim.RMSprop


def test_the_arguments_are_those_of_the_class_and_of_what_it_is_made_from():
    class Base(torch.optim.Optimizer):
        def __init__(self, params, lr=1.0, alpha=0.0):
            super().__init__(params, {"lr": lr})

    class Derived(Base):
        def __init__(self, params, beta=0.0, **others):
            super().__init__(params, **others)

    assert arguments_of(Derived) == {"params", "lr", "alpha", "beta"}
    check_arguments("Derived", Derived, ["alpha", "beta"])
    with pytest.raises(InputError, match="Derived has no argument `gamma`"):
        check_arguments("Derived", Derived, ["gamma"])


@pytest.mark.parametrize(
    ("name", "argument", "hint"),
    [
        ("adamw", "amsgrat", "did you mean `amsgrad`?"),
        ("lion", "weight_decoupled", "did you mean `weight_decouple`?"),  # its class swallows any name
        ("prodigy", "d_coeff", "did you mean `d_coef`?"),
        ("adafactor", "momentum", "It takes "),
    ],
)
def test_an_argument_that_a_class_does_not_take_is_refused_with_the_nearest(name, argument, hint):
    with pytest.raises(InputError) as refused:
        check_arguments(TABLE[name].title, class_of(TABLE[name]), [argument])
    assert refused.value.where == "optimizer_args"
    assert f"{TABLE[name].title} has no argument `{argument}`" == refused.value.what
    assert hint in refused.value.remedy


@pytest.mark.parametrize(("argument", "setting"), [("lr", "learning_rate"), ("params", "train_unet")])
def test_what_a_setting_decides_is_no_argument(argument, setting):
    with pytest.raises(InputError) as refused:
        check_arguments("AdamW", torch.optim.AdamW, [argument])
    assert setting in refused.value.remedy


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("7", 7),
        (" Yes ", True),
        ("false", False),
        ("none", None),
        ("cautious", "cautious"),
        ("0.9, 0.99", (0.9, 0.99)),
        ("(0.9,0.99)", (0.9, 0.99)),
        ("[1e-30, 1e-3]", (1e-30, 1e-3)),
        ("(1,)", (1,)),
        ("inf", float("inf")),
    ],
)
def test_an_argument_is_the_number_truth_value_or_tuple_that_it_looks_like(text, value):
    assert literal(text) == value and type(literal(text)) is type(value)
    assert literals({"a": text}) == {"a": value}
