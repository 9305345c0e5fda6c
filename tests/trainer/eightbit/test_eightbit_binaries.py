from __future__ import annotations

from dataclasses import replace

import pytest
import recorded
from recorded import installed

from dreambooth.trainer.eightbit.binaries import binaries, choose, lowest_capability, nearest

BOTH = ("linux", "win32")
CARD = {"card": "RTX 3090", "capability": (8, 6)}


@pytest.mark.parametrize("platform", BOTH)
@pytest.mark.parametrize("wheel", [wheel for wheel in recorded.WHEELS if wheel != "0.35.4"])
def test_every_library_of_every_wheel_is_read(wheel, platform):
    names = {name for name in recorded.listing(wheel, platform) if "_cuda" in name or "_rocm" in name}
    found = binaries(recorded.listing(wheel, platform), platform)
    assert {binary.name for binary in found} == names and len(found) == len(names)


def test_versions_are_cudas_two_digits_and_rocms_one():
    found = {binary.name: binary.version for binary in binaries(recorded.listing("0.50.2", "linux"), "linux")}
    assert found["libbitsandbytes_cuda128.so"] == (12, 8)
    assert found["libbitsandbytes_rocm72.so"] == (7, 2)
    assert found["libbitsandbytes_rocm714.so"] == (7, 14)


def test_another_systems_libraries_are_none():
    assert binaries(recorded.listing("0.45.5", "linux"), "win32") == []
    assert (
        binaries(
            ["libbitsandbytes_cpu.so", "libbitsandbytes_xpu2026.so", "libbitsandbytes_cudaall.dll"], "linux"
        )
        == []
    )


@pytest.mark.parametrize(
    ("there", "wanted", "found"),
    [
        ([(12, 4), (12, 6), (12, 8)], (12, 6), (12, 6)),
        ([(12, 4), (12, 6), (12, 8)], (12, 7), (12, 6)),
        ([(12, 4), (12, 6)], (12, 1), (12, 4)),
        ([(11, 8), (13, 0)], (12, 6), None),
        ([(7, 2), (7, 14)], (7, 10), (7, 2)),
        ([], (12, 6), None),
    ],
)
def test_the_nearest_is_the_same_else_lower_else_higher_of_the_same_major(there, wanted, found):
    assert nearest(there, wanted) == found


@pytest.mark.parametrize(
    ("wheel", "cuda", "platform", "binary", "override"),
    [
        ("0.45.5", (12, 1), "win32", "libbitsandbytes_cuda121.dll", None),
        ("0.45.5", (12, 8), "linux", "libbitsandbytes_cuda128.so", None),
        ("0.45.5", (12, 9), "win32", "libbitsandbytes_cuda128.dll", "128"),
        ("0.49.0", (13, 1), "linux", "libbitsandbytes_cuda130.so", "130"),  # bnb#1848: what cured it
        ("0.49.0", (13, 2), "win32", "libbitsandbytes_cuda130.dll", "130"),
        ("0.48.0", (11, 7), "linux", "libbitsandbytes_cuda118.so", "118"),  # none is lower
        ("0.50.2", (12, 9), "win32", "libbitsandbytes_cuda128.dll", None),  # it finds that itself
        ("0.50.2", (13, 1), "linux", "libbitsandbytes_cuda130.so", None),
        ("0.44.1", (12, 4), "linux", "libbitsandbytes_cuda124.so", None),
        ("0.44.1", (12, 6), "linux", "libbitsandbytes_cuda125.so", "125"),  # bnb#1068, #1315
    ],
)
def test_the_override_is_set_only_where_the_wheel_would_not_find_the_library(
    wheel, cuda, platform, binary, override
):
    choice = choose(installed(wheel, platform, cuda=cuda, **CARD), {})
    assert (choice.binary, choice.trouble) == (binary, "")
    assert choice.changes == ({"BNB_CUDA_VERSION": override} if override else {})
    assert bool(choice.why) is bool(override)


