"""Torch's memory on a card grows in place where torch can do that, and where the user has not said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dreambooth import allocator
from dreambooth.allocator import OLDER, VALUE, VARIABLE, said, wanted


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("2.1.2+cu121", OLDER),
        ("2.9.1+cu128", OLDER),
        ("2.13.0", VARIABLE),
        ("3.0.0", VARIABLE),
        ("main", OLDER),
    ],
)
def test_each_torch_is_told_by_the_name_that_it_reads(version: str, name: str) -> None:
    assert wanted({}, version, "linux") == {name: VALUE}


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_where_torch_has_no_such_segments_nothing_is_asked_for(platform: str) -> None:
    assert wanted({}, "2.13.0", platform) == {}
    assert wanted({}, "2.13.0+rocm6.4", "linux") == {}
    assert wanted({}, "2.13.0", "linux", jetson=True) == {}
    assert wanted({}, "", "linux") == {}


@pytest.mark.parametrize("name", allocator.VARIABLES)
@pytest.mark.parametrize("value", ["max_split_size_mb:512", "expandable_segments:False", ""])
def test_what_the_user_has_set_is_the_users(name: str, value: str) -> None:
    assert wanted({name: value}, "2.13.0", "linux") == {}
    assert wanted({name: value}, "2.1.2", "linux") == {}


def test_doctor_says_what_holds() -> None:
    assert said({VARIABLE: VALUE}) == f"a card's memory grows in place ({VARIABLE}={VALUE})"
    assert said({OLDER: "max_split_size_mb:64"}) == f"as it was set ({OLDER}=max_split_size_mb:64)"
    assert "torch's own" in said({})


@pytest.mark.skipif(sys.platform != "linux", reason="it is set on Linux alone")
def test_it_is_set_before_torch_is_imported() -> None:
    code = (
        "import os, sys; from dreambooth import allocator, cli, lean;"
        f"lean.start = lambda: print('torch' in sys.modules, [os.environ.get(n) for n in {allocator.VARIABLES!r}]);"
        "cli.main = lambda arguments: 0;"
        "from dreambooth.__main__ import main; main()"
    )
    environ = {name: value for name, value in os.environ.items() if name not in allocator.VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environ,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    (name, value), *_ = wanted({}, torch.__version__, "linux").items() or [("", None)]
    expected = [value if known == name else None for known in allocator.VARIABLES]
    assert done.stdout.strip() == f"False {expected}", done.stderr
