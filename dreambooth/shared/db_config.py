"""sd_dreambooth_extension's `db_config.json` as settings of ours, with a list of what could not be taken over.

Its 106 names, the older names that its own loader knew, and the `db_` that its page put before them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .settings import SAMPLERS, SCHEDULERS

PATH_KEYS = frozenset(
    {"src", "model_dir", "pretrained_model_name_or_path", "pretrained_vae_name_or_path", "concepts_path"}
)
_ON = ("true", "1", "yes", "on")
_PREFIX = "db_"
# the same meaning under another name, or under the same
_RENAMED = {
    "pretrained_vae_name_or_path": "vae",
    "sanity_prompt": "validation_prompt",
    "lr_cycles": "lr_num_cycles",
    "lr_power": "lr_power",
    "lr_warmup_steps": "lr_warmup_steps",
    "hflip": "random_flip",
    "min_snr_gamma": "snr_gamma",
    "offset_noise": "offset_noise",
    "weight_decay": "adam_weight_decay",
    "learning_rate": "learning_rate",
    "txt_learning_rate": "text_encoder_learning_rate",
    "prior_loss_weight": "prior_loss_weight",
    "mixed_precision": "mixed_precision",
    "cache_latents": "cache_latents",
    "gradient_checkpointing": "gradient_checkpointing",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "shuffle_tags": "shuffle_tags",
    "train_unet": "train_unet",
    "use_ema": "use_ema",
    "deterministic": "deterministic",
    "clip_skip": "clip_skip",
    "resolution": "resolution",
    "sample_batch_size": "sample_batch_size",
    "train_batch_size": "train_batch_size",
}
# what has a meaning only where a LoRA is trained, whose rates are then the training's
_LORA = {
    "lora_unet_rank": "rank",
    "lora_learning_rate": "learning_rate",
    "lora_txt_learning_rate": "text_encoder_learning_rate",
}
_OLDER = {
    "adam_weight_decay": "weight_decay",
    "adamw_weight_decay": "weight_decay",
    "lora_rank": "lora_unet_rank",
    "min_learning_rate": "learning_rate_min",
    "enable_tomesd": "tomesd",
    "unfreeze_model": "train_unfrozen",
    "total_steps": "revision",
}
_OPTIMIZERS = {
    "8bit adamw": "adamw8bit", "8bit adam": "adamw8bit", "torch adamw": "adamw", "adamw": "adamw", "lion": "lion",
    "paged 8bit adamw": "pagedadamw8bit", "8bit lion": "lion8bit", "adafactor": "adafactor", "prodigy": "prodigy",
    "came": "came", "adamw dadaptation": "dadaptadam",
}  # fmt: skip
_SCHEDULES = {
    **{name: name for name in SCHEDULERS},
    "linear_with_warmup": "linear",
    "cosine_annealing_with_restarts": "cosine_with_restarts",
}
_SAMPLERS = {
    **{name: name for name in SAMPLERS},
    "eulerdiscrete": "euler",
    "eulerancestraldiscrete": "euler_a",
    "unipcmultistep": "unipc",
    "dpmsolvermultistep": "dpmpp_2m",
}
# what nobody but that extension has; two of them and a file is its own
_ITS_OWN = frozenset(
    {
        "concepts_list", "lifetime_revision", "initial_revision", "model_dir", "stop_text_encoder", "txt_learning_rate",
        "num_train_epochs", "half_model", "hflip", "save_preview_every", "save_embedding_every", "graph_smoothing",
        "epoch_pause_frequency", "pretrained_vae_name_or_path", "lr_cycles", "model_name", "lora_model_name",
        "pretrained_model_name_or_path", "not_cache_latents", "use_8bit_adam", "max_token_length", "c1_instance_prompt",
    }
)  # fmt: skip
# its defaults where they are neither false, nor 0, nor empty: what was left as it was is named last
_DEFAULTS = {
    "attention": "xformers", "noise_scheduler": "DDPM", "scheduler": "ddim", "model_type": "v1x",
    "full_mixed_precision": "true", "gradient_set_to_none": "true", "input_pertubation": "true", "pad_tokens": "true",
    "save_ckpt_after": "true", "save_ckpt_during": "true", "save_ema": "true", "save_lora_after": "true",
    "save_lora_during": "true", "save_lora_for_extra_net": "true", "split_loss": "true", "train_unfrozen": "true",
    "graph_smoothing": "50", "lora_txt_rank": "4", "lora_unet_rank": "4", "prior_loss_target": "100",
    "sanity_seed": "420420", "save_embedding_every": "25", "save_preview_every": "5", "learning_rate_min": "1e-06",
    "lora_learning_rate": "0.0001", "lora_txt_learning_rate": "5e-05", "lora_weight": "0.8", "lr_factor": "0.5",
    "lr_scale_pos": "0.5", "dream_detail_preservation": "0.5", "prior_loss_weight_min": "0.1",
    "tenc_weight_decay": "0.01",
}  # fmt: skip
_CONCEPT = re.compile(r"c([1-9])_(\w+)")


@dataclass(frozen=True)
class TakenOver:
    """Settings by their names here, and what has none: those that somebody had changed come first."""

    values: dict[str, Any]
    not_taken: list[str]


def is_db_config(values: Mapping[str, Any]) -> bool:
    """Whether a file's names are those of the old extension's settings."""
    return len(_ITS_OWN & {name.removeprefix(_PREFIX) for name in values}) >= 2


def from_db_config(given: Mapping[str, Any]) -> TakenOver:
    """Our settings from that extension's, whose scalars are text (settings_file.py) or plain JSON values."""
    values = _with_today_s_names({name.removeprefix(_PREFIX): value for name, value in given.items()})
    taken: dict[str, Any] = {}
    used: set[str] = set()
    for name, ours in _RENAMED.items():
        if name in values:
            used.add(name)
            if _text(values[name]):
                taken[ours] = _text(values[name])
    not_taken: list[str] = []
    for names, translate in _TRANSLATIONS:
        if any(name in values for name in names):
            used.update(names)
            found, left = translate(values)
            taken.update(found)
            not_taken += left
    if _is_on(values.get("use_lora")):
        taken.update({ours: _text(values[name]) for name, ours in _LORA.items() if _text(values.get(name))})
        used.update(_LORA)
    rest = [name for name in values if name not in used]
    changed = [name for name in rest if _is_changed(name, values[name])]
    return TakenOver(taken, [*not_taken, *changed, *(name for name in rest if name not in changed)])