@pytest.mark.parametrize("wheel", ["0.45.5", "0.49.0", "0.50.2"])
def test_an_override_that_names_a_library_that_is_there_is_obeyed(wheel):
    choice = choose(installed(wheel, cuda=(12, 8), **CARD), {"BNB_CUDA_VERSION": "126"})
    assert choice.binary == "libbitsandbytes_cuda126.so" and choice.changes == {}
    assert "BNB_CUDA_VERSION asks for it" in choice.why


@pytest.mark.parametrize("value", ["199", "129", "", "12.8", "x", "1"])
def test_an_override_that_names_none_is_removed_and_the_right_library_taken(value):
    """bnb#1559. The newest refuses to load anything for one that is empty or no number."""
    choice = choose(installed("0.50.2", cuda=(12, 8), **CARD), {"BNB_CUDA_VERSION": value})
    assert choice.changes == {"BNB_CUDA_VERSION": None}
    assert choice.binary == "libbitsandbytes_cuda128.so"
    assert f"BNB_CUDA_VERSION={value} names a library that is not there" in choice.why


def test_an_override_that_names_none_gives_way_to_the_one_that_is_needed():
    choice = choose(installed("0.49.0", cuda=(13, 1), **CARD), {"BNB_CUDA_VERSION": "131"})
    assert choice.changes == {"BNB_CUDA_VERSION": "130"}


def test_to_choose_again_after_the_changes_changes_nothing():
    around = installed("0.49.0", cuda=(13, 1), **CARD)
    first = choose(around, {})
    again = choose(around, {name: value for name, value in first.changes.items() if value})
    assert again.changes == {} and again.binary == first.binary


# ---- cards -----------------------------------------------------------------------------------------------------------

PASCAL = {"card": "GTX 1080 Ti", "capability": (6, 1)}


@pytest.mark.parametrize(
    ("wheel", "cuda", "binary", "override"),
    [
        ("0.50.2", (12, 6), "libbitsandbytes_cuda126.so", None),
        ("0.50.2", (12, 8), "libbitsandbytes_cuda126.so", "126"),  # that for 12.8 has no code for Pascal
        ("0.45.5", (12, 8), "libbitsandbytes_cuda126.so", "126"),
        ("0.44.1", (12, 1), "libbitsandbytes_cuda121_nocublaslt.so", None),
        ("0.44.1", (12, 6), "libbitsandbytes_cuda125_nocublaslt.so", "125"),
    ],
)
def test_a_pascal_card_gets_a_library_that_has_code_for_it(wheel, cuda, binary, override):
    choice = choose(installed(wheel, cuda=cuda, **PASCAL), {})
    assert choice.binary == binary and not choice.trouble
    assert choice.changes == ({"BNB_CUDA_VERSION": override} if override else {})


def test_a_build_that_says_no_version_is_chosen_from_like_an_old_one():
    around = replace(installed("0.45.5", cuda=(12, 9), **PASCAL), bitsandbytes=(), version_text="")
    assert choose(around, {}).changes == {"BNB_CUDA_VERSION": "128"}


def test_a_card_that_no_library_has_code_for_is_said_to_be_too_old():
    assert choose(installed("0.50.2", cuda=(13, 0), **PASCAL), {}).trouble == "card_too_old"
    maxwell = {"card": "GTX 980", "capability": (5, 2)}
    assert choose(installed("0.50.2", cuda=(12, 6), **maxwell), {}).trouble == "card_too_old"
    assert choose(installed("0.46.1", cuda=(12, 6), **maxwell), {}).binary == "libbitsandbytes_cuda126.so"


def test_the_lowest_capability_is_that_of_the_wheels_build():
    assert lowest_capability((0, 50, 2), (12, 6)) == (6, 0)
    assert lowest_capability((0, 49), (12, 9)) == (7, 0)
    assert lowest_capability((0, 48), (13, 0)) == (7, 5)
    assert lowest_capability((0, 46, 1), (12, 8)) == (7, 5)
    assert lowest_capability((0, 43), (11, 8)) == (5, 0)


