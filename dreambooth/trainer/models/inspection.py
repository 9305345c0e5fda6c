"""What a model file is: what `inspect` shows."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth.shared.errors import InputError
from dreambooth.trainer.adapters.reading import AdapterFile, adapter_at
from dreambooth.trainer.adapters.summary import AdapterSummary, summarize
from dreambooth.trainer.families import Identified
from dreambooth.trainer.families.description import Description
from dreambooth.trainer.families.kinds import refusal
from dreambooth.trainer.models.loading import understand, wrong_shapes
from dreambooth.trainer.models.sources import EMA_PREFIX, open_model
from dreambooth.trainer.weights import WeightFile
from dreambooth.trainer.weights.base import file_sha256

SHORT = 10
AUTOV1_OFFSET, AUTOV1_LENGTH, AUTOV1_DIGITS = 0x100000, 0x10000, 8
KNOWN_OTHERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
    "v_pred",
    "ztsnr",
)
KNOWN_ENDS = (".position_ids", ".text_projection", ".logit_scale", ".attn_mask")
UNUSED_LAYERS = "cond_stage_model.model.transformer.resblocks."
SHOWN, LONG = 8, 120


@dataclass(frozen=True)
class Part:
    """One of the modules: how many weights, in which precisions, and its sizes in words."""

    name: str
    weights: int
    precisions: tuple[str, ...]
    sizes: str


@dataclass(frozen=True)
class Inspection:
    """What a model file is. `identified` is None, and `problem` says what it is, if it cannot be used.

    `sha256` and `autov1` are the hashes that the WebUI shows ("" for a folder and where none was asked for): the
    whole file's, of which it shows the first ten digits, and the old one over 64 KiB from the first MiB on. `odd`
    are tensors that no checkpoint of the family has, `missing` those that every one has, `ill_shaped` those whose shape
    does not fit a model of these sizes, as a sentence each. `adapter` is what is known of a LoRA or the like, which is no
    model.
    """

    path: Path
    format: str
    nbytes: int
    sha256: str
    autov1: str
    identified: Identified | None
    problem: str
    precisions: Mapping[str, int]
    parts: tuple[Part, ...]
    has_ema: bool
    metadata: Mapping[str, str]
    odd: tuple[str, ...]
    missing: tuple[str, ...]
    ill_shaped: tuple[str, ...] = ()
    adapter: AdapterSummary | None = None

    @property
    def usable(self) -> bool:
        """Whether it can be used for what it is: to train from and to draw with, an adapter on a model."""
        return self.identified is not None or (self.adapter is not None and not self.adapter.unusable)

    @property
    def short_hash(self) -> str:
        """The hash as the WebUI shows it beside a checkpoint's name."""
        return self.sha256[:SHORT]

    @property
    def precision(self) -> str:
        """The precision of most of its tensors."""
        return max(self.precisions, key=lambda name: self.precisions[name], default="")

    def as_json(self) -> dict[str, Any]:
        """All of it in plain JSON values; sizes in bytes. `family`, `prediction_type` and `told_by` are "" for what is
        no model; `problem` says why it cannot be used. Hashes are left out where there are none."""
        told = self.identified
        problem = self.adapter.unusable if self.adapter else self.problem
        return {
            "path": str(self.path),
            "format": self.format,
            "size": self.nbytes,
            "usable": self.usable,
            "problem": problem,
            "family": told.family.title if told else "",
            "family_name": told.family.name if told else "",
            "prediction_type": told.prediction_type if told else "",
            "told_by": told.told_by if told else "",
            "zero_terminal_snr": bool(told and told.zero_terminal_snr),
            "precision": self.precision,
            "precisions": dict(self.precisions),
            "parts": [dataclasses.asdict(part) for part in self.parts],
            "ema": self.has_ema,
            **({"sha256": self.sha256, "short_hash": self.short_hash} if self.sha256 else {}),
            **({"autov1": self.autov1} if self.autov1 else {}),
            "metadata": dict(self.metadata),
            "missing": list(self.missing),
            "ill_shaped": list(self.ill_shaped),
            "odd": list(self.odd),
            "adapter": self.adapter.as_json() if self.adapter else None,
        }

    def __str__(self) -> str:
        return render(self)


def inspect(path: str | Path, *, hashed: bool = True) -> Inspection:
    """Read what a model file or diffusers folder is. Raises InputError if it is no file of tensors at all.

    Without `hashed` only the file's head is read, whatever its size.
    """
    path = Path(path)
    adapter = adapter_at(path)
    if adapter is not None:
        return _inspected_adapter(path, adapter, hashed=hashed)
    opened = open_model(path)
    weights = opened.weights
    description: Description | None = None
    problem = ""
    try:
        description = understand(opened)[1]
    except InputError as error:
        problem = error.what
    return Inspection(
        path=path,
        format=weights.format,
        nbytes=_size(path),
        sha256=file_sha256(path) if hashed and path.is_file() else "",
        autov1=_autov1(path) if path.is_file() else "",
        identified=description.identified if description else None,
        problem=problem,
        precisions=Counter(_name(info.dtype) for info in weights.tensors.values()),
        parts=tuple(_part(name, weights, description) for name in description.bindings)
        if description
        else (),
        has_ema=any(name.startswith(EMA_PREFIX) for name in weights.tensors),
        metadata=weights.metadata,
        odd=tuple(filter(_is_odd, description.others)) if description else (),
        missing=description.missing if description else (),
        ill_shaped=tuple(_ill_shaped(weights, description)) if description else (),
    )


