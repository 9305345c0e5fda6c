"""An adapter's file: kohya's names and alpha, and the metadata by which the WebUI knows it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dreambooth.shared.settings import Settings
from dreambooth.trainer.adapters.names import kohya_name
from dreambooth.trainer.adapters.plan import AdapterPlan, PlannedLayer
from dreambooth.trainer.data.survey import Survey
from dreambooth.trainer.families import Family, Identified
from dreambooth.trainer.models.loading import LoadedModel
from dreambooth.trainer.models.modelspec import modelspec
from dreambooth.trainer.weights import Entry, Written, write_weights
from dreambooth.trainer.weights.casting import narrowed

Trained = Mapping[str, Mapping[str, torch.Tensor]]
# What the WebUI tells a LoRA's family by, and kohya's name for it
_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_ADAPTER_SPEC = "lora"
_MOST_PROMPTS = 20


def write_adapter(
    path: Path,
    base: LoadedModel,
    plan: AdapterPlan,
    trained: Trained,
    *,
    output_dtype: torch.dtype,
    metadata: Mapping[str, str],
    overwrite: bool,
) -> Written:
    """Writes the trained numbers (by component and "path.tensor") as an adapter's file, whole and read back.

    `metadata` wins over what is said of the base and the adapter. Raises as `write_weights` does, and Overflow for
    numbers that have no room in `output_dtype`.
    """
    network = {"ss_output_name": path.stem, **_network(base.identified, plan)}
    about = {**_modelspec(base, plan, path.stem), **network, **_base(base)}
    entries = list(adapter_entries(base.identified.family, plan, trained, output_dtype))
    return write_weights(path, entries, {**about, **metadata}, overwrite=overwrite)


def adapter_entries(
    family: Family, plan: AdapterPlan, trained: Trained, dtype: torch.dtype
) -> Iterator[Entry]:
    """One entry for each tensor, and each layer's alpha in float32: a rounded one would weigh it wrongly."""
    for layer in plan.layers:
        name = kohya_name(family, layer.target)
        for tensor, shape in layer.shapes.items():
            held = trained[layer.target.component][f"{layer.target.path}.{tensor}"]
            yield Entry(f"{name}.{tensor}", dtype, shape, partial(_written, f"{name}.{tensor}", held, dtype))
        yield Entry(f"{name}.alpha", torch.float32, (), partial(torch.tensor, float(layer.alpha)))


