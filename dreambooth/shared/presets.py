"""Settings to begin with, by what is to be learned, each with the evidence it rests on.

Grades of evidence: A a controlled comparison, B the default of a maintained trainer, C one user's report.
Those of a preset itself were made with Stable Diffusion 1.5 at 512 pixels, whole checkpoints; a variant is for
another family of models, or for adapters.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from .definition import ADAPTERS, WHOLE
from .settings import PriorSettings

# One token each in CLIP's vocabulary, and rare in what the models were trained on. `sks`, which many guides
# name, is a rifle to some models.
RARE_WORDS = ("ohwx", "phol", "nlwx", "ynna", "shma")
GRADES = {"A": "compared side by side", "B": "a trainer's own default", "C": "one user's report"}


@dataclass(frozen=True)
class Source:
    """Where a preset's numbers come from."""

    title: str
    url: str


@dataclass(frozen=True)
class Variant:
    """What is different for models whose family's name begins with `family` ("": any) and results of `kinds`."""

    family: str
    kinds: tuple[str, ...]
    settings: dict[str, Any]
    grade: str
    evidence: str
    source: Source


@dataclass(frozen=True)
class Preset:
    """`settings` by name; what they do not name is the default. The prompts have {word} for the rare word and
    {kind} for what the subject is, of which `kinds` are likely ones, the first for a beginning. The first of the
    `variants` that fits holds. `help_with_prior` goes on from `help` where the weight of the prior is not 0."""

    name: str
    title: str
    help: str
    settings: dict[str, Any]
    instance_prompt: str
    class_prompt: str
    kinds: tuple[str, ...]
    grade: str
    evidence: str
    source: Source
    variants: tuple[Variant, ...] = ()
    help_with_prior: str = ""
    words: tuple[str, ...] = field(default=RARE_WORDS)


HF_BLOG = Source(
    "Hugging Face: Training Stable Diffusion with DreamBooth", "https://huggingface.co/blog/dreambooth"
)
FAST_DREAMBOOTH = Source("TheLastBen: fast-DreamBooth", "https://github.com/TheLastBen/fast-stable-diffusion")
DIFFUSERS = Source(
    "diffusers: examples/dreambooth", "https://github.com/huggingface/diffusers/tree/main/examples/dreambooth"
)
KOHYA = Source("kohya-ss: sd-scripts", "https://github.com/kohya-ss/sd-scripts")
SIMPLETUNER = Source("SimpleTuner", "https://github.com/bghira/SimpleTuner")
HF_ADVANCED = Source(
    "Hugging Face: LoRA training scripts of the world, unite",
    "https://huggingface.co/blog/sdxl_lora_advanced_script",
)
DRAG_DIFFUSION = Source("DragDiffusion: LoRA of one picture", "https://github.com/Yujun-Shi/DragDiffusion")
# without a prior no class images are made: their number is the default again
_NO_PRIOR = {"prior_loss_weight": 0.0, "num_class_images": PriorSettings().num_class_images}

SDXL_SUBJECT = Variant(
    "sdxl",
    ADAPTERS,
    {
        "learning_rate": 1e-4,
        "max_train_steps": 1000,
        "gradient_accumulation_steps": 1,
        "train_text_encoder": False,
        "rank": 32,
        **_NO_PRIOR,
    },
    "B",
    "SDXL LoRA, a subject: 500 to 1500 steps at batch 1 to 4, rate 1e-4, rank 4 to 32.",
    HF_ADVANCED,
)
SDXL_WHOLE = Variant(
    "sdxl",
    WHOLE,
    {
        "learning_rate": 1e-6,
        "train_text_encoder": False,
        "gradient_checkpointing": "yes",
    },
    "B",
    "Whole SDXL checkpoints: the UNet alone at 4e-7 to 1e-6, until your eyes say stop.",
    SIMPLETUNER,
)
SUBJECT_ADAPTER = Variant(
    "",
    ADAPTERS,
    {
        "learning_rate": 1e-4,
        "text_encoder_learning_rate": 5e-5,
        "max_train_steps": 500,
        "gradient_accumulation_steps": 1,
        "rank": 64,
        **_NO_PRIOR,
    },
    "B",
    "LoRA: 500 steps at 1e-4, the text encoder at 5e-5, rank 64.",
    KOHYA,
)
STYLE_ADAPTERS = tuple(
    Variant(
        family,
        ADAPTERS,
        {"learning_rate": 1e-4, "max_train_steps": 1250, "rank": 32, **_NO_PRIOR, **more},
        "C",
        "Style LoRA: 1000 to 1500 steps, rank 16 to 32, about 30 captioned pictures, no class prior.",
        HF_ADVANCED,
    )
    for family, more in (("sdxl", {"train_text_encoder": False}), ("", {}))
)
QUICK_ADAPTER = Variant(
    "",
    ADAPTERS,
    {"learning_rate": 2e-4, "max_train_steps": 200, "train_text_encoder": False, "rank": 16, **_NO_PRIOR},
    "C",
    "LoRA of one picture: 200 steps at 2e-4, rank 16, on Stable Diffusion 1.5; carried over to several photos and to XL.",
    DRAG_DIFFUSION,
)
SUBJECT_VARIANTS = (SDXL_SUBJECT, SDXL_WHOLE, SUBJECT_ADAPTER)
# pictures on the way, so that eyes can choose the moment to stop
_LOOK = {"validation_steps": 100}

