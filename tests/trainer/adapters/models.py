"""Small checkpoints of every family with the real ones' topology, and adapters on them that have learned something."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from checkpoints import write
from ldm_layout import SMALL_SD1, SMALL_SD2, SMALL_SDXL, Layout, tensors

from dreambooth.shared.config import settings_from
from dreambooth.shared.settings import Settings
from dreambooth.trainer.adapters.attached import Attached, attach
from dreambooth.trainer.adapters.plan import AdapterPlan, adapter_plan
from dreambooth.trainer.adapters.writing import write_adapter
from dreambooth.trainer.models import text
from dreambooth.trainer.models.convert import LoadedModel, load_model
from dreambooth.trainer.models.embeddings import unet_arguments

LAYOUTS: dict[str, Layout] = {
    "sd1": replace(SMALL_SD1, multiples=(1, 1, 1, 1)),
    "sd1-inpaint": replace(SMALL_SD1, multiples=(1, 1, 1, 1), in_channels=9),
    "sd2": replace(SMALL_SD2, multiples=(1, 1, 1, 1)),
    "sd2-inpaint": replace(SMALL_SD2, multiples=(1, 1, 1, 1), in_channels=9),
    "sdxl": replace(SMALL_SDXL, multiples=(1, 1, 1)),
}
IDS = torch.tensor([[[298, 5, 17, 60, *[299] * 73]]])


@functools.cache
def weights(family: str) -> dict[str, torch.Tensor]:
    """The family's tensors, made once; nobody may write to them."""
    return tensors(LAYOUTS[family], dtype=torch.float32)


def base(folder: Path, family: str) -> Path:
    """The family's checkpoint in a folder."""
    path = folder / f"{family}.safetensors"
    return path if path.exists() else write(path, weights(family))


def settings(model: Path, **values: object) -> Settings:
    """Settings of an adapter of rank 4."""
    given = {"output_kind": "lora", "rank": 4, **values}
    return settings_from(
        {"model": str(model), **{name: str(value) for name, value in given.items()}}, where="test"
    )


def components(model: LoadedModel) -> list[str]:
    """What of a model can have an adapter."""
    return [name for name in model.identified.family.components if name != "vae"]


def planned(model: LoadedModel, **values: object) -> AdapterPlan:
    plan = adapter_plan(settings(model.source.path, **values), model, components(model))
    assert plan is not None
    return plan


@torch.no_grad()
def learned(attached: Attached, model: LoadedModel, size: float = 0.1) -> dict[str, dict[str, torch.Tensor]]:
    """The adapter's numbers after they were moved at random, as a training would."""
    generator = torch.Generator().manual_seed(7)
    state = {name: attached.state(name) for name in components(model)}
    for tensors_ in state.values():
        for tensor in tensors_.values():
            tensor += (
                size * torch.randn(tensor.shape, generator=generator) * max(float(tensor.abs().mean()), 0.3)
            )
    return state


def trained(
    folder: Path, family: str, *, path: Path | None = None, **values: object
) -> tuple[LoadedModel, Path]:
    """A model with an adapter that has learned something, and the file that was written of it, float32."""
    model = load_model(base(folder, family), components=_without_vae(family), prediction_type="epsilon")
    plan = planned(model, **values)
    attached = attach(model.components, plan, seed=3)
    state = learned(attached, model)
    path = path or folder / "adapter.safetensors"
    write_adapter(path, model, plan, state, output_dtype=torch.float32, metadata={}, overwrite=True)
    return model, path


def _without_vae(family: str) -> list[str]:
    return ["unet", "text_encoder", *(["text_encoder_2"] if family == "sdxl" else [])]


@torch.no_grad()
def prediction(model: LoadedModel) -> torch.Tensor:
    """What the whole model says of fixed noise and a fixed prompt."""
    family = model.identified.family
    encoders = text.encoders_of(model.components, family)
    told = text.encode(encoders, family, IDS)
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(1, family.in_channels, 16, 16, generator=generator)
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]]) if family.sized else None
    out: torch.Tensor = model.components["unet"](
        noise, torch.tensor([400]), **unet_arguments(told, sizes), return_dict=False
    )[0]
    return out


def reloaded(folder: Path, family: str, found: dict[str, torch.Tensor]) -> LoadedModel:
    """A checkpoint of these tensors, loaded."""
    path = write(folder / "merged by hand.safetensors", found)
    return load_model(path, components=_without_vae(family), prediction_type="epsilon")


@functools.cache
def plain(family: str) -> torch.Tensor:
    """What the base says."""
    with tempfile.TemporaryDirectory() as folder:
        return prediction(
            load_model(base(Path(folder), family), components=_without_vae(family), prediction_type="epsilon")
        )
