"""What peft and diffusers say of an adapter beside its tensors: peft's adapter_config.json, or diffusers' metadata.

Its alpha is nowhere else, so that a configuration that cannot be understood is refused: merged at a guessed strength an
adapter looks like one that learned badly.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth.shared.errors import InputError, quoted
from dreambooth.trainer.weights import WeightFile

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
DIFFUSERS_CONFIG = "lora_adapter_metadata"
# peft takes a pattern's name for a regular expression; one out of a file is never run
_PATH = re.compile(r"[\w.]*")
Configs = Mapping[str, Mapping[str, Any]]


class BrokenConfig(InputError):
    """A configuration that cannot be understood."""


def configs_of(path: Path, source: WeightFile) -> Configs:
    """The configuration by the prefix of the names that it is for; {} where there is none.

    Raises BrokenConfig if it is no JSON, of another kind than LoRA, or has an alpha that is no number.
    """
    beside = path.with_name(PEFT_CONFIG)
    if path.name == PEFT_FILE and beside.is_file():
        configs = {"": _read(beside, beside.read_bytes())}
        where = str(beside)
    elif DIFFUSERS_CONFIG in source.metadata:
        where = f"{path} ({DIFFUSERS_CONFIG})"
        flat = _read(where, source.metadata[DIFFUSERS_CONFIG])
        configs = {f"{prefix}.": _below(flat, prefix) for prefix in {key.partition(".")[0] for key in flat}}
    else:
        return {}
    for config in configs.values():
        _check(config, where)
    return configs


def stated_alpha(layer: str, rank: int | None, configs: Configs) -> float | None:
    """A layer's alpha as its configuration has it, None where there is none."""
    for prefix, config in configs.items():
        if layer.startswith(prefix):
            alpha = _of_layer(layer, config, "lora_alpha", "alpha_pattern")
            if alpha is not None:
                # rank-stabilised (arXiv 2312.03732): the factor is alpha / √rank
                return float(alpha) * ((rank or 1) ** 0.5 if config.get("use_rslora") else 1.0)
    return None


def contradiction(layer: str, rank: int | None, has_magnitude: bool, configs: Configs) -> str:
    """How a layer's configuration has it otherwise than its tensors are, "" where they agree: then the strength that is
    told is not that of these tensors."""
    for prefix, config in configs.items():
        if not layer.startswith(prefix):
            continue
        stated = _of_layer(layer, config, "r", "rank_pattern")
        is_plain = all(map(_PATH.fullmatch, _patterns(config, "rank_pattern")))
        if is_plain and _is_number(stated) and rank is not None and stated != rank:
            return f"its configuration says rank {stated}, and {layer} has rank {rank}"
        if config.get("use_dora") is True and not has_magnitude:
            return f"its configuration says DoRA (use_dora), and {layer} has no magnitude"
    return ""


def _of_layer(layer: str, config: Mapping[str, Any], name: str, pattern: str) -> Any:
    """What a configuration has for a layer: its own value, else that of all."""
    own = next((value for key, value in _patterns(config, pattern).items() if layer.endswith(key)), None)
    return config.get(name) if own is None else own


def _patterns(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _read(where: str | Path, text: str | bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:  # what is no UTF-8 too
        found = None
    if not isinstance(found, dict):
        raise _broken(where, "this is no JSON object")
    return found


def _below(flat: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    start = f"{prefix}."
    return {key.removeprefix(start): value for key, value in flat.items() if key.startswith(start)}


def _check(config: Mapping[str, Any], where: str) -> None:
    kind = config.get("peft_type")
    if kind not in (None, "LORA"):
        raise _broken(where, f"its peft_type is {quoted(kind)}, and only LORA is read")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise _broken(where, f"its alpha_pattern is {quoted(patterns)}, not alphas by name")
    for name, alpha in {"lora_alpha": config.get("lora_alpha"), **patterns}.items():
        if alpha is not None and not _is_number(alpha):
            raise _broken(where, f"the alpha of {name} is {quoted(alpha)}, which is no number")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _broken(where: str | Path, what: str) -> BrokenConfig:
    return BrokenConfig(
        what, where=str(where), remedy="copy the adapter again with this file, or take kohya's form of it"
    )
