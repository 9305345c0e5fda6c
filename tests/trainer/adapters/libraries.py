"""Our adapters' layers beside those of peft and of LyCORIS, on the same weights: prints how far apart they are, as JSON.

Run in a process of its own, where the two are on the path: they are not in the trainer's environment. For each case it
says the largest difference, relative to the largest value, of what the layer gives and of every gradient.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from dreambooth.trainer.adapters.kinds import FACTOR, KINDS, LORA, beginning, factors, scale_of
from dreambooth.trainer.adapters.layers import Adapted

BASES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(48, 64),
    "linear without bias": lambda: nn.Linear(48, 40, bias=False),
    "convolution": lambda: nn.Conv2d(40, 32, 3, 2, 1),
    "convolution of one pixel": lambda: nn.Conv2d(40, 32, 1),
}
ALPHA = 3.0
WIDTHS = (
    4,
    9,
    320,
    640,
    768,
    960,
    1024,
    1280,
    1920,
    2048,
    2560,
    2816,
    3072,
    4096,
    5120,
    10240,
)  # of SD1, SD2, SDXL


@dataclass(frozen=True)
class Case:
    """A layer of ours with an adapter that has learned something, and what it is fed."""

    base: nn.Module
    ours: Adapted
    rank: int
    x: torch.Tensor

    @property
    def values(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.ours.tensors.items()}


def case(kind: str, base: nn.Module, rank: int) -> Case:
    torch.manual_seed(rank)
    shapes = KINDS[kind].shapes(tuple(base.weight.shape), rank)
    tensors = {
        name: beginning(KINDS[kind].starts[name], shape, base, 3) + 0.1 * torch.randn(shape)
        for name, shape in shapes.items()
    }
    ours = Adapted(copy.deepcopy(base).requires_grad_(False), kind, tensors, scale_of(shapes, ALPHA))
    x = torch.randn(3, 5, 48) if base.weight.dim() == 2 else torch.randn(3, 40, 9, 9)
    return Case(base.requires_grad_(False), ours, rank, x)


def apart(
    found: Case, theirs: nn.Module, parameters: dict[str, nn.Parameter], but: tuple[str, ...] = ()
) -> float:
    """The largest relative difference of what two layers give, and of the gradients of their input and parameters."""
    told = []
    for run, held in ((found.ours, found.ours.tensors), (theirs, parameters)):
        x = found.x.clone().requires_grad_()
        out = run(x)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        (out * weights).sum().backward()
        told.append({"out": out.detach(), "x": x.grad, **{name: held[name].grad for name in parameters}})
    ours, others = told
    return max(
        float((ours[name] - others[name].reshape(ours[name].shape)).abs().max() / ours[name].abs().max())
        for name in ours
        if name not in but
    )


def peft_lora(found: Case) -> float:
    """peft's own layer with our factors as its A and B."""
    from peft.tuners.lora import LoraConfig
    from peft.tuners.lora.layer import Conv2d, Linear

    made = Conv2d if isinstance(found.base, nn.Conv2d) else Linear
    config = LoraConfig(r=found.rank, lora_alpha=ALPHA)
    layer = made(found.base, "default", config=config, r=found.rank, lora_alpha=ALPHA)
    parameters = {
        "lora_down.weight": layer.lora_A["default"].weight,
        "lora_up.weight": layer.lora_B["default"].weight,
    }
    fill(parameters, found.values)
    return apart(found, layer, parameters)


def peft_dora_transposed(found: Case) -> float:
    """peft's DoRA has a magnitude for each output: on the transposed weight, with A and B changed over, it is ours.

    What a layer makes of the identity is its weight, and the transpose of it what the transposed layer makes of it.
    """
    from peft.tuners.lora import LoraConfig
    from peft.tuners.lora.layer import Linear

    rows, columns = found.base.weight.shape
    turned = nn.Linear(rows, columns, bias=False).requires_grad_(False)
    turned.weight.copy_(found.base.weight.T)
    config = LoraConfig(r=found.rank, lora_alpha=ALPHA, use_dora=True)
    layer = Linear(turned, "default", config=config, r=found.rank, lora_alpha=ALPHA)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    magnitude = layer.lora_magnitude_vector["default"].weight
    values = found.values
    fill(
        {"a": a, "b": b, "m": magnitude},
        {
            "a": values["lora_up.weight"].T,
            "b": values["lora_down.weight"].T,
            "m": values["dora_scale"].flatten(),
        },
    )
    ours = found.ours(torch.eye(columns))
    theirs = layer(torch.eye(rows)).T
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    held = found.ours.tensors
    pairs = [
        (ours, theirs),
        (held["lora_up.weight"].grad, a.grad.T),
        (held["lora_down.weight"].grad, b.grad.T),
        (held["dora_scale"].grad.flatten(), magnitude.grad),
    ]
    return max(float(((one - other).abs().max() / one.abs().max()).detach()) for one, other in pairs)


def lycoris_layer(name: str, but: tuple[str, ...] = (), **values: object) -> Callable[[Case], float]:
    """One of LyCORIS's modules with our tensors in it, which go by the same names there; gradients `but` these."""

    def compared(found: Case) -> float:
        from lycoris.modules.locon import LoConModule
        from lycoris.modules.loha import LohaModule
        from lycoris.modules.lokr import LokrModule

        made = {"locon": LoConModule, "loha": LohaModule, "lokr": LokrModule}[name]
        module = made("layer", found.base, lora_dim=found.rank, alpha=ALPHA, **values)
        parameters = dict(module.named_parameters())
        assert parameters.keys() == found.ours.tensors.keys(), (parameters.keys(), found.ours.tensors.keys())
        fill(parameters, found.values)
        return apart(found, module, parameters, but)

    return compared


@torch.no_grad()
def fill(parameters: dict[str, nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        assert parameter.shape == values[name].shape, (name, parameter.shape, values[name].shape)
        parameter.copy_(values[name])


COMPARED: dict[str, dict[str, Callable[[Case], float]]] = {
    "lora": {"peft": peft_lora, "LyCORIS": lycoris_layer("locon")},
    "dora": {
        "peft, transposed": peft_dora_transposed,
        # its magnitude is for each input, too; to its gradient the norm is no constant, as to the paper's and peft's
        "LyCORIS": lycoris_layer("locon", LORA, weight_decompose=True, wd_on_out=False),
    },
    "loha": {"LyCORIS": lycoris_layer("loha")},
    "lokr": {"LyCORIS": lycoris_layer("lokr", factor=FACTOR)},
}


def results() -> Iterator[tuple[str, float]]:
    for kind, others in COMPARED.items():
        for other, compared in others.items():
            for name, base in BASES.items():
                if "transposed" in other and name != "linear without bias":
                    continue
                for rank in (2, 4):
                    yield f"{kind} of {other}: {name}, rank {rank}", compared(case(kind, base(), rank))


def widths_cut_otherwise() -> list[int]:
    """Which of the published models' widths LyCORIS cuts into other factors for a Kronecker product."""
    from lycoris.functional.general import factorization

    return [width for width in WIDTHS if factors(width) != factorization(width, FACTOR)]


if __name__ == "__main__":
    print(json.dumps({"apart": dict(results()), "cut otherwise": widths_cut_otherwise()}))
