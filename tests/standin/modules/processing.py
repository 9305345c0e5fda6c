"""Pictures: one colour each, told by the content of the checkpoint that made it."""

import time
from dataclasses import dataclass, field

from modules import devices, sd_models, sd_vae, shared

pace = 0.0  # seconds a picture takes


@dataclass
class StableDiffusionProcessing:
    prompt: str = ""
    negative_prompt: str = ""
    width: int = 64
    height: int = 64
    override_settings: dict = field(default_factory=dict)
    scripts: object = None


@dataclass
class Processed:
    images: list
    info: str


def process_images(p):
    from PIL import Image

    sd_models.reload_model_weights()
    model = shared.sd_model
    if model.device != devices.device or not model.hijacked:
        raise RuntimeError("Expected all tensors to be on the same device: the model is half detached")
    time.sleep(pace)
    colour = tuple(bytes.fromhex(model.content[:6]))
    vae = f", VAE: {sd_vae.loaded_vae_file}" if sd_vae.loaded_vae_file else ""
    info = f"{p.prompt}\nModel hash: {model.content[:10]}, Model: {model.sd_checkpoint_info.model_name}{vae}"
    return Processed([Image.new("RGB", (p.width, p.height), colour)], info)