PRESETS = (
    Preset(
        name="person",
        title="Person",
        help="A face that must be recognised.",
        help_with_prior="Class images keep other people from turning into yours.",
        settings={
            **_LOOK,
            "learning_rate": 2e-6,
            "max_train_steps": 1000,
            "gradient_accumulation_steps": 2,
            "train_text_encoder": True,
            "prior_loss_weight": 1.0,
            "num_class_images": 200,
        },
        instance_prompt="photo of {word} {kind}",
        class_prompt="photo of {kind}",
        kinds=("person", "woman", "man", "girl", "boy"),
        grade="A",
        evidence="Faces: 800 to 1200 steps at batch 2, rate 1e-6 to 2e-6, the text encoder on, prior needed.",
        source=HF_BLOG,
        variants=SUBJECT_VARIANTS,
    ),
    Preset(
        name="subject",
        title="Pet or object",
        help="A dog, a toy, a backpack. Learns fast.",
        help_with_prior="Class images are made so that other ones stay different.",
        settings={
            **_LOOK,
            "learning_rate": 2e-6,
            "max_train_steps": 400,
            "gradient_accumulation_steps": 4,
            "train_text_encoder": True,
            "prior_loss_weight": 1.0,
            "num_class_images": 100,
        },
        instance_prompt="photo of {word} {kind}",
        class_prompt="photo of {kind}",
        kinds=("dog", "cat", "toy", "backpack", "car", "bottle"),
        grade="A",
        evidence="Objects: 400 steps at batch 4, rate 2e-6; the text encoder helps, prior optional.",
        source=HF_BLOG,
        variants=SUBJECT_VARIANTS,
    ),
    Preset(
        name="style",
        title="Style",
        help="A way of drawing or photographing: about 30 pictures, each with a caption of what it shows.",
        settings={
            **_LOOK,
            "learning_rate": 2e-6,
            "max_train_steps": 1500,
            "train_text_encoder": True,
            "prior_loss_weight": 0.0,
        },
        instance_prompt="picture in {word} {kind}",
        class_prompt="",
        kinds=("style",),
        grade="C",
        evidence="Styles: 1000 to 1500 steps, no class prior; known from LoRA, carried over to whole checkpoints.",
        source=DIFFUSERS,
        variants=(*STYLE_ADAPTERS, SDXL_WHOLE),
    ),
    Preset(
        name="few_photos",
        title="Person, few photos",
        help="About ten photos of a face, no class images: starts at once, forgets a little more.",
        settings={
            **_LOOK,
            "learning_rate": 2e-6,
            "max_train_steps": 1500,
            "train_text_encoder": True,
            "text_encoder_learning_rate": 1e-6,
            "text_encoder_stop": 0.233,
            "prior_loss_weight": 0.0,
        },
        instance_prompt="photo of {word} {kind}",
        class_prompt="",
        kinds=("person", "woman", "man", "girl", "boy"),
        grade="B",
        evidence="About ten photos: UNet 1500 steps at 2e-6, text encoder 350 steps at 1e-6, no captions.",
        source=FAST_DREAMBOOTH,
        variants=SUBJECT_VARIANTS,
    ),
    Preset(
        name="quick",
        title="Quick try",
        help="To see whether the photos work at all: a high rate, few steps, the text encoder left alone.",
        settings={
            **_LOOK,
            "learning_rate": 5e-6,
            "max_train_steps": 400,
            "train_text_encoder": False,
            "prior_loss_weight": 0.0,
        },
        instance_prompt="photo of {word} {kind}",
        class_prompt="",
        kinds=("dog", "cat", "toy", "person"),
        grade="B",
        evidence="400 steps at 5e-6 without the text encoder and without class images.",
        source=DIFFUSERS,
        variants=(QUICK_ADAPTER, SDXL_WHOLE),
    ),
)


def as_json() -> list[dict[str, Any]]:
    """The presets as plain JSON values, with the meanings of the grades."""
    return [dataclasses.asdict(preset) | {"grades": GRADES} for preset in PRESETS]