Translated = tuple[dict[str, Any], list[str]]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value).strip()


def _is_on(value: Any) -> bool:
    return _text(value).lower() in _ON


def _is_changed(name: str, value: Any) -> bool:
    if isinstance(value, (list, dict)):
        return bool(value) and value not in (["false"], [False])
    text = _text(value)
    if name in _DEFAULTS:
        return text != _DEFAULTS[name] and _number(text) != _number(_DEFAULTS[name])
    return text.lower() not in ("", "false", "0", "0.0")


def _number(text: str) -> float:
    """A number, or one that equals no other."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _with_today_s_names(values: dict[str, Any]) -> dict[str, Any]:
    """The names that its own loader knew of earlier versions, as it took them."""
    found = {name: value for name, value in values.items() if name not in _OLDER}
    for older, name in _OLDER.items():
        if older in values:
            found.setdefault(name, values[older])
    if "not_cache_latents" in found:
        off = _is_on(found.pop("not_cache_latents"))
        found.setdefault("cache_latents", "false" if off else "true")
    if "use_8bit_adam" in found:
        eight = _is_on(found.pop("use_8bit_adam"))
        found.setdefault("optimizer", "8bit AdamW" if eight else "Torch AdamW")
    if "train_text_encoder" in found:
        on = _is_on(found.pop("train_text_encoder"))
        found.setdefault("stop_text_encoder", "1" if on else "0")
    numbered: dict[str, dict[str, Any]] = {}
    for name in list(found):
        match = _CONCEPT.fullmatch(name)
        if match is not None:
            numbered.setdefault(match[1], {})[match[2]] = found.pop(name)
    if numbered and not found.get("concepts_list"):
        found["concepts_list"] = [numbered[number] for number in sorted(numbered)]
    return found


def _model(values: Mapping[str, Any]) -> Translated:
    source = _text(values.get("src")) or _text(values.get("pretrained_model_name_or_path"))
    return ({"model": source} if source else {}), []


def _name(values: Mapping[str, Any]) -> Translated:
    name = _text(values.get("custom_model_name")) or _text(values.get("model_name"))
    return ({"output_name": name} if name else {}), []


def _format(values: Mapping[str, Any]) -> Translated:
    return {"output_format": "safetensors" if _is_on(values["save_safetensors"]) else "ckpt"}, []


def _precision(values: Mapping[str, Any]) -> Translated:
    return {"output_dtype": "float16" if _is_on(values["half_model"]) else "float32"}, []


def _kind(values: Mapping[str, Any]) -> Translated:
    return {"output_kind": "lora" if _is_on(values["use_lora"]) else "checkpoint"}, []


def _text_encoder(values: Mapping[str, Any]) -> Translated:
    share = _number(_text(values["stop_text_encoder"]))
    if not 0 <= share <= 1:
        return {}, [f"stop_text_encoder ({_text(values['stop_text_encoder'])})"]
    stop = {"text_encoder_stop": _text(values["stop_text_encoder"])} if share else {}
    return {"train_text_encoder": "true" if share else "false", **stop}, []


def _epochs(values: Mapping[str, Any]) -> Translated:
    """An epoch there is a step for each photo, at a batch of one."""
    epochs = _text(values["num_train_epochs"])
    return ({"steps_per_image": epochs}, []) if _number(epochs) >= 1 else ({}, ["num_train_epochs"])


def _chunks(values: Mapping[str, Any]) -> Translated:
    tokens = _number(_text(values["max_token_length"]))
    return (
        ({"max_prompt_chunks": str(math.ceil(tokens / 75))}, []) if tokens > 0 else ({}, ["max_token_length"])
    )


def _concepts(values: Mapping[str, Any]) -> Translated:
    """Concepts, which there ask for class images each by itself: where none does, there is no prior preservation."""
    path = _text(values.get("concepts_path"))
    if _is_on(values.get("use_concepts")) and path:
        return {"concepts": path}, []
    listed = values.get("concepts_list")
    if not isinstance(listed, list) or not listed:
        return {}, []
    concepts = [
        {"num_class_images_per": "0", **entry}
        if isinstance(entry, dict) and "num_class_images" not in entry
        else entry
        for entry in listed
    ]
    asked = any(_asks_for_class_images(entry) for entry in concepts)
    return {"concepts": concepts, **({} if asked else {"prior_loss_weight": "0"})}, []


def _asks_for_class_images(concept: Any) -> bool:
    keys = ("num_class_images_per", "num_class_images")
    return isinstance(concept, dict) and any(_number(_text(concept.get(key))) > 0 for key in keys)


def _one_of(name: str, ours: str, known: Mapping[str, str]) -> Callable[[Mapping[str, Any]], Translated]:
    def translate(values: Mapping[str, Any]) -> Translated:
        text = _text(values[name])
        found = known.get(text.lower())
        return ({ours: found}, []) if found else ({}, [f"{name} ({text})"] if text else [])

    return translate


# names that are looked at together → what they become; later ones win
_TRANSLATIONS: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Translated]], ...] = (
    (("src", "pretrained_model_name_or_path"), _model),
    (("custom_model_name", "model_name"), _name),
    (("save_safetensors",), _format),
    (("half_model",), _precision),
    (("use_lora",), _kind),
    (("stop_text_encoder",), _text_encoder),
    (("num_train_epochs",), _epochs),
    (("max_token_length",), _chunks),
    (("optimizer",), _one_of("optimizer", "optimizer", _OPTIMIZERS)),
    (("lr_scheduler",), _one_of("lr_scheduler", "lr_scheduler", _SCHEDULES)),
    (("scheduler",), _one_of("scheduler", "class_sampler", _SAMPLERS)),
    (("concepts_list", "concepts_path", "use_concepts"), _concepts),
)
