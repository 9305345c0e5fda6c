"""The card that this machine may not have: `--standin-card GB` gives it one, whose memory is counted."""

import sys
import types
from dataclasses import dataclass

from modules.shared_cmd_options import cmd_opts


@dataclass(frozen=True)
class Device:
    type: str
    index: int | None = None


@dataclass
class Card:
    total_gb: float
    used_gb: float = 0.0
    visits: int = 0  # of models that come for one picture, or for a training


cpu = Device("cpu")
meta = Device("meta")
card = Card(cmd_opts.standin_card)
device = Device("cuda", int(cmd_opts.device_id) if cmd_opts.device_id else None) if card.total_gb else cpu


def torch_gc():
    """Gives the card's cached memory back; what is counted here is never cached."""


def _memory(_index=None):
    return int((card.total_gb - card.used_gb) * 1024**3), int(card.total_gb * 1024**3)


if card.total_gb and "torch" not in sys.modules:
    cuda = types.SimpleNamespace(
        mem_get_info=_memory, current_device=lambda: 0, is_available=lambda: True,
        memory_reserved=lambda _index=None: int(card.used_gb * 1024**3),
    )  # fmt: skip
    sys.modules["torch"] = types.ModuleType("torch")
    sys.modules["torch"].cuda = cuda
