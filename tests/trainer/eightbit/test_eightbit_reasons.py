from __future__ import annotations

import shlex
import sys
from dataclasses import replace

import pytest
import torch
from recorded import REPORTS, SHIM, installed

from dreambooth import pins
from dreambooth.trainer.eightbit import Choice, Step, Surroundings, choose, judge
from dreambooth.trainer.eightbit.reasons import OTHERWISE, reason_of

RTX = {"card": "RTX 3090", "capability": (8, 6)}
PIN = pins.set_for(torch.__version__)["bitsandbytes"]
REINSTALL = f"{shlex.quote(sys.executable)} -m pip install --force-reinstall --no-deps bitsandbytes=={PIN}"


def judged(around: Surroundings, report: str = "", code: int = 1, environ: dict[str, str] | None = None):
    return judge(around, choose(around, environ or {}), Step(code, REPORTS.get(report, report)))


@pytest.mark.parametrize(
    ("report", "around", "cause", "said"),
    [
        ("bnb#1848", installed("0.48.0", cuda=(13, 1), **RTX), "no_binary", "CUDA 13.1"),
        ("bnb 0.50", installed("0.49.0", cuda=(12, 8), **RTX), "no_binary", "CUDA 12.8"),
        ("bnb#1559", installed("0.45.5", cuda=(12, 4), **RTX), "no_binary", "CUDA 12.4"),
        ("bnb#1524", installed("0.45.5", "win32", cuda=(12, 4), **RTX), "no_binary", "CUDA 12.4"),
        ("bnb#1510", installed("0.45.5", "win32", cuda=(12, 8), **RTX), "no_binary", "CUDA 12.8"),
        ("bnb#1641", installed("0.43.0", "win32", cuda=(12, 1), **RTX), "old_loader", "before 0.44"),
        ("bnb#626", installed("0.45.5", "win32", cuda=(11, 8), **RTX), "old_loader", "before 0.44"),
        ("dreambooth#7", installed("0.45.5", "win32", cuda=(11, 8), **RTX), "old_loader", "before 0.44"),
        ("dreambooth#47", installed("0.45.5", "win32", cuda=(11, 8), **RTX), "architecture", "RTX 3090, capability 8.6"),
        ("bnb#1937", installed("0.45.5", cuda=(12, 8), **RTX), "architecture", "no code for this card"),
        ("dreambooth#303", installed("0.45.5", hip=(6, 2)), "no_binary", "ROCm 6.2"),
        ("dreambooth#303", installed("0.45.5"), "no_binary", "the processor"),
        ("dreambooth#534", installed("0.45.5", cuda=(11, 8), **RTX), "dependencies", "those of CUDA 11.8"),
        (
            "windows dependencies", installed("0.45.5", "win32", cuda=(12, 8), **RTX), "dependencies",
            "libbitsandbytes_cuda128.dll",
        ),
        ("bnb#1550", installed("0.49.0", hip=(6, 2)), "mismatch", "libbitsandbytes_rocm62.so"),
        ("out of memory", installed("0.50.2", cuda=(12, 8), **RTX), "memory", "no room"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_each_report_is_told_by_what_it_said(report, around, cause, said):
    verdict = judged(around, report)
    assert not verdict.works and verdict.cause == cause
    assert said in verdict.text
    assert verdict.remedy.endswith(OTHERWISE)
    last = [line for line in REPORTS[report].splitlines() if "Error" in line.partition(":")[0]]
    assert not last or last[-1].strip() in verdict.text
    assert "{" not in verdict.text + verdict.remedy


def test_an_older_wheel_is_to_be_replaced_by_the_one_that_was_tried_beside_this_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.13.0")  # an old torch has no newer wheel
    tried = pins.set_for(torch.__version__)["bitsandbytes"]
    verdict = judged(installed("0.45.5", cuda=(12, 4), **RTX), "bnb#1559")
    assert verdict.remedy == f"reinstall it: {REINSTALL.replace(PIN, tried)}; or {OTHERWISE}"


def test_where_the_one_that_was_tried_is_there_and_whole_only_a_newer_one_may_help(monkeypatch):
    around = installed("0.50.2", cuda=(12, 8), **RTX)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu128")
    assert "a newer version may help: " in judged(around, "bnb#1937").remedy
    monkeypatch.setattr(torch, "__version__", "2.1.2+cu121")  # newer ones want a newer torch
    assert judged(replace(around, cuda=(12, 1)), "bnb#1937").remedy == OTHERWISE


def test_the_files_of_2022_are_to_be_deleted_with_their_folder():
    around = installed(
        "0.45.5", "win32", cuda=(12, 1), foreign=frozenset({"cuda_setup/main.py", "cextension.py"}), **RTX
    )
    for report in ("bnb#626", "dreambooth#7", "no idea"):
        verdict = judged(around, report)
        assert verdict.cause == "stale_files"
        assert "(cextension.py, cuda_setup/main.py)" in verdict.text and around.folder in verdict.text
        assert verdict.remedy.startswith(f"delete the folder {around.folder}, then reinstall it: {REINSTALL}")


def test_what_lies_in_the_webuis_folder_stays_there_and_gets_another_before_it():
    around = installed("0.45.5", "win32", cuda=(12, 1), foreign=SHIM, own_folder=False, **RTX)
    assert judged(around, "bnb#626").remedy.startswith(f"reinstall it: {REINSTALL}")


def test_they_are_named_in_the_wheel_of_their_time_too():
    around = installed("0.35.4", "win32", cuda=(11, 6), foreign=SHIM, **RTX)
    assert judged(around, "dreambooth#47").cause == "stale_files"


def test_a_second_wheel_of_the_package_is_foreign_as_well():
    around = installed("0.45.5", "win32", cuda=(12, 1), aliases=("bitsandbytes-windows",), **RTX)
    verdict = judged(around, "bnb#626")
    assert verdict.cause == "stale_files" and "bitsandbytes-windows" in verdict.text


def test_what_works_in_spite_of_them_works():
    around = installed(
        "0.45.5", "win32", cuda=(12, 1), foreign=frozenset({"libbitsandbytes_cuda116.dll"}), **RTX
    )
    seen = {"version": "0.45.5", "device": "cuda", "eight_bit": True, "right": True}
    verdict = judge(around, choose(around, {}), Step(0, "", seen))
    assert verdict.works and verdict.binary == "libbitsandbytes_cuda121.dll"


def test_before_043_there_was_nothing_for_windows():
    """sd_dreambooth_extension #3, #117, #237: a Linux wheel on Windows."""
    verdict = judged(installed("0.35.4", "win32", cuda=(11, 6), **RTX), "dreambooth#3")
    assert verdict.cause == "too_old" and "0.43 was the first" in verdict.text
    assert REINSTALL in verdict.remedy


@pytest.mark.parametrize(
    ("around", "cause", "said"),
    [
        (installed("0.45.5", cuda=(13, 0), **RTX), "no_binary", "those for CUDA 11.7, 11.8, 12.0, "),
        (installed("0.50.2", "win32", hip=(6, 4)), "no_binary", "and ROCm 7.2, 7.14, 7.15"),
        (replace(installed("0.50.2", cuda=(12, 8)), files=frozenset({"x"})), "no_binary", "it has none"),
        (installed("0.49.0", hip=(7, 2)), "no_override", "ROCm 7.2"),
        (installed("0.44.1", cuda=(12, 8), card="RTX 5090", capability=(12, 0)), "card_too_new", "RTX 5090"),
        (installed("0.50.2", cuda=(13, 0), card="GTX 1080", capability=(6, 1)), "card_too_old", "GTX 1080"),
        (
            replace(installed("0.45.5", "win32", cuda=(12, 1), **RTX), files=installed("0.45.5").files),
            "other_system", "another operating system",
        ),
    ],
)  # fmt: skip
def test_what_the_folder_shows_comes_before_what_was_said(around, cause, said):
    for report in ("dreambooth#303", "bnb#1937", ""):
        verdict = judged(around, report)
        assert verdict.cause == cause and said in verdict.text


def test_for_maxwell_there_is_an_older_wheel_and_before_it_none():
    maxwell = installed("0.50.2", cuda=(12, 6), card="GTX 980", capability=(5, 2))
    assert "bitsandbytes==0.47.0" in judged(maxwell, "bnb#1937").remedy
    kepler = installed("0.50.2", cuda=(11, 8), card="GTX 780", capability=(3, 5))
    assert judged(kepler, "bnb#1937").remedy == OTHERWISE


def test_without_it_there_is_what_to_type_and_on_a_mac_nothing():
    verdict = judged(Surroundings("linux"))
    assert verdict.cause == "missing" and f"-m pip install --no-deps bitsandbytes=={PIN}" in verdict.remedy
    mac = judged(Surroundings("darwin"))
    assert mac.cause == "apple" and mac.remedy == OTHERWISE


@pytest.mark.parametrize(
    ("step", "cause", "said"),
    [
        (Step(None, "it did not end in 180 s"), "timeout", "did not end"),
        (Step(-11, ""), "died", "the process died (code -11)"),
        (Step(0xC0000005, ""), "died", "the process died"),  # Windows: access violation
        (Step(1, "ValueError: something new"), "unknown", "ValueError: something new"),
        (Step(0, "", {"eight_bit": False, "right": True}), "not_8bit", "more than 8 bits"),
        (Step(0, "", {"eight_bit": True, "right": False}), "wrong_step", "the step is wrong"),
    ],
)
def test_what_said_nothing_that_is_known_is_told_by_how_it_ended(step, cause, said):
    around = installed("0.50.2", cuda=(12, 8), **RTX)
    reason = reason_of(around, choose(around, {}), step)
    assert reason.cause == cause
    verdict = judge(around, choose(around, {}), step)
    assert said in verdict.text and not verdict.works


def test_directml_is_named_where_it_is():
    assert (
        "it has nothing for DirectML"
        in judged(installed("0.45.5", "win32", directml=True), "dreambooth#303").text
    )


def test_a_success_says_which_library_took_the_place_of_which():
    around = installed("0.49.0", cuda=(13, 1), **RTX)
    seen = {"version": "0.49.0", "device": "cuda", "eight_bit": True, "right": True}
    verdict = judge(around, choose(around, {}), Step(0, "", seen))
    assert verdict.works and verdict.changes == {"BNB_CUDA_VERSION": "130"}
    assert "no library for CUDA 13.1, the nearest is that for 13.0" in verdict.text
    assert verdict.as_json()["binary"] == "libbitsandbytes_cuda130.so"
    assert (
        judge(around, Choice(), Step(0, "", seen)).text
        == "a real 8-bit step works, bitsandbytes 0.49.0 on cuda"
    )