def _written(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return narrowed(name, tensor, dtype).contiguous()


def adapter_bytes(plan: AdapterPlan, family: Family, dtype: torch.dtype) -> int:
    """The size of the file, without its metadata."""
    from dreambooth.trainer.weights.safetensors_file import layout

    nothing = {
        component: {
            f"{layer.target.path}.{tensor}": torch.empty(0) for layer in layers for tensor in layer.shapes
        }
        for component, layers in _by_component(plan).items()
    }
    entries = list(adapter_entries(family, plan, nothing, dtype))
    return len(layout(entries, {})[0]) + sum(entry.nbytes for entry in entries)


def _by_component(plan: AdapterPlan) -> dict[str, list[PlannedLayer]]:
    found: dict[str, list[PlannedLayer]] = {}
    for layer in plan.layers:
        found.setdefault(layer.target.component, []).append(layer)
    return found


def _modelspec(base: LoadedModel, plan: AdapterPlan, title: str) -> dict[str, str]:
    found = modelspec(base.source, base.identified, title=title)
    return {
        **found,
        "modelspec.architecture": f"{found['modelspec.architecture']}/{_ADAPTER_SPEC}",
    }


def base_version(identified: Identified) -> str:
    """kohya's name of the base: "sd_v1", "sd_v2", with "_v" behind it where it predicts velocity; "sdxl_base_v1-0"."""
    version = _VERSIONS[identified.family.name.partition("-")[0]]
    is_v = identified.prediction_type == "v_prediction" and version.startswith("sd_")
    return f"{version}_v" if is_v else version


def _network(identified: Identified, plan: AdapterPlan) -> dict[str, str]:
    """What the WebUI and other programs read: family, kind, rank, alpha."""
    arguments: dict[str, str] = {}
    if plan.kind.result == "lycoris":
        arguments["algo"] = plan.kind.algo
    if plan.kind.name == "dora":
        arguments["dora_wd"] = "True"
    if any(len(layer.target.shape) == 4 for layer in plan.layers):
        arguments |= {"conv_dim": str(plan.rank), "conv_alpha": f"{plan.alpha:g}"}
    return {
        "ss_base_model_version": base_version(identified),
        "ss_v2": str(identified.family.name.startswith("sd2")),
        **({"ss_zero_terminal_snr": "True"} if identified.zero_terminal_snr else {}),
        "ss_network_module": plan.kind.module,
        "ss_network_dim": str(plan.rank),
        "ss_network_alpha": f"{plan.alpha:g}",
        "ss_network_dropout": f"{plan.dropout:g}" if plan.dropout else "None",
        **({"ss_network_args": json.dumps(arguments)} if arguments else {}),
    }


def _base(base: LoadedModel) -> dict[str, str]:
    name = base.source.path.name
    found = {"ss_sd_model_name": name, "dreambooth.base": name}
    if base.source.path.is_file():
        found |= {"ss_new_sd_model_hash": base.base_sha256, "dreambooth.base_sha256": base.base_sha256}
    return found


def training_metadata(settings: Settings, learned: Mapping[str, Any]) -> dict[str, str]:
    """What kohya's metadata say of a training; `learned` is what `learned_from` found when the run began,
    with the precision that it had."""
    training, images = settings.training, settings.images
    side = images.resolution
    said: dict[str, Any] = {
        "ss_learning_rate": training.learning_rate,
        "ss_unet_lr": training.learning_rate if training.train_unet else None,
        "ss_text_encoder_lr": training.text_encoder_learning_rate if training.train_text_encoder else None,
        "ss_max_train_steps": training.max_train_steps,
        "ss_steps": training.max_train_steps,
        "ss_lr_scheduler": training.lr_scheduler,
        "ss_lr_warmup_steps": training.lr_warmup_steps,
        "ss_optimizer": training.optimizer,
        "ss_gradient_accumulation_steps": training.gradient_accumulation_steps,
        "ss_gradient_checkpointing": training.gradient_checkpointing != "no",
        "ss_total_batch_size": training.train_batch_size * training.gradient_accumulation_steps,
        "ss_max_grad_norm": training.max_grad_norm,
        "ss_min_snr_gamma": training.snr_gamma or None,
        "ss_noise_offset": training.offset_noise or None,
        "ss_prior_loss_weight": settings.prior.prior_loss_weight,
        "ss_mixed_precision": learned.get("mixed_precision", training.mixed_precision),
        "ss_seed": training.seed,
        "ss_clip_skip": settings.model.clip_skip,
        "ss_resolution": f"({side}, {side})",
        "ss_enable_bucket": images.aspect_ratio_buckets,
        "ss_cache_latents": images.cache_latents,
        "ss_random_crop": images.crop == "random",
        "ss_flip_aug": images.random_flip,
        "ss_training_comment": "; ".join(learned.get("prompts", ())),
        "ss_num_train_images": learned.get("images", 0),
        "ss_num_reg_images": learned.get("class_images", 0),
        "ss_tag_frequency": json.dumps(learned.get("tags", {}), ensure_ascii=False),
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.trigger_phrase": "; ".join(learned.get("prompts", ())),
    }
    return {name: str(value) for name, value in said.items() if value != ""}


def learned_from(found: Survey) -> dict[str, Any]:
    """What a run is shown, for an adapter's metadata: prompts, how many images, and how often each tag comes, by data
    set as kohya has it ("<repeats>_<folder>")."""
    tags: dict[str, dict[str, int]] = {}
    prompts: dict[str, None] = {}
    for entry in found.concepts:
        texts = [entry.instance_prompt(image) for image in entry.instance]
        prompts |= dict.fromkeys(texts)
        name = f"{entry.concept.repeats}_{Path(entry.concept.instance_data_dir).name}"
        counted = Counter(tag for text in texts for tag in map(str.strip, text.split(",")) if tag)
        tags[name] = dict(Counter(tags.get(name, {})) + counted)
    return {
        "images": found.instance_count,
        "class_images": sum(len(entry.class_images) for entry in found.concepts),
        "prompts": list(prompts)[:_MOST_PROMPTS],
        "tags": tags,
    }
