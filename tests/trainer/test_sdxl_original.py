"""SDXL's original code, as AUTOMATIC1111's WebUI runs it, says the same of our file and `.yaml` as our model does.

Runs where DREAMBOOTH_WEBUI names a folder with the WebUI installed (its Python in venv/).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import ldm_layout
import pytest
import torch
from checkpoints import write

from dreambooth.trainer.models.convert import convert, load_model
from dreambooth.trainer.models.embeddings import unet_arguments
from dreambooth.trainer.models.text import encode, encoders_of, tokenize
from dreambooth.trainer.models.tokenizer import default_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.webui]
TESTS = Path(__file__).resolve().parents[1]
PROMPTS = ["photo of sks cat, on a beach", "a dog"]
LAYOUT = replace(  # heads of 64 channels are what its config can say
    ldm_layout.SMALL_SDXL, vocabulary=49408, vae_multiples=(1, 1, 1, 1), context=128, second_width=64
)


def ours(path: Path) -> dict[str, torch.Tensor]:
    """What goes into the model and what it says."""
    model = load_model(path)
    family, unet = model.identified.family, model.components["unet"]
    torch.manual_seed(0)
    latents, timesteps = torch.randn(2, 4, 8, 16), torch.tensor([999, 300])
    sizes = torch.tensor([[480.0, 640.0, 0.0, 21.0, 64.0, 128.0], [64.0, 128.0, 3.0, 0.0, 64.0, 128.0]])
    with torch.no_grad():
        ids = tokenize(default_tokenizer(), family, PROMPTS)
        told = encode(encoders_of(model.components, family), family, ids)
        said = unet(latents, timesteps, **unet_arguments(told, sizes), return_dict=False)[0]
        picture = model.components["vae"].decode(latents / family.scaling_factor).sample
    asked = {"latents": latents, "timesteps": timesteps, "sizes": sizes}
    return {**asked, "context": told.context, "pooled": told.pooled, "unet": said, "picture": picture}


def test_the_original_code_takes_every_tensor_and_says_the_same(tmp_path):
    webui = Path(os.environ["DREAMBOOTH_WEBUI"])
    made = write(tmp_path / "made.safetensors", {**ldm_layout.tensors(LAYOUT), "v_pred": torch.empty(0)})
    convert(made, tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "model.safetensors")
    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(tmp_path / "folder" / part, tmp_path / "clip", dirs_exist_ok=True)
    found = ours(tmp_path / "model.safetensors")
    width, layers = LAYOUT.second_width, LAYOUT.second_layers
    second = {"context_length": 77, "vocab_size": 49408, "width": width, "heads": 1, "layers": layers}
    asked = {name: found.pop(name) for name in ("latents", "timesteps", "sizes")}
    torch.save({**asked, "prompts": PROMPTS, "second": second}, tmp_path / "asked.pt")
    python = webui / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    places = [
        webui,
        tmp_path / "model.safetensors",
        tmp_path / "clip",
        tmp_path / "asked.pt",
        tmp_path / "said.pt",
    ]
    command = [str(word) for word in (python, TESTS / "sgm_speaks.py", *places)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    said = torch.load(tmp_path / "said.pt")
    assert said.pop("scaling") == "VScaling"
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, said[name], rtol=1e-4, atol=2e-5, msg=name)
