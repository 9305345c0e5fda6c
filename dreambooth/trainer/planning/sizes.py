"""What a run will write, and how large that is, told before anything is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dreambooth.shared.aside import leftover_bytes
from dreambooth.shared.settings import Settings, TrainingSettings
from dreambooth.trainer.adapters.plan import AdapterPlan
from dreambooth.trainer.adapters.writing import adapter_bytes
from dreambooth.trainer.data.buckets import Size
from dreambooth.trainer.data.dataset import DataPlan
from dreambooth.trainer.machine import DTYPES
from dreambooth.trainer.models.export_file import export_entries
from dreambooth.trainer.models.loading import LoadedModel
from dreambooth.trainer.optim.optimizer_table import kind_of
from dreambooth.trainer.optim.optimizers import has_fused_adamw
from dreambooth.trainer.saving.outputs import Outputs, PlannedFile
from dreambooth.trainer.weights.safetensors_file import layout

if TYPE_CHECKING:
    from dreambooth.trainer.planning.plan import Plan

# A tensor in torch.save's zip: its record's two headers, the alignment to 64 bytes, and its part of the pickle
_RECORD_BYTES = 350
# An adapter has many small tensors with long names
_ADAPTER_NAME_BYTES = 80
# What a cached tensor's file says of itself
_HEADER_BYTES = 300
# A PNG that cannot be compressed, and what it says of how it was made
_CLASS_IMAGE_BYTES_PER_PIXEL = 3
_CLASS_IMAGE_BYTES = 2000
_MOST_LISTED = 8
_DOWNSCALE = 8
_LATENT_CHANNELS = 4
_TOKENS = 77


def parameters(base: LoadedModel, component: str, adapter: AdapterPlan | None = None) -> int:
    """The number of a component's weights, or of its adapter's."""
    return sum(math.prod(shape) for shape in _shapes(base, component, adapter))


def _shapes(base: LoadedModel, component: str, adapter: AdapterPlan | None) -> list[tuple[int, ...]]:
    if adapter is not None:
        return adapter.shapes(component)
    bindings = base.description.bindings[component]
    return [base.source.tensors[binding.original].shape for binding in bindings]


def checkpoint_bytes(base: LoadedModel, dtype: torch.dtype, *, ckpt: bool = False) -> int:
    """The size of a written checkpoint, without its metadata."""
    entries = export_entries(base.source, base.description, {}, dtype)
    header = len(entries) * _RECORD_BYTES if ckpt else len(layout(entries, {})[0])
    return header + sum(entry.nbytes for entry in entries)


def result_bytes(settings: Settings, base: LoadedModel, adapter: AdapterPlan | None = None) -> int:
    """The size of what is written at the end: a checkpoint or an adapter's file, without its metadata."""
    dtype = DTYPES[settings.result.output_dtype]
    if adapter is not None:
        return adapter_bytes(adapter, base.identified.family, dtype)
    return checkpoint_bytes(base, dtype, ckpt=settings.result.output_format == "ckpt")


def state_bytes(
    base: LoadedModel,
    trained: Mapping[str, int],
    training: TrainingSettings,
    adapter: AdapterPlan | None = None,
) -> int:
    """The size of one saved state: weights, averages and what the optimizer keeps."""
    averaged = training.use_ema or kind_of(training.optimizer).averages
    shapes = [shape for component in trained for shape in _shapes(base, component, adapter)]
    counts = training.optimizer == "adamw" and not has_fused_adamw(torch.device("cpu"))
    records = 3 if counts else 2  # each tensor's counter of steps is one of its own there
    head = records * _RECORD_BYTES + (_ADAPTER_NAME_BYTES if adapter else 0)
    each = DTYPES[training.weights_dtype].itemsize + 4 * averaged
    total = sum(math.prod(shape) * each + head for shape in shapes)
    return int(total + optimizer_bytes(base, trained, training.optimizer, adapter))


def largest_tensor(base: LoadedModel, trained: Iterable[str], adapter: AdapterPlan | None = None) -> int:
    """The number of weights of the largest tensor that is trained."""
    shapes = [shape for component in trained for shape in _shapes(base, component, adapter)]
    return max(math.prod(shape) for shape in shapes)


