from __future__ import annotations

import re
from pathlib import Path

import pytest

from dreambooth import pins

NAMES = (
    pins.REQUIREMENTS, pins.NO_DEPENDENCIES, pins.EIGHT_BIT, pins.OPTIMIZERS, pins.TESTS, pins.CONSTRAINTS,
)  # fmt: skip


@pytest.mark.parametrize("python", [(3, 10), (3, 11), (3, 12), (3, 13)])
@pytest.mark.parametrize("name", NAMES)
def test_every_requirements_file_is_understood_for_every_python(name: str, python: tuple[int, int]):
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in pins.read(name, python=python).values())


@pytest.mark.parametrize(
    ("torch", "python", "diffusers", "transformers"),
    [
        ("2.1.2+cu121", (3, 10), "0.35.2", "4.55.4"),
        ("2.2.2", (3, 10), "0.35.2", "4.55.4"),
        ("2.3.1+cu121", (3, 10), "0.38.0", "5.0.0"),
        ("2.5.1", (3, 11), "0.38.0", "5.0.0"),
        ("2.6.0", (3, 10), "0.41.0", "5.20.2"),
        ("2.12.1", (3, 12), "0.41.0", "5.20.2"),
        ("2.13.0", (3, 10), "0.41.0", "5.20.2"),
        ("2.13.0+cpu", (3, 11), "0.42.1", "5.23.0"),
        ("2.15.0", (3, 13), "0.42.1", "5.23.0"),
    ],
)
def test_each_torch_gets_the_newest_libraries_that_were_seen_to_work_with_it(
    torch, python, diffusers, transformers
):
    complete = pins.set_for(torch, python)
    assert (complete["diffusers"], complete["transformers"]) == (diffusers, transformers)
    assert complete["torch"] == torch
    assert {library.name for library in pins.LIBRARIES} <= set(complete)


def test_a_torch_that_was_built_against_numpy_1_gets_numpy_1():
    assert pins.version(pins.set_for("2.1.2", (3, 10))["numpy"]) < (2,)
    assert pins.version(pins.set_for("2.2.2", (3, 10))["numpy"]) < (2,)
    assert pins.version(pins.set_for("2.6.0", (3, 10))["numpy"]) >= (2,)


def test_a_torch_before_the_oldest_that_works_is_refused():
    with pytest.raises(ValueError, match=r"older than 2\.1"):
        pins.set_for("2.0.1")


def test_every_pin_of_every_set_is_one_that_the_trainer_accepts():
    for torch in ("2.1.2", "2.3.1", "2.6.0", "2.13.0"):
        for python in ((3, 10), (3, 11)):
            assert pins.unfit(pins.set_for(torch, python), python) == []


@pytest.mark.parametrize(
    ("installed", "complaint"),
    [
        ({"torch": "2.0.1"}, "torch 2.0.1 (at least 2.1.2 is needed)"),
        ({"torch": "2.13.0", "pillow": "9.4.0"}, "pillow 9.4.0 (at least 9.5 is needed)"),
        (
            {"torch": "2.1.2", "diffusers": "0.36.0"},
            "diffusers 0.36.0 (beside torch 2.1.2 at most 0.35.2 was tried)",
        ),
        (
            {"torch": "2.13.0", "diffusers": "0.43.0"},
            "diffusers 0.43.0 (beside torch 2.13.0 at most 0.42.1 was tried)",
        ),
    ],
)
def test_what_does_not_fit_is_named(installed, complaint):
    assert pins.unfit(installed, (3, 11)) == [complaint]


def test_a_newer_patch_of_a_pinned_library_fits():
    assert pins.unfit({"torch": "2.13.1", "diffusers": "0.42.9", "numpy": "9.0"}, (3, 11)) == []


@pytest.mark.parametrize(
    ("text", "numbers"), [("2.13.0+cpu", (2, 13, 0)), ("0.42.1.dev0", (0, 42, 1)), ("4rc1", (4,)), ("x", ())]
)
def test_a_version_is_its_release_numbers(text: str, numbers: tuple[int, ...]):
    assert pins.version(text) == numbers


def test_markers_choose_by_python_and_by_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [
        "-c other.txt  # a comment",
        'a==1; python_version >= "3.11"',
        'a==2 ; python_version < "3.11"',
        'b==3; sys_platform != "darwin"',
        "-r more.txt",
    ]
    (tmp_path / "r.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "more.txt").write_text("c==4\n", encoding="utf-8")
    monkeypatch.setattr("sys.platform", "darwin")
    assert pins.read("r.txt", python=(3, 11), root=tmp_path) == {"a": "1", "c": "4"}
    monkeypatch.setattr("sys.platform", "win32")
    assert pins.read("r.txt", python=(3, 9), root=tmp_path) == {"a": "2", "b": "3", "c": "4"}


@pytest.mark.parametrize("line", ["a>=1", 'a==1; os_name == "nt"'])
def test_a_line_that_is_not_understood_is_an_error_not_skipped(tmp_path: Path, line: str):
    (tmp_path / "r.txt").write_text(line, encoding="utf-8")
    with pytest.raises(ValueError, match="not understood"):
        pins.read("r.txt", root=tmp_path)


def test_nothing_is_pinned_twice():
    direct = {name.lower() for name in pins.read(pins.REQUIREMENTS) | pins.read(pins.TESTS)}
    assert direct.isdisjoint(name.lower() for name in pins.read(pins.CONSTRAINTS))