def _ill_shaped(weights: WeightFile, description: Description) -> Iterator[str]:
    for name, wanted in wrong_shapes(weights, description).items():
        yield f"{name} has the shape {weights.tensors[name].shape}, not {wanted}"


def _inspected_adapter(path: Path, adapter: AdapterFile, *, hashed: bool) -> Inspection:
    refused = refusal(adapter.source, None)
    return Inspection(
        path=path,
        format=adapter.source.format,
        nbytes=_size(path),
        sha256=file_sha256(adapter.path) if hashed else "",
        autov1="",
        identified=None,
        problem=refused.what if refused else "this is an adapter",
        precisions=Counter(_name(info.dtype) for info in adapter.source.tensors.values()),
        parts=(),
        has_ema=False,
        metadata=adapter.source.metadata,
        odd=adapter.strange,
        missing=(),
        adapter=summarize(adapter, read=hashed),
    )


def _render_adapter(found: Inspection, adapter: AdapterSummary) -> str:
    lines = [
        f"{found.path}",
        f"  format         {found.format}, {found.nbytes / 1e6:.1f} MB",
        *adapter.lines(),
    ]
    lines.append(f"  precision      {_counted(found.precisions)}")
    lines += [f"  sha256         {found.sha256}"] if found.sha256 else []
    lines += _listed("odd", found.odd) + _metadata_lines(found)
    return "\n".join(lines)


def render(found: Inspection) -> str:
    """The inspection as lines of text."""
    if found.adapter is not None:
        return _render_adapter(found, found.adapter)
    lines = [f"{found.path}", f"  format         {found.format}, {found.nbytes / 1e6:.1f} MB"]
    if found.identified is not None:
        family = found.identified.family
        lines.append(f"  family         {family.title} ({family.name})")
        lines.append(f"  prediction     {found.identified.prediction_type}: {found.identified.told_by}")
        if found.identified.zero_terminal_snr:
            lines.append("  schedule       zero terminal SNR")
    else:
        lines.append(f"  not usable     {found.problem}")
    lines.append(f"  precision      {_counted(found.precisions)}")
    for part in found.parts:
        kinds = ", ".join(part.precisions)
        lines.append(f"  {part.name:<14} {part.weights / 1e6:.1f}M weights, {kinds}; {part.sizes}")
    lines.append(f"  averaged (EMA) {'yes' if found.has_ema else 'no'}")
    if found.sha256:
        lines.append(f"  sha256         {found.sha256}")
        lines.append(f"  WebUI's hash   {found.short_hash} (old: {found.autov1})")
    lines += _listed("missing", found.missing) + _listed("ill-shaped", found.ill_shaped)
    lines += _listed("odd", found.odd)
    return "\n".join(lines + _metadata_lines(found))


def _counted(precisions: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count} tensors)" for name, count in precisions.items())


def _metadata_lines(found: Inspection) -> list[str]:
    said = [f"    {key}: {_cut(value)}" for key, value in sorted(found.metadata.items())]
    return ["  metadata", *said] if said else []


def _listed(title: str, names: tuple[str, ...]) -> list[str]:
    if not names:
        return []
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"  {title:<14} {len(names)} tensors: {', '.join(names[:SHOWN])}{more}"]


def _cut(value: str) -> str:
    text = " ".join(value.split())
    return text if len(text) <= LONG else f"{text[:LONG]}… ({len(value)} characters)"


def _is_odd(name: str) -> bool:
    known = name in KNOWN_OTHERS or name.endswith(KNOWN_ENDS)
    return not known and not name.startswith((EMA_PREFIX, UNUSED_LAYERS))


def _part(name: str, weights: WeightFile, description: Description) -> Part:
    found = [
        weights.tensors[binding.original]
        for binding in description.bindings[name]
        if binding.original in weights.tensors
    ]
    return Part(
        name=name,
        weights=sum(info.nbytes // info.dtype.itemsize for info in found),
        precisions=tuple(dict.fromkeys(_name(info.dtype) for info in found)),
        sizes=SIZES[name](description.configs[name]),
    )


def _unet_sizes(config: Mapping[str, Any]) -> str:
    widths = ", ".join(map(str, config["block_out_channels"]))
    channels, context = config["in_channels"], config["cross_attention_dim"]
    return f"widths {widths}; {channels} channels in; context {context}; heads {config['attention_head_dim']}"


def _text_sizes(config: Mapping[str, Any]) -> str:
    return f"{config['num_hidden_layers']} layers used, width {config['hidden_size']}, {config['hidden_act']}"


def _vae_sizes(config: Mapping[str, Any]) -> str:
    widths = ", ".join(map(str, config["block_out_channels"]))
    return f"widths {widths}; {config['latent_channels']} latent channels"


SIZES = {
    "unet": _unet_sizes,
    "text_encoder": _text_sizes,
    "text_encoder_2": _text_sizes,
    "vae": _vae_sizes,
}


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _autov1(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(AUTOV1_OFFSET)
        return hashlib.sha256(file.read(AUTOV1_LENGTH)).hexdigest()[:AUTOV1_DIGITS]