BLACKWELL = {"card": "RTX 5090", "capability": (12, 0)}


def test_a_blackwell_card_wants_a_library_of_its_time():
    """bnb#1510, #1937: torch for it has CUDA 12.8 or later, an older wheel nothing."""
    assert choose(installed("0.45.5", "win32", cuda=(12, 8), **BLACKWELL), {}).trouble == ""
    old = choose(installed("0.44.1", "win32", cuda=(12, 8), **BLACKWELL), {})
    assert (old.binary, old.trouble) == ("libbitsandbytes_cuda125.dll", "card_too_new")


def test_the_form_without_cublaslt_cannot_be_overridden_before_044():
    assert choose(installed("0.43.0", cuda=(12, 4), **PASCAL), {}).trouble == "no_override"
    assert choose(installed("0.43.0", cuda=(12, 4), **CARD), {}).changes == {"BNB_CUDA_VERSION": "123"}


# ---- what has no library ---------------------------------------------------------------------------------------------


def test_no_library_of_the_same_major_is_none():
    assert choose(installed("0.45.5", cuda=(13, 0), **CARD), {}).trouble == "no_binary"
    assert choose(replace(installed("0.50.2", cuda=(12, 8)), files=frozenset()), {}).trouble == "no_binary"


def test_linux_libraries_on_windows_are_those_of_another_system():
    around = replace(installed("0.35.4", "win32", cuda=(11, 6), **CARD))
    assert choose(around, {}).trouble == "other_system"


def test_a_torch_without_a_card_chooses_nothing_and_touches_nothing():
    choice = choose(installed("0.50.2"), {"BNB_CUDA_VERSION": "999"})
    assert (choice.binary, choice.changes, choice.trouble) == ("", {}, "")


# ---- ROCm ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wheel", "platform", "hip", "binary", "trouble"),
    [
        ("0.50.2", "linux", (7, 1), "libbitsandbytes_rocm71.so", ""),
        ("0.50.2", "linux", (6, 3), "libbitsandbytes_rocm64.so", ""),
        ("0.50.2", "win32", (7, 14), "libbitsandbytes_rocm714.dll", ""),
        ("0.50.2", "win32", (6, 4), "", "no_binary"),
        ("0.49.0", "linux", (6, 3), "libbitsandbytes_rocm63.so", ""),
        ("0.49.0", "linux", (7, 2), "", "no_override"),  # it has 7.1 and cannot be told so
        ("0.49.0", "win32", (7, 1), "", "no_binary"),
        ("0.45.5", "linux", (6, 2), "", "no_binary"),
    ],
)
def test_rocm_has_libraries_of_its_own(wheel, platform, hip, binary, trouble):
    choice = choose(installed(wheel, platform, hip=hip, card="RX 7900 XTX", capability=(11, 0)), {})
    assert (choice.binary, choice.trouble, choice.changes) == (binary, trouble, {})


def test_rocms_override_is_its_own_and_cudas_is_taken_away_where_it_does_harm():
    around = installed("0.50.2", hip=(7, 1), card="RX 7900 XTX", capability=(11, 0))
    assert choose(around, {"BNB_ROCM_VERSION": "72"}).binary == "libbitsandbytes_rocm72.so"
    assert choose(around, {"BNB_ROCM_VERSION": "99"}).changes == {"BNB_ROCM_VERSION": None}
    assert choose(around, {"BNB_CUDA_VERSION": "124"}).changes == {}
    older = installed("0.49.0", hip=(7, 1), card="RX 7900 XTX", capability=(11, 0))
    assert choose(older, {"BNB_CUDA_VERSION": "124"}).changes == {"BNB_CUDA_VERSION": None}
