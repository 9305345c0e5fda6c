"""The `.yaml` beside a checkpoint, by which the WebUI (and any program built on LDM) knows what it is.

Read for what shapes cannot tell, and written beside results whose family or prediction type such programs would
otherwise have to guess. SDXL's has another structure: `sgm_yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth.shared.errors import InputError
from dreambooth.trainer.families import Family, Identified, PredictionType, sgm_yaml
from dreambooth.trainer.families.topology import Heads

PARAMETERIZATIONS: dict[str, PredictionType] = {"eps": "epsilon", "v": "v_prediction"}
REMEDY = "correct it, or move it away if it does not belong to this checkpoint"
LDM = "ldm.models.diffusion.ddpm."
TEXT_ENCODERS = {
    "clip": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
    "openclip": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
}


@dataclass(frozen=True)
class Stated:
    """What is said about a checkpoint beside its tensors; `told_by` says where, and ends a sentence.

    `heads` gives the UNet's number of heads at a width, None leaves it to the family's rule.
    """

    told_by: str
    prediction_type: PredictionType | None = None
    heads: Heads | None = None
    zero_terminal_snr: bool = False
    last_text_layer: bool = False


def yaml_path(checkpoint: Path) -> Path:
    """Where the WebUI looks for a checkpoint's config."""
    return checkpoint.with_suffix(".yaml")


def read_yaml(checkpoint: Path) -> Stated | None:
    """What the `.yaml` beside a checkpoint says; None if there is none. Raises InputError if it is broken."""
    path = yaml_path(checkpoint)
    if not path.is_file():
        return None
    params = _table(_parse(path), path, "model", "params")
    if sgm_yaml.is_sgm(params):
        return _stated_by_sgm(params, path)
    parameterization = params.get("parameterization", "eps")
    if parameterization not in PARAMETERIZATIONS:
        raise InputError(
            f"its parameterization is {parameterization!r}; only 'eps' and 'v' are known",
            where=str(path),
            remedy=REMEDY,
        )
    text = _table(params, path, "cond_stage_config").get("params") or {}
    return Stated(
        told_by=f"the file {path.name} beside it says so",
        prediction_type=PARAMETERIZATIONS[parameterization],
        heads=_heads(_table(params, path, "unet_config", "params"), path),
        last_text_layer=isinstance(text, Mapping) and text.get("layer") == "last",
    )


def _stated_by_sgm(params: Mapping[str, Any], path: Path) -> Stated:
    scaling = sgm_yaml.scaling_of(params)
    if scaling not in sgm_yaml.SCALINGS:
        known = " and ".join(sgm_yaml.SCALINGS)
        raise InputError(
            f"its scaling_config is {scaling!r}; only {known} are known", where=str(path), remedy=REMEDY
        )
    return Stated(
        told_by=f"the file {path.name} beside it says so",
        prediction_type=sgm_yaml.SCALINGS[scaling],
        heads=_heads(_table(params, path, "network_config", "params"), path),
    )


