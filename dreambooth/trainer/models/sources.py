"""What stands for a single file: a diffusers folder, or a file seen with its averaged weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dreambooth.shared.errors import InputError
from dreambooth.trainer.families.detect import family_of
from dreambooth.trainer.families.ldm_yaml import Stated, read_yaml
from dreambooth.trainer.families.names import UNET_PREFIX, VAE_PREFIX, ema_name
from dreambooth.trainer.weights import TensorInfo, WeightFile, open_weights
from dreambooth.trainer.weights.base import RawBytes

EMA_PREFIX = "model_ema."
VAE_STARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")


@dataclass(frozen=True)
class Opened:
    """A checkpoint's tensors, and what stands beside them."""

    weights: WeightFile
    stated: Stated | None


def open_model(path: str | Path, *, use_ema_weights: bool = False) -> Opened:
    """Open a single file or a diffusers folder, with the UNet's averaged weights if asked for.

    Raises InputError for whatever cannot be opened, and if there are no averaged weights.
    """
    path = Path(path)
    if path.is_dir():
        from dreambooth.trainer.models.diffusers_folder import open_folder

        folder = open_folder(path)
        opened = Opened(folder, folder.stated)
    else:
        weights = open_weights(path)
        opened = Opened(weights, read_yaml(path))
    return Opened(averaged(opened.weights), opened.stated) if use_ema_weights else opened


class RenamedFile:
    """A weight file seen under other names: `names` maps those to the file's own."""

    def __init__(self, file: WeightFile, names: Mapping[str, str]) -> None:
        self._file = file
        self._names = names
        self.path = file.path
        self.format = file.format
        self.metadata = file.metadata
        self.extras = file.extras
        self.tensors: dict[str, TensorInfo] = {name: file.tensors[own] for name, own in names.items()}

    def read(self, name: str) -> torch.Tensor:
        """The tensor in memory of its own, in its stored dtype."""
        return self._file.read(self._names[name])

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Fill `out` with the tensor, cast to `out`'s dtype."""
        self._file.read_into(self._names[name], out)

    def raw(self, name: str) -> RawBytes | None:
        """What reads the tensor's bytes, row by row; None if they do not lie in this order."""
        return self._file.raw(self._names[name])

    def mapped(self, name: str) -> torch.Tensor | None:
        """The tensor in the file's own pages, copied where it is written to; None where that cannot be."""
        return self._file.mapped(self._names[name])


def averaged(file: WeightFile) -> WeightFile:
    """The file with the UNet's averaged weights in place of its own, which are left out with the average.

    Raises InputError if the file has none, or not all.
    """
    names = {name: ema_name(name) for name in file.tensors if name.startswith(UNET_PREFIX)}
    missing = [own for own in names.values() if own not in file.tensors]
    if missing:
        none = not any(name.startswith(EMA_PREFIX) for name in file.tensors)
        what = "it holds no averaged (EMA) weights" if none else f"its averaged weights lack {missing[0]}"
        raise InputError(
            what,
            where=str(file.path),
            setting="use_ema_weights",
            remedy="turn use_ema_weights off, or take the file that has them",
        )
    return RenamedFile(
        file,
        {name: names.get(name, name) for name in file.tensors if not name.startswith(EMA_PREFIX)},
    )


def open_vae(path: str | Path) -> WeightFile:
    """An autoencoder, alone or within a checkpoint, under the names it has in a checkpoint.

    Raises InputError if there is none in the original layout.
    """
    path = Path(path)
    if path.is_dir():
        from dreambooth.trainer.models.diffusers_folder import open_vae_folder

        return open_vae_folder(path)
    file = open_weights(path)
    names = {VAE_PREFIX + name: name for name in file.tensors if name.startswith(VAE_STARTS)}
    names |= {name: name for name in file.tensors if name.startswith(VAE_PREFIX)}
    if VAE_PREFIX + "encoder.down.0.block.0.conv1.weight" not in names:
        raise InputError(
            "this is no VAE in the original layout",
            where=str(path),
            remedy="take a VAE as the WebUI does, or a diffusers folder",
        )
    return RenamedFile(file, names)


def vae_origin(path: str | Path) -> tuple[str, float] | None:
    """What an autoencoder is from, and what its latents are multiplied by; None for a file of it alone, which does not
    tell. Raises InputError for what cannot be opened."""
    path = Path(path)
    if path.is_dir():
        from dreambooth.trainer.models.diffusers_folder import vae_scale

        return "a diffusers folder", vae_scale(path)
    try:
        family = family_of(open_weights(path))
    except InputError:
        return None
    return family.title, family.scaling_factor
