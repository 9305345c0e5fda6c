"""The structure of the `.yaml` by which SDXL's own code (and the WebUI, which runs it) knows a checkpoint.

The published one is `sd_xl_base.yaml`; v-prediction is told by its `scaling_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth.trainer.families import Identified, PredictionType

SCALINGS: dict[str, PredictionType] = {"EpsScaling": "epsilon", "VScaling": "v_prediction"}
WEIGHTINGS: dict[PredictionType, str] = {"epsilon": "EpsWeighting", "v_prediction": "VWeighting"}
SGM = "sgm.modules."
DIFFUSION = f"{SGM}diffusionmodules."
ENCODERS = f"{SGM}encoders.modules."
SIZES = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")


def is_sgm(params: Mapping[str, Any]) -> bool:
    """Whether a config's `model.params` are those of SDXL's code."""
    return "network_config" in params and "denoiser_config" in params


def scaling_of(params: Mapping[str, Any]) -> str:
    """The class that says what the UNet predicts, "" if there is none."""
    found: Any = params
    for key in ("denoiser_config", "params", "scaling_config", "target"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return str(found or "").rpartition(".")[2]


def set_prediction_type(params: dict[str, Any], prediction_type: PredictionType) -> None:
    """Change a config so that it says another prediction type."""
    params["denoiser_config"]["params"] |= _prediction(prediction_type)


def _prediction(prediction_type: PredictionType) -> dict[str, Any]:
    scaling = next(name for name, told in SCALINGS.items() if told == prediction_type)
    return {
        "weighting_config": {"target": f"{DIFFUSION}denoiser_weighting.{WEIGHTINGS[prediction_type]}"},
        "scaling_config": {"target": f"{DIFFUSION}denoiser_scaling.{scaling}"},
    }


def model_of(
    identified: Identified,
    configs: Mapping[str, Mapping[str, Any]],
    multiples: list[int],
    vae_params: dict[str, Any],
) -> dict[str, Any]:
    """The config's `model`; `multiples` are the UNet's widths by its first, `vae_params` the autoencoder's.

    The second text encoder is named by its published size, for which there is no other way.
    """
    unet = configs["unet"]
    params: dict[str, Any] = {
        "scale_factor": identified.family.scaling_factor,
        "disable_first_stage_autocast": True,
        "denoiser_config": {
            "target": f"{DIFFUSION}denoiser.DiscreteDenoiser",
            "params": {
                "num_idx": 1000,
                **_prediction(identified.prediction_type),
                "discretization_config": {"target": f"{DIFFUSION}discretizer.LegacyDDPMDiscretization"},
            },
        },
        "network_config": {
            "target": f"{DIFFUSION}openaimodel.UNetModel",
            "params": _unet_params(unet, multiples),
        },
        "conditioner_config": {
            "target": f"{SGM}GeneralConditioner",
            "params": {"emb_models": _embedders(configs)},
        },
        "first_stage_config": {
            "target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper",
            "params": vae_params,
        },
    }
    return {"target": "sgm.models.diffusion.DiffusionEngine", "params": params}


def _unet_params(unet: Mapping[str, Any], multiples: list[int]) -> dict[str, Any]:
    kinds, layers = unet["down_block_types"], unet["layers_per_block"]
    depths = unet.get("transformer_layers_per_block", (1,) * len(kinds))
    return {
        "adm_in_channels": unet["projection_class_embeddings_input_dim"],
        "num_classes": "sequential",
        "use_checkpoint": False,
        "in_channels": unet["in_channels"],
        "out_channels": unet["out_channels"],
        "model_channels": unet["block_out_channels"][0],
        "attention_resolutions": [2**level for level, kind in enumerate(kinds) if "CrossAttn" in kind],
        "num_res_blocks": layers if isinstance(layers, int) else list(layers),
        "channel_mult": multiples,
        "num_head_channels": _head_width(unet),
        "use_spatial_transformer": True,
        "use_linear_in_transformer": unet["use_linear_projection"],
        "transformer_depth": list(depths),
        "context_dim": unet["cross_attention_dim"],
        "spatial_transformer_attn_type": "softmax-xformers",
        "legacy": False,
    }


def _head_width(unet: Mapping[str, Any]) -> int:
    heads, width = unet["attention_head_dim"], unet["block_out_channels"][-1]
    return int(width // (heads if isinstance(heads, int) else heads[-1]))


def _embedders(configs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    width = configs["unet"]["addition_time_embed_dim"]
    first = {"layer": "hidden", "layer_idx": configs["text_encoder"]["num_hidden_layers"] - 1}
    second = {
        "arch": "ViT-bigG-14",
        "version": "laion2b_s39b_b160k",
        "freeze": True,
        "layer": "penultimate",
        "always_return_pooled": True,
        "legacy": False,
    }
    texts = [("FrozenCLIPEmbedder", first), ("FrozenOpenCLIPEmbedder2", second)]
    return [_embedder("txt", name, params) for name, params in texts] + [
        _embedder(key, "ConcatTimestepEmbedderND", {"outdim": width}) for key in SIZES
    ]


def _embedder(key: str, name: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"is_trainable": False, "input_key": key, "target": f"{ENCODERS}{name}", "params": params}
