"""The models of a run: what draws class images, what is trained, what has been written; each where and as it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from dreambooth.trainer import arithmetic, assembly
from dreambooth.trainer.adapters.merging import Request
from dreambooth.trainer.memory.phases import CLASS_IMAGES, RESULT_SAMPLES
from dreambooth.trainer.models.convert import LoadedModel, load_model
from dreambooth.trainer.models.int8 import is_int8, quantise, stored_dtype
from dreambooth.trainer.models.tiles import use_tiles
from dreambooth.trainer.planning.plan import Plan

UNET = ("unet",)


class RunModels:
    """Loads models as a plan has them, on its device."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._settings = plan.settings
        self._device = plan.machine.device

    def base(
        self,
        dtype: torch.dtype,
        components: Sequence[str] | None = None,
        *,
        layout: torch.memory_format = torch.preserve_format,
        away: Sequence[str] = (),
    ) -> LoadedModel:
        """The untrained model, or these of its components, on the device, but for those that stay `away` until they are
        brought."""
        model = self._read(dtype, components)
        for name, module in model.components.items():
            if name not in away:
                module.to(self._device, memory_format=layout)  # type: ignore[call-overload]
        return model

    def drawing(self) -> LoadedModel:
        """The model as it draws class images. Where its UNet is narrower than the training (on a processor), the rest
        stays as exact as that is: it takes little of the time."""
        machine = self._plan.machine
        if machine.picture_dtype == machine.compute_dtype:
            layout = arithmetic.memory_format(self._device, machine.compute_dtype)
            return self.base(machine.compute_dtype, layout=layout, away=self._away(CLASS_IMAGES))
        names = self._plan.base.identified.family.components
        model = self.base(machine.compute_dtype, [name for name in names if name != "unet"])
        model.components |= self.base(machine.picture_dtype, ["unet"]).components
        return model

    def trained(self) -> LoadedModel:
        """The model as it is trained: what is trained whole, and the VAE, in float32; the rest as it is computed, so
        that a card never holds the base of an adapter in float32. The UNet is brought once all is encoded."""
        trained = self._plan.trained if self._plan.adapter is None else ()
        names = self._plan.base.identified.family.components
        wide = [name for name in names if name == "vae" or name in trained]
        narrow = [name for name in names if name not in wide]
        dtype, layout = self._plan.machine.compute_dtype, assembly.layout(self._plan)
        if not narrow or (dtype == torch.float32 and not is_int8(self._settings)):
            return self.base(torch.float32, layout=layout, away=UNET)
        model = self.base(torch.float32, wide, layout=layout, away=UNET)
        if is_int8(self._settings):
            found = {name: self._int8(name, layout) for name in narrow}
        else:
            found = self.base(dtype, narrow, layout=layout, away=UNET).components
        found = model.components | found
        model.components = {name: found[name] for name in names}
        return model

    def _int8(self, name: str, layout: torch.memory_format) -> nn.Module:
        """A component in 8 bit, made of the file's own numbers: the device never holds it in another form."""
        module = self._read(stored_dtype(self._plan.base, name), [name]).components[name]
        quantise(module, self._plan.machine.compute_dtype, self._device)
        return nn.Module.to(module, memory_format=layout)  # type: ignore[call-overload,no-any-return]

    def written(self, result: Path | None) -> LoadedModel:
        """What a user has now: the result, an adapter's on its base; None: the base alone."""
        is_base = result is None or self._plan.adapter is not None
        model = load_model(
            self._settings.model.model if result is None or is_base else result,
            prediction_type=self._plan.base.identified.prediction_type,
            use_ema_weights=is_base and self._settings.model.use_ema_weights,
            dtype=self._plan.machine.compute_dtype,
            mapped=self._device.type != "cpu",
            adapters=[Request(result)] if result is not None and is_base else [],
        )
        self._tile(model.components)
        away = self._away(RESULT_SAMPLES)
        for name, module in model.components.items():
            if name not in away:
                module.to(self._device)
        return model

    def _away(self, phase: str) -> Sequence[str]:
        """What is not on the device all through a phase of pictures: all but the UNet, where it would not fit beside it."""
        if self._plan.memory is None or not self._plan.memory.in_turn(phase):
            return ()
        return [name for name in self._plan.base.identified.family.components if name not in UNET]

    def _read(self, dtype: torch.dtype, components: Sequence[str] | None) -> LoadedModel:
        """The untrained model in the computer's memory."""
        model = load_model(
            self._settings.model.model,
            dtype=dtype,
            components=components,
            prediction_type=self._settings.model.prediction_type,
            use_ema_weights=self._settings.model.use_ema_weights,
            vae=self._settings.model.vae or None,
            # on its way to a card; on a CPU the weights stay for hours, in which others may write to the file
            mapped=self._device.type != "cpu",
        )
        self._tile(model.components)
        return model

    def _tile(self, components: Mapping[str, nn.Module]) -> None:
        if "vae" in components:
            use_tiles(components["vae"], self._settings.images.vae_tiling == "yes")
