"""Small checkpoints of every family, and what our command line trains on them, for the real WebUI to draw with.

    drawable.py DATA HUB

Run by the trainer's Python. DATA is a WebUI's data folder and gets, for each family, the base, what a full training made of
it, one adapter of each kind and the base with each merged in; and an extension in which the WebUI finds the sizes of small
text encoders under the names of the published ones. HUB becomes the cache in which it finds CLIP's, for the same reason:
so every `.yaml` is used as it was written.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from checkpoints import write
from ldm_layout import SCHEDULE, SMALL_SD1, SMALL_SD2, SMALL_SDXL, Layout, tensors
from tiny import config, dreambooth

from dreambooth.trainer.adapters.kinds import KINDS
from dreambooth.trainer.families.ldm_yaml import needs_yaml, yaml_path, yaml_text
from dreambooth.trainer.models.loading import understand
from dreambooth.trainer.models.sources import open_model
from dreambooth.trainer.models.tokenizer import write_tokenizer_folder

WIDTH = 64  # of CLIP and of SD2's encoder: one head
SECOND = 128  # of SDXL's second encoder
LAYERS = 2
SHARED = {"vocabulary": 49408, "vae_multiples": (1, 1, 1, 1), "text_layers": LAYERS}
# Two blocks a level, and none with attention at the bottom, as the published ones have it: the WebUI counts on that where
# it translates diffusers' names
LEVELS = {"multiples": (1, 1, 1), "attention": (1, 2)}
SD1 = replace(SMALL_SD1, **SHARED, **LEVELS, context=WIDTH)
SD2 = replace(SMALL_SD2, **SHARED, **LEVELS, context=WIDTH)
SDXL = replace(
    SMALL_SDXL, **SHARED, text_width=WIDTH, second_width=SECOND, second_layers=LAYERS, context=WIDTH + SECOND
)
CLIP = "openai/clip-vit-large-patch14"
OPENCLIP = {"ViT-H-14": WIDTH, "ViT-bigG-14": SECOND}
MARKS = {"sdxl-v": ("v_pred",), "sdxl-zsnr": ("v_pred", "ztsnr")}


@dataclass(frozen=True)
class Drawn:
    """One family's checkpoint; `adapters` says whether adapters are trained on it too."""

    name: str
    layout: Layout
    prediction_type: str = "epsilon"
    adapters: bool = True


FAMILIES = (
    Drawn("sd1", SD1),
    Drawn("sd1-inpaint", replace(SD1, in_channels=9)),
    Drawn("sd2", SD2),
    Drawn("sd2-v", SD2, "v_prediction"),
    Drawn("sd2-inpaint", replace(SD2, in_channels=9)),
    Drawn("sdxl", SDXL),
    Drawn("sdxl-v", SDXL, "v_prediction"),
    Drawn("sdxl-zsnr", SDXL, "v_prediction", adapters=False),
)


def main(data: Path, hub: Path) -> None:
    published(hub, data / "extensions" / "witness")
    work = data / "made"
    for family in FAMILIES:
        for number, made in enumerate(of(family, work / family.name, data / "models")):
            print(f"{family.name} {number}: {made}", flush=True)


def published(hub: Path, extension: Path) -> None:
    """The small text encoders' sizes, where the WebUI looks for those of the published ones."""
    folder = hub / f"models--{CLIP.replace('/', '--')}" / "snapshots" / "small"
    write_tokenizer_folder(folder)
    sizes = {
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": "quick_gelu",
        "hidden_size": WIDTH, "intermediate_size": WIDTH * 4, "num_attention_heads": WIDTH // 64,
        "num_hidden_layers": LAYERS, "projection_dim": WIDTH, "max_position_embeddings": 77, "vocab_size": 49408,
        "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    (hub / folder.parts[-3] / "refs").mkdir()
    (hub / folder.parts[-3] / "refs" / "main").write_text("small", encoding="utf-8")
    (extension / "scripts").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("witness.py"), extension / "scripts")
    (extension / "open_clip").mkdir()
    for name, width in OPENCLIP.items():
        told = {
            "embed_dim": width,
            "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 16},
            "text_cfg": {
                "context_length": 77, "vocab_size": 49408, "width": width, "heads": width // 64, "layers": LAYERS,
            },
        }  # fmt: skip
        (extension / "open_clip" / f"{name}.json").write_text(json.dumps(told), encoding="utf-8")


def of(family: Drawn, work: Path, models: Path) -> Iterator[Path]:
    """Everything of one family, by our command line, in the WebUI's folders."""
    checkpoints, loras = models / "Stable-diffusion", models / "Lora"
    model = base(family, work)
    yield placed(checkpoints / f"{family.name}.safetensors", family, model)
    whole = train(family, model, work / "whole", checkpoints, f"{family.name}-whole", learning_rate=1e-3)
    yield whole
    for kind in KINDS if family.adapters else ():
        name = f"{family.name}-{kind}"
        values = {"output_kind": KINDS[kind].result, "adapter": kind, "rank": 4, "lora_alpha": 3}
        # a WebUI on a CPU passes over these two in float16, as the README says
        values["output_dtype"] = "float32" if kind in ("loha", "lokr") else "float16"
        adapter = train(
            family, model, work / kind, loras, name, target_blocks="all", learning_rate=2e-2, **values
        )
        yield adapter
        yield placed(checkpoints / f"{name}-merged.safetensors", family, model, "--lora", adapter)


def base(family: Drawn, work: Path) -> Path:
    """The family's checkpoint in the published layout, float32; with a `.yaml` only where the result would get none."""
    found = tensors(family.layout) | {name: torch.empty(0) for name in MARKS.get(family.name, ())}
    if family.layout.text == "sdxl":  # whose published file has no schedule
        found = {name: tensor for name, tensor in found.items() if name not in SCHEDULE}
    # random weights multiply the noise at every step: with an output as small as this they draw something
    found["model.diffusion_model.out.2.weight"] *= 0.3
    work.mkdir(parents=True)
    path = write(work / "base.safetensors", found)
    _, description = understand(open_model(path), family.prediction_type)
    if not needs_yaml(description.identified):
        yaml_path(path).write_text(yaml_text(description.identified, description.configs), encoding="utf-8")
    return path


def placed(path: Path, family: Drawn, model: Path, *more: str | Path) -> Path:
    done = dreambooth("convert", model, path, "--prediction-type", family.prediction_type, *more)
    assert done == 0, f"{path.name} was not written"
    return path


def train(
    family: Drawn, model: Path, folder: Path, out: Path, name: str, *, learning_rate: float, **values: object
) -> Path:
    folder.mkdir()
    asked = {
        "model": str(model), "prediction_type": family.prediction_type, "output_name": name, "output_dir": str(out),
        "learning_rate": learning_rate, "text_encoder_learning_rate": learning_rate, "prior_loss_weight": 0,
        "train_text_encoder": True, "max_train_steps": 6, **values,
    }  # fmt: skip
    assert dreambooth("train", config(folder, **asked)) == 0, f"{name} was not trained"
    return out / f"{name}.safetensors"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
