"""SDXL's own code, as the WebUI runs it, says what it makes of a checkpoint: run by the WebUI's Python, not by ours.

    sgm_speaks.py WEBUI CHECKPOINT CLIP ASKED OUT

The model is built from the `.yaml` beside CHECKPOINT and must take every tensor of the file. CLIP is a folder with the
first encoder's config and tokenizer; the second has the sizes of ASKED["second"], since the published name of its sizes
is not a small model's. What it says is saved as OUT.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(webui: str, checkpoint: str, clip: str, asked_path: str, out: str) -> None:
    sys.path[:0] = [webui, f"{webui}/repositories/generative-models"]
    import open_clip.factory
    import safetensors.torch
    import torch
    from omegaconf import OmegaConf
    from sgm.util import instantiate_from_config

    asked = torch.load(asked_path)
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 16}
    sizes = {"embed_dim": asked["second"]["width"], "vision_cfg": vision, "text_cfg": asked["second"]}
    open_clip.factory._MODEL_CONFIGS["small"] = sizes
    params = OmegaConf.load(Path(checkpoint).with_suffix(".yaml")).model.params
    params.network_config.params.spatial_transformer_attn_type = "softmax"  # no xformers on a CPU
    first, second = params.conditioner_config.params.emb_models[:2]
    first.params.update({"version": clip, "device": "cpu"})
    second.params.update({"arch": "small", "version": "", "device": "cpu"})
    state = safetensors.torch.load_file(checkpoint)

    def loaded(config: object, prefix: str) -> torch.nn.Module:
        module = instantiate_from_config(config).eval()
        own = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
        own.pop(
            "embedders.0.transformer.text_model.embeddings.position_ids", None
        )  # not in every transformers
        missing = module.load_state_dict(own, strict=False)
        assert not missing.unexpected_keys and all("position_ids" in key for key in missing.missing_keys), (
            missing
        )
        return module

    conditioner = loaded(params.conditioner_config, "conditioner.")
    unet = loaded(params.network_config, "model.diffusion_model.")
    vae = loaded(params.first_stage_config, "first_stage_model.")
    for embedder in conditioner.embedders:
        embedder.ucg_rate = 0.0
    told = {
        "txt": asked["prompts"],
        "original_size_as_tuple": asked["sizes"][:, :2],
        "crop_coords_top_left": asked["sizes"][:, 2:4],
        "target_size_as_tuple": asked["sizes"][:, 4:],
    }
    with torch.no_grad():
        condition = conditioner(told)
        latents, timesteps = asked["latents"], asked["timesteps"]
        said = unet(latents, timesteps, context=condition["crossattn"], y=condition["vector"])
        picture = vae.decode(latents / params.scale_factor)
    scaling = instantiate_from_config(params.denoiser_config.params.scaling_config)
    pooled = condition["vector"][:, : asked["second"]["width"]]
    found = {"context": condition["crossattn"], "pooled": pooled, "unet": said, "picture": picture}
    torch.save({**found, "scaling": type(scaling).__name__}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
