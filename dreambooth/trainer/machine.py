"""What this machine can do of what the settings ask for.

What was asked for by name and cannot be had is an error before the start; what is `auto` becomes what can be
had, and the plan says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dreambooth.shared.errors import InputError
from dreambooth.shared.settings import Settings
from dreambooth.trainer import arithmetic
from dreambooth.trainer.models import attention
from dreambooth.trainer.optim.optimizer_rules import check_device

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Machine:
    """What a run will use. `mixed_precision` is no, fp16 or bf16; `notes` say what `auto` became and why. Class images are
    drawn in `pictures`, another of these where a processor trains in float32 and is faster in bf16."""

    device: torch.device
    device_name: str
    mixed_precision: str
    attention: str
    pictures: str
    notes: tuple[str, ...] = ()

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of what is not trained: in mixed precision its weights need no float32."""
        return PRECISIONS[self.mixed_precision]

    @property
    def picture_dtype(self) -> torch.dtype:
        """The dtype of the UNet that draws class images."""
        return PRECISIONS[self.pictures]


def choose_device() -> torch.device:
    """The card if there is one, else the CPU. Apple's MPS is used where torch has it."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def device_title(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return {"mps": "Apple GPU", "cpu": "CPU"}.get(device.type, device.type)


def examine(settings: Settings) -> Machine:
    """The machine's part of the plan. Raises InputError for what was named and cannot be had."""
    device = choose_device()
    notes: list[str] = []
    precision = _precision(settings.training.mixed_precision, device)
    if settings.training.mixed_precision == "auto" and device.type != "cpu":
        notes.append(f"mixed_precision: {precision} (auto, on {device_title(device)})")
    if device.type == "cpu":
        notes.append("no graphics card was found: the CPU trains, many times slower")
    chosen = attention.choose(settings.model.attention, device)
    check_device(settings.training.optimizer, device)
    if arithmetic.tensor_floats(device, PRECISIONS[precision]):
        notes.append(f"what stays in float32 beside {precision} is multiplied as TF32")
    is_free = settings.training.mixed_precision == "auto" and device.type == "cpu"
    pictures = "bf16" if is_free and arithmetic.multiplies_bf16() else precision
    return Machine(device, device_title(device), precision, chosen, pictures, tuple(notes))


def auto_precision(device: torch.device) -> str:
    """bf16 on a card that has it, else fp16 there; no on everything else."""
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def _precision(asked: str, device: torch.device) -> str:
    if asked == "auto":
        return auto_precision(device)
    bf16 = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported())
    if asked == "bf16" and not bf16:
        raise InputError(
            f"{device_title(device)} cannot compute in bf16",
            where="mixed_precision",
            remedy="use fp16 or auto",
        )
    if asked == "fp16" and device.type != "cuda":
        raise InputError(
            f"fp16 training needs an NVIDIA or AMD card, and this is a {device_title(device)}",
            where="mixed_precision",
            remedy="use no, bf16 or auto",
        )
    return asked
