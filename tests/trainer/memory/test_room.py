"""How much a run may take: what is free, what will be given back, what the user allows."""

from __future__ import annotations

import pytest
import torch

from dreambooth.environment import RETURNED_VARIABLE
from dreambooth.trainer.memory import room
from dreambooth.trainer.memory.room import GB, Room, keep_to, room_on


def test_a_limit_is_what_a_smaller_card_would_be() -> None:
    whole, limited = (
        Room("the card", "cuda", 24 * GB, 20 * GB),
        Room("the card", "cuda", 24 * GB, 20 * GB, 8 * GB),
    )
    assert whole.allowed == 20 * GB and limited.allowed == 8 * GB
    assert Room("the card", "cuda", 24 * GB, 6 * GB, 8 * GB).allowed == 6 * GB
    assert limited.usable < limited.allowed and whole.usable < whole.allowed


def test_windows_keeps_more_of_a_card() -> None:
    assert Room("", "cuda", GB, GB, windows=True).usable < Room("", "cuda", GB, GB).usable
    assert Room("", "cpu", GB, GB, windows=True).usable == Room("", "cpu", GB, GB).usable


def test_a_cards_room_is_what_is_free_and_what_the_webui_will_give_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GB, 24 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: GB)
    card = torch.device("cuda", 0)
    assert room_on(card, 0, environ={}).free == 11 * GB
    assert room_on(card, 0, environ={RETURNED_VARIABLE: str(4 * GB)}).free == 15 * GB
    assert room_on(card, 0, environ={RETURNED_VARIABLE: str(40 * GB)}).free == 24 * GB, (
        "never more than there is"
    )
    assert room_on(card, 0, environ={RETURNED_VARIABLE: "much"}).free == 11 * GB
    assert room_on(card, 6, environ={}).allowed == 6 * GB


def test_processes_without_a_card_share_the_computers_memory() -> None:
    one, two = (room_on(torch.device("cpu"), 0, processes, environ={}) for processes in (1, 2))
    assert one.total == two.total and one.device == "cpu"
    assert abs(one.free - 2 * two.free) < 0.2 * one.total  # both are read at moments of their own


def test_a_limit_is_kept_by_torch_on_a_card_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[float, object]] = []
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: type("", (), {"total_memory": 24 * GB})
    )
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: kept.append((share, device))
    )
    card = torch.device("cuda", 0)
    assert keep_to(card, 6.0) and kept == [(0.25, card)]
    assert keep_to(card, 48.0) and kept[-1] == (1.0, card)
    assert not keep_to(card, 0.0) and not keep_to(torch.device("cpu"), 6.0) and len(kept) == 2
    assert room.GB == 2**30