def optimizer_bytes(
    base: LoadedModel, trained: Iterable[str], optimizer: str, adapter: AdapterPlan | None = None
) -> float:
    """What an optimizer keeps of the components that it trains."""
    kept = kind_of(optimizer).bytes_of
    return sum(kept(shape) for component in trained for shape in _shapes(base, component, adapter))


def cache_bytes(
    settings: Settings, base: LoadedModel, data: DataPlan, *, missing: int, new_prompts: int
) -> int:
    """At most so much is kept of latents and text embeddings; `missing` class images are still to be made, of
    at most `new_prompts` prompts that no image has yet."""
    total = 0
    if settings.images.cache_latents:
        looks = [(item.bucket, item.variants) for item in data.items]
        looks += [((settings.images.resolution,) * 2, 1)] * missing
        ways = (1 + settings.images.random_flip) * (1 + data.masks)
        total += ways * sum(variants * _latent_bytes(size) for size, variants in looks)
    captions = None if settings.training.train_text_encoder else data.captions()
    if captions is not None:
        texts = [base.configs[part.component] for part in base.identified.family.text_encoders]
        widths = [int(config["hidden_size"]) for config in texts]
        total += (len(captions) + new_prompts) * ((_TOKENS + 1) * sum(widths) * 4 + 2 * _HEADER_BYTES)
    return total


def _latent_bytes(size: Size) -> int:
    """Mean and deviation in float32, in a file of their own."""
    width, height = size
    return 2 * 4 * _LATENT_CHANNELS * (width // _DOWNSCALE) * (height // _DOWNSCALE) + _HEADER_BYTES


def planned_files(plan: Plan, data: DataPlan, resumed: Path | None) -> list[PlannedFile]:
    """All that a run writes: checkpoints, states, class images, the cache; `resumed` is the folder of one that is
    gone on with."""
    settings, result = plan.settings, plan.settings.result
    run = resumed or Path(result.runs_dir) / plan.outputs.name
    checkpoint = result_bytes(settings, plan.base, plan.adapter)
    what = f"the trained {plan.adapter.kind.title if plan.adapter else 'checkpoint'}"
    files = [PlannedFile(plan.outputs.final, checkpoint, what, leftover_bytes(plan.outputs.folder))]
    files += _on_the_way(settings, plan.outputs, checkpoint)
    if result.output_kind == "diffusers":
        files.append(PlannedFile(run, checkpoint, "while the folder is written", leftover_bytes(run)))
    kept = settings.saving.checkpoints_total_limit + 1  # one is whole while the next is written
    states = kept * state_bytes(plan.base, plan.trained, settings.training, plan.adapter)
    there = _folder_bytes(resumed / "state") if resumed else 0
    files.append(PlannedFile(run / "state", states, f"states to go on from, {kept} at most", there))
    side = settings.images.resolution
    for folder in plan.survey.class_folders():
        if folder.missing:
            size = folder.missing * (side * side * _CLASS_IMAGE_BYTES_PER_PIXEL + _CLASS_IMAGE_BYTES)
            files.append(PlannedFile(folder.folder, size, f"{folder.missing} class images"))
    folders = plan.survey.class_folders()
    new_prompts = sum(len({image.prompt for image in folder.prompts[folder.found :]}) for folder in folders)
    cache = cache_bytes(settings, plan.base, data, missing=plan.class_images_missing, new_prompts=new_prompts)
    if cache:
        files.append(
            PlannedFile(Path(result.runs_dir) / "cache", cache, "encoded images and captions, at most")
        )
    return files


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _on_the_way(settings: Settings, outputs: Outputs, size: int) -> list[PlannedFile]:
    every = settings.result.export_steps
    if not every:
        return []
    steps = range(every, settings.training.max_train_steps, every)
    if len(steps) <= _MOST_LISTED:
        return [PlannedFile(outputs.at_step(step), size, f"step {step}") for step in steps]
    return [
        PlannedFile(
            outputs.at_step(every), size * len(steps), f"{len(steps)} checkpoints, one every {every} steps"
        )
    ]
