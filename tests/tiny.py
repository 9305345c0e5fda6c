"""The smallest checkpoint that has Stable Diffusion 1's form, photos, and settings to train with: for tests of whole runs.

Weights are random, the UNet has three levels with one layer each, every width is 32, and the text encoder has one
layer. The file also holds what real ones hold besides: the schedule's buffers, position ids and a tensor that nobody
knows.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from dreambooth.trainer.families import names
from dreambooth.trainer.families.topology import (
    Level,
    TextTopology,
    UNetTopology,
    VAETopology,
    text_config,
    unet_config,
    vae_config,
)
from dreambooth.trainer.models.loading import BUILDERS, canonical_state

WIDTH = 32
UNET = UNetTopology(
    levels=tuple(Level(WIDTH, layers=1, depth=depth, heads=8) for depth in (1, 1, 0)),
    mid_depth=1,
    in_channels=4,
    out_channels=4,
    context_width=WIDTH,
    linear_projection=False,
)
VAE = VAETopology(widths=(WIDTH,) * 4, layers=1, latent_channels=4, in_channels=3)
TEXT = TextTopology(
    width=WIDTH, hidden=64, layers=1, heads=1, vocabulary=49408, positions=77, activation="quick_gelu"
)


def write_checkpoint(
    path: Path, *, seed: int = 1, dtype: torch.dtype = torch.float16, metadata: dict[str, str] | None = None
) -> Path:
    """Writes the checkpoint as a single .safetensors file."""
    return save(tensors(seed, dtype), path, metadata)


def save(found: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Writes tensors with a new file's usual permissions (safetensors makes 0600)."""
    save_file(found, path, metadata=metadata)
    path.chmod(0o644)
    return path


def write_yaml(path: Path) -> Path:
    """The .yaml that belongs beside the checkpoint, with what tells its kind."""
    params = {
        "parameterization": "eps",
        "unet_config": {"params": {"num_heads": 8}},
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
    }
    path.write_text(yaml.safe_dump({"model": {"params": params}}), encoding="utf-8")
    return path


def tensors(seed: int = 1, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """What the file holds, by its original names."""
    torch.manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for component, config, bindings in (
        ("unet", unet_config(UNET), names.unet_bindings(UNET)),
        ("vae", vae_config(VAE, 0.18215), names.vae_bindings(VAE)),
        ("text_encoder", text_config(TEXT), names.clip_bindings(TEXT)),
    ):
        state = canonical_state(component, BUILDERS[component](config))
        for binding in bindings:
            (name,) = binding.canonical
            tensor = state[name][:, :, None, None] if binding.flat and state[name].dim() == 2 else state[name]
            found[binding.original] = tensor.to(dtype).contiguous()
    found[names.CLIP_PREFIX + "embeddings.position_ids"] = torch.arange(77)[None]
    found["betas"] = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square().float()
    found["alphas_cumprod"] = (1 - found["betas"].double()).cumprod(0).float()
    found["nobody.knows.this"] = torch.arange(5, dtype=torch.float32)
    return found


def write_photos(folder: Path, count: int = 3, *, side: int = 64) -> Path:
    """Photos of nothing: a gradient each, of another colour."""
    folder.mkdir(parents=True, exist_ok=True)
    ramp = numpy.linspace(0, 1, side)
    for number in range(count):
        colours = [
            ramp[:, None] * ramp[None, :] * (60 * (number + 1)),
            ramp[None, :] * 255 + 0 * ramp[:, None],
        ]
        pixels = numpy.stack([*colours, 255 - colours[0]], axis=-1).clip(0, 255).astype(numpy.uint8)
        Image.fromarray(pixels).save(folder / f"photo {number}.png")
    return folder


def write_config(path: Path, **values: Any) -> Path:
    """Settings as a YAML file."""
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def quick_settings(model: Path, photos: Path, folder: Path) -> dict[str, Any]:
    """A run that takes a second: four steps at 64 pixels with prior preservation, results and runs in `folder`."""
    return {
        "model": str(model),
        "output_name": "sks",
        "output_dir": str(folder / "out"),
        "runs_dir": str(folder / "runs"),
        "resolution": 64,
        "num_class_images": 2,
        "class_infer_steps": 2,
        "sample_batch_size": 1,
        "max_train_steps": 4,
        "learning_rate": 1e-3,
        "num_validation_images": 0,
        "concepts": [
            {
                "instance_prompt": "photo of sks cat",
                "class_prompt": "photo of cat",
                "instance_data_dir": str(photos),
            }
        ],
    }


@functools.cache
def _shared_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dreambooth-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def base() -> Path:
    """A checkpoint that is made once for all tests of a process; nobody may write to it."""
    return write_checkpoint(_shared_folder() / "tiny.safetensors")


@functools.cache
def photos() -> Path:
    """A folder with three photos, made once for all tests of a process."""
    return write_photos(_shared_folder() / "photos")


def config(folder: Path, **values: Any) -> Path:
    """The settings file of a quick run in `folder`; `values` win, those that are None are left out."""
    settings = {**quick_settings(base(), photos(), folder), **values}
    return write_config(
        folder / "config.yaml", **{name: value for name, value in settings.items() if value is not None}
    )


def dreambooth(*arguments: str | Path) -> int:
    """The command line in this process; gives the exit code. What accelerate keeps for a whole process is dropped,
    since the next run may want another precision."""
    from dreambooth import cli

    try:
        return cli.main([str(argument) for argument in arguments])
    finally:
        if "accelerate.state" in sys.modules:
            from accelerate.state import AcceleratorState

            AcceleratorState._reset_state(reset_partial_state=True)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below `folder`: size and time of change of files, to be compared later."""
    return {
        path.relative_to(folder).as_posix(): (about.st_size, about.st_mtime_ns) if path.is_file() else (0, 0)
        for path in sorted(folder.rglob("*"))
        for about in [path.lstat()]
    }
