"""Models without memory, as a run builds them, made once for all counts of a plan."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from dreambooth.trainer import assembly
from dreambooth.trainer.engine import Denoiser
from dreambooth.trainer.models import text
from dreambooth.trainer.models.checkpointing import checkpointable_units, units_of, wanted
from dreambooth.trainer.models.convert import LoadedModel
from dreambooth.trainer.models.int8 import is_int8, quantise
from dreambooth.trainer.models.loading import empty_module

if TYPE_CHECKING:
    from dreambooth.trainer.planning.plan import Plan

# As many images as a count may be made with: none of them divides what operations (32 groups) or tokens (77) have to do with
PRIMES = (37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113)
Made = TypeVar("Made")
_shared: ContextVar[dict[Any, Any] | None] = ContextVar("models of a plan", default=None)


@contextmanager
def sharing() -> Iterator[None]:
    """What is made while the block runs is kept for the next count in it.

    Python looks for no circles of garbage meanwhile: with so many small objects that takes a quarter of the time.
    """
    token, collects = _shared.set({}), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        _shared.reset(token)
        if collects:
            gc.enable()


def _once(key: Any, make: Callable[[], Made]) -> Made:
    shared = _shared.get()
    if shared is None:
        return make()
    if key not in shared:
        shared[key] = make()
    found: Made = shared[key]
    return found


def resting(base: LoadedModel, component: str, dtype: torch.dtype) -> Any:
    """A component that nothing is trained of."""
    return _once((id(base), component, dtype), lambda: _made(component, base.configs[component], dtype))


def _made(component: str, config: Mapping[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    module = empty_module(component, config)
    # diffusers' own `to` warns of what is none of our business
    return torch.nn.Module.to(module, dtype=dtype).eval().requires_grad_(False)


def in_training(plan: Plan, dtypes: Mapping[str, torch.dtype]) -> Denoiser:
    """What a plan trains, of components that are loaded as `dtypes` says, with as many blocks computed twice as it has."""
    model, training = plan.settings.model, plan.settings.training
    key = (
        id(plan.base), id(plan.adapter), tuple(plan.trained), model.base_precision, model.clip_skip, training.weights_dtype,
        tuple(dtypes.items()),
    )  # fmt: skip
    made, denoiser = _once(key, lambda: _trained(plan, dtypes))
    assembly.checkpoint(plan, made, training.gradient_checkpointing)
    return denoiser


def blocks_twice(plan: Plan, denoiser: Denoiser) -> set[torch.nn.Module]:
    """The UNet's blocks that are computed twice."""
    count = wanted(plan.settings.training.gradient_checkpointing, units_of(plan.base))
    return {unit.module for unit in checkpointable_units(denoiser.unet)[:count]}


def _trained(plan: Plan, dtypes: Mapping[str, torch.dtype]) -> tuple[LoadedModel, Denoiser]:
    base, family = plan.base, plan.base.identified.family
    model = LoadedModel(base.identified, base.source, base.description)
    for name in family.components:
        if name != "vae":
            model.components[name] = _made(name, base.configs[name], dtypes[name])
            if is_int8(plan.settings):
                quantise(model.components[name], dtypes[name], torch.device("meta"))
    assembly.trained_weights(plan, model)
    encoders = text.encoders_of(model.components, family) if plan.trains_text else []
    denoiser = Denoiser(model.components["unet"], encoders, family, plan.settings.model.clip_skip)
    return model, denoiser


def telling(modules: Iterable[torch.nn.Module]) -> int:
    """A number of images that divides no weight's size: of what is computed, it divides what there is for each image."""
    sizes = {tensor.numel() for module in modules for tensor in (*module.parameters(), *module.buffers())}
    return next(prime for prime in PRIMES if all(size % prime for size in sizes))
