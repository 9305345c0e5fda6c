"""An 8-bit optimizer is proved before the start; where it does not work, the choice is the user's among what does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dreambooth.shared.errors import InputError
from dreambooth.trainer import eightbit
from dreambooth.trainer.eightbit.reasons import OTHERWISE
from dreambooth.trainer.optim.optimizer_class import install_command, is_installed
from dreambooth.trainer.optim.optimizer_table import TABLE, TORCHAO, TORCHAO_ADAMW8BIT, kind_of

_WITHOUT_8BIT = ("adafactor", "adamw")


def check_8bit(name: str, device: torch.device, kept: Callable[[str], float]) -> eightbit.Verdict | None:
    """The verdict on the optimizer `name` if its state has 8 bits, else None; `kept` gives the bytes that an optimizer
    would keep of this model.

    Raises InputError, with what works instead, if a real step fails; its `more` has the same for programs.
    """
    kind = kind_of(name)
    if not kind.eight_bit:
        return None
    verdict = eightbit.examine(kind.target, device=device.type)
    if verdict.works:
        return verdict
    others = alternatives(name, device, kept)
    listed = "; ".join(_told(other) for other in others)
    remedy = verdict.remedy.removesuffix(OTHERWISE).removesuffix("; or ")
    raise InputError(
        f"{kind.title} does not work here: {verdict.text}",
        where="optimizer",
        remedy=f"{remedy + '; or choose' if remedy else 'choose'} another optimizer: {listed}",
        more={"eight_bit": verdict.as_json() | {"alternatives": others}},
    )


def eight_bit_verdict(name: str, device: torch.device) -> eightbit.Verdict:
    """Whether an 8-bit optimizer works here; for who would take another one."""
    return eightbit.examine(kind_of(name).target, device=device.type)


def alternatives(name: str, device: torch.device, kept: Callable[[str], float]) -> list[dict[str, Any]]:
    """What can be chosen instead of an 8-bit optimizer, each with what it keeps of this model in GB. torchao's is
    tried if it is there; if it is not, `install` says how to get it and nobody knows whether it works here."""
    found = [
        {"optimizer": other, "title": TABLE[other].title, "gb": round(kept(other) / 1e9, 2), "install": ""}
        for other in _WITHOUT_8BIT
    ]
    ao = TORCHAO_ADAMW8BIT
    if name == ao.name or device.type not in ao.devices:
        return found
    there = is_installed(TORCHAO.name)
    if there and not eightbit.examine(ao.target, device=device.type).works:
        return found
    install = "" if there else install_command(TORCHAO)
    return [
        *found,
        {"optimizer": ao.name, "title": ao.title, "gb": round(kept(ao.name) / 1e9, 2), "install": install},
    ]


def _told(other: dict[str, Any]) -> str:
    first = f", after {other['install']}, where it works" if other["install"] else ""
    return f"{other['optimizer']} (keeps {other['gb']:g} GB of this model{first})"
