"""A driver that spills is noticed from readings: none of them is of a real card here."""

from __future__ import annotations

import pytest
import torch

from dreambooth.trainer import spill
from dreambooth.trainer.spill import PATIENCE, Pace, Reading, SpillWatch, can_spill, told

GB = 2**30
CARD = 8 * GB
CUDA = torch.device("cuda", 0)


def reading(seconds: float, *, free: float = 2.0, reserved: float = 5.0) -> Reading:
    """Of a card with 8 GB; sizes in GB."""
    return Reading(seconds, int(free * GB), CARD, int(reserved * GB))


def verdicts(readings: list[Reading], usual: float | None = None) -> list[bool]:
    pace = Pace(usual)
    return [pace.spills(given) for given in readings]


FITS = reading(1.0)
SPILLS = reading(8.0, free=0.0, reserved=7.9)


def test_a_full_card_whose_steps_became_many_times_slower_spills():
    """As when sample pictures, or another program, push a training over the edge."""
    assert verdicts([FITS, FITS, SPILLS, SPILLS, SPILLS]) == [False] * 4 + [True]


@pytest.mark.parametrize(
    "later",
    [
        reading(1.1, free=0.0, reserved=7.9),  # full, and as fast as before: it just fits
        reading(8.0),  # slow, with room: a game, a virus scanner, heat
        reading(2.5, free=0.1, reserved=7.8),  # a larger bucket
    ],
    ids=["full and fast", "slow with room", "a little slower"],
)
def test_one_of_both_alone_is_no_spilling(later):
    assert not any(verdicts([FITS, *[later] * 10]))


def test_one_slow_moment_is_no_spilling():
    assert not any(verdicts([FITS, SPILLS, SPILLS, FITS, SPILLS, SPILLS, FITS]))


def test_more_than_the_card_has_can_only_be_elsewhere():
    """From the first step on, when no step was ever fast: torch has 11 GB of an 8 GB card."""
    over = reading(9.0, free=0.0, reserved=11.0)
    assert verdicts([over] * PATIENCE) == [False] * (PATIENCE - 1) + [True]


def test_others_memory_counts_and_what_was_expected_tells_what_is_slow():
    """A WebUI that keeps its model: torch here has 5 GB, and nothing is free."""
    shared = reading(8.0, free=0.0, reserved=5.0)
    assert verdicts([shared] * PATIENCE, usual=1.0)[-1]
    assert not any(verdicts([shared] * 10)), "full from the start, and nobody knows what is usual"


@pytest.mark.parametrize(
    ("device", "system", "release", "expected"),
    [
        (CUDA, "win32", "10", True),
        (CUDA, "linux", "5.15.153.1-microsoft-standard-WSL2", True),
        (CUDA, "linux", "6.8.0-45-generic", False),
        (torch.device("cpu"), "win32", "10", False),
        (torch.device("mps"), "darwin", "23.1.0", False),
    ],
)
def test_only_nvidias_driver_on_windows_spills(device, system, release, expected):
    assert can_spill(device, system, release) is expected


def test_amds_driver_does_not(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert not can_spill(CUDA, "win32", "10")


def test_it_is_said_once_with_the_remedy(monkeypatch):
    said: list[dict[str, object]] = []
    monkeypatch.setattr(spill, "can_spill", lambda device: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, CARD))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7 * GB)
    watch = SpillWatch(CUDA, lambda event, **fields: said.append({"event": event, **fields}), usual=0.5)
    for _ in range(10):
        watch(4.0)
    (warning,) = said
    assert warning["event"] == "warning" and warning["memory"] == {"spills": True}
    assert "a step takes 4 s instead of 0.5 s" in warning["text"]
    assert "Prefer No Sysmem Fallback" in warning["text"] and "gradient_checkpointing" in warning["text"]
    assert "instead of" not in told(reading(9.0, free=0.0, reserved=11.0), None)


def test_elsewhere_no_card_is_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", None)
    SpillWatch(torch.device("cpu"), lambda *_, **__: None)(100.0)