def _heads(unet: Mapping[str, Any], path: Path) -> Heads | None:
    heads, wide = unet.get("num_heads", -1), unet.get("num_head_channels", -1)
    for name, value in (("num_heads", heads), ("num_head_channels", wide)):
        if not isinstance(value, int) or isinstance(value, bool) or value == 0:
            raise InputError(f"its {name} is {value!r}, not a number", where=str(path), remedy=REMEDY)
    if wide > 0:
        return lambda width: max(1, width // wide)
    return (lambda width: heads) if heads > 0 else None


def _parse(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"this is no YAML file: {error}", where=str(path), remedy=REMEDY) from error


def _table(found: Any, path: Path, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        raise InputError(
            f"this is no Stable Diffusion config: it has no {'.'.join(keys)}", where=str(path), remedy=REMEDY
        )
    return found


def is_config(path: Path) -> bool:
    """Whether a `.yaml` is a checkpoint's config, and not somebody's other file of that name."""
    try:
        return bool(_table(_parse(path), path, "model", "params"))
    except InputError:
        return False


def needs_yaml(identified: Identified) -> bool:
    """Whether the WebUI would have to guess: every SD2 file, and every one that predicts v."""
    return identified.family.needs_yaml or identified.prediction_type == "v_prediction"


def yaml_text(identified: Identified, configs: Mapping[str, Mapping[str, Any]]) -> str:
    """The config of a checkpoint as its family's code has it, from the configs of its modules.

    Raises InputError if that cannot express its sizes (widths that are no multiple of the first).
    """
    import yaml

    model = MODELS[identified.family.layout](identified, configs)
    text: str = yaml.safe_dump({"model": model}, sort_keys=False, default_flow_style=None)
    return text


def _ldm_model(identified: Identified, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    unet, vae, family = configs["unet"], configs["vae"], identified.family
    openclip = family.text_encoders[0].kind == "openclip"
    inpainting = family.in_channels == 9
    params: dict[str, Any] = {
        "parameterization": {value: key for key, value in PARAMETERIZATIONS.items()}[
            identified.prediction_type
        ],
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "timesteps": 1000,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 64,
        "channels": vae["latent_channels"],
        "cond_stage_trainable": False,
        "conditioning_key": "hybrid" if inpainting else "crossattn",
        "monitor": "val/loss_simple_ema",
        "scale_factor": family.scaling_factor,
        "use_ema": False,
        **({"finetune_keys": None} if inpainting else {}),
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": _unet_params(family, unet),
        },
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": _vae_params(vae),
        },
        "cond_stage_config": {"target": TEXT_ENCODERS[family.text_encoders[0].kind]}
        | ({"params": {"freeze": True, "layer": "penultimate"}} if openclip else {}),
    }
    return {"target": LDM + ("LatentInpaintDiffusion" if inpainting else "LatentDiffusion"), "params": params}


def _sgm_model(identified: Identified, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    unet, vae = configs["unet"], configs["vae"]
    return sgm_yaml.model_of(identified, configs, _multiples(unet["block_out_channels"]), _vae_params(vae))


MODELS = {"ldm": _ldm_model, "sgm": _sgm_model}


def with_parameterization(text: str, prediction_type: PredictionType) -> str:
    """A config's text as it is, or, if it says another prediction type than the one given, saying that one."""
    import yaml

    content = yaml.safe_load(text)
    params = content["model"]["params"]
    if sgm_yaml.is_sgm(params):
        if sgm_yaml.SCALINGS.get(sgm_yaml.scaling_of(params)) == prediction_type:
            return text
        sgm_yaml.set_prediction_type(params, prediction_type)
        return str(yaml.safe_dump(content, sort_keys=False, default_flow_style=None))
    if PARAMETERIZATIONS.get(params.get("parameterization", "eps")) == prediction_type:
        return text
    params["parameterization"] = {value: key for key, value in PARAMETERIZATIONS.items()}[prediction_type]
    changed: str = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
    return changed


def _unet_params(family: Family, unet: Mapping[str, Any]) -> dict[str, Any]:
    widths, layers = unet["block_out_channels"], unet["layers_per_block"]
    heads = unet["attention_head_dim"]
    with_attention = [2**level for level, name in enumerate(unet["down_block_types"]) if "CrossAttn" in name]
    return {
        "image_size": 32,
        "in_channels": unet["in_channels"],
        "out_channels": unet["out_channels"],
        "model_channels": widths[0],
        "attention_resolutions": with_attention,
        "num_res_blocks": layers if isinstance(layers, int) else list(layers),
        "channel_mult": _multiples(widths),
        **_heads_params(widths, heads),
        "use_spatial_transformer": True,
        "use_linear_in_transformer": unet["use_linear_projection"],
        "transformer_depth": 1,
        "context_dim": unet["cross_attention_dim"],
        "use_checkpoint": False,
        "legacy": False,
    }


def _heads_params(widths: tuple[int, ...], heads: int | tuple[int, ...]) -> dict[str, int]:
    if isinstance(heads, int):
        return {"num_heads": heads}
    return {"num_head_channels": widths[-1] // heads[-1]}


def _vae_params(vae: Mapping[str, Any]) -> dict[str, Any]:
    widths = vae["block_out_channels"]
    return {
        "embed_dim": vae["latent_channels"],
        "monitor": "val/rec_loss",
        "ddconfig": {
            "double_z": True,
            "z_channels": vae["latent_channels"],
            "resolution": 256,
            "in_channels": vae["in_channels"],
            "out_ch": vae["out_channels"],
            "ch": widths[0],
            "ch_mult": _multiples(widths),
            "num_res_blocks": vae["layers_per_block"],
            "attn_resolutions": [],
            "dropout": 0.0,
        },
        "lossconfig": {"target": "torch.nn.Identity"},
    }


def _multiples(widths: tuple[int, ...]) -> list[int]:
    if any(width % widths[0] for width in widths):
        raise InputError(
            f"the widths {widths} are no multiples of the first, which the WebUI's configs cannot say",
            remedy="use a base of the usual proportions",
        )
    return [width // widths[0] for width in widths]
