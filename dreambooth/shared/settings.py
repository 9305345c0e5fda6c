"""The settings: each written down once, with its default, range, unit and help.

One dataclass per concept of the domain. The page, the command line, the REST schema and the README's table
are all made from these definitions (catalog.py); config.py reads and checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .concepts import Concept
from .definition import ADAPTERS as ADAPTERS
from .definition import setting
from .training_settings import OPTIMIZERS as OPTIMIZERS
from .training_settings import SCHEDULERS as SCHEDULERS
from .training_settings import AdapterSettings as AdapterSettings
from .training_settings import SavingSettings as SavingSettings
from .training_settings import TrainingSettings as TrainingSettings

SAMPLERS = ("dpmpp_2m", "dpmpp_2m_karras", "unipc", "euler", "euler_a", "ddim", "ddpm")


@dataclass
class ModelSettings:
    """The checkpoint to start from, and how it is read."""

    model: str = setting(
        "",
        "The checkpoint to train: a .safetensors or .ckpt file, or a diffusers folder.",
        label="Checkpoint",
        common=True,
    )
    vae: str = setting(
        "",
        "Another VAE to use while training: a single file. Empty: the checkpoint's own.",
        label="VAE",
        common=True,
    )
    attention: str = setting(
        "auto",
        "How attention is computed. auto is torch's own.",
        label="Attention",
        choices=("auto", "sdpa", "xformers"),
    )
    base_precision: str = setting(
        "auto",
        "How the base of an adapter is kept. int8: in 8 bit, half the memory of bf16, slower. full: as it is computed.",
        label="Precision of the base",
        choices=("auto", "full", "int8"),
        kinds=ADAPTERS,
    )
    vram_limit: float = setting(
        0.0,
        "Memory that the training may take, as if the card (without one: the computer) had no more. 0: what is free.",
        label="Memory limit",
        minimum=0,
        maximum=1024,
        unit="GB",
    )
    prediction_type: str = setting(
        "auto",
        "What the UNet predicts: noise (epsilon) or velocity (v_prediction). auto asks the file.",
        label="Prediction type",
        choices=("auto", "epsilon", "v_prediction"),
    )
    use_ema_weights: bool = setting(
        False,
        "Start from the file's averaged (EMA) weights, if it has them.",
        label="Start from the EMA weights",
    )
    clip_skip: int = setting(
        1,
        "Which layer of the text encoder is used, counted as the WebUI does: 1 is the last.",
        label="Clip skip",
        minimum=1,
        maximum=12,
    )


@dataclass
class ResultSettings:
    """What is written at the end, and where."""

    output_name: str = setting(
        "",
        "Name of the result; it needs no ending. Empty: the model's name and a number.",
        label="Name of the result",
        common=True,
    )
    output_dir: str = setting(
        "", "Folder of the result. Empty: the folder of the model.", label="Folder of the result"
    )
    output_kind: str = setting(
        "checkpoint",
        "checkpoint, diffusers: the whole model is trained, written as one file or a folder. lora, lycoris: an adapter.",
        label="Kind of result",
        choices=("checkpoint", "lora", "lycoris", "diffusers"),
        common=True,
    )
    output_format: str = setting(
        "safetensors",
        "File format of a checkpoint.",
        label="File format",
        choices=("safetensors", "ckpt"),
        kinds=("checkpoint",),
    )
    output_dtype: str = setting(
        "float16",
        "Precision of the written weights. bfloat16 has coarse steps and can erase much of a gentle training.",
        label="Precision of the result",
        choices=("float16", "bfloat16", "float32"),
    )
    overwrite: bool = setting(
        False, "Replace a file of the result's name that is there already.", label="Replace an existing file"
    )
    export_steps: int = setting(
        0,
        "Also write a usable checkpoint, <name>-<step>, every so many steps. 0: only at the end.",
        label="Checkpoints on the way",
        minimum=0,
        unit="steps",
        common=True,
    )
    runs_dir: str = setting(
        "",
        "Folder that keeps the runs. Empty: the WebUI's, or your user data folder.",
        label="Folder of the runs",
    )


@dataclass
class ConceptSettings:
    """What is to be learned."""

    concepts: list[Concept] = setting(
        [], "The concepts: a list, or the path of a concepts_list.json.", common=True
    )


@dataclass
class ImageSettings:
    """How photos become training images."""

    resolution: int = setting(
        0,
        "Side of a square training image; the area of a bucket. 0: the size that the model was made for.",
        minimum=0,
        maximum=2048,
        unit="pixels",
        common=True,
    )
    crop: str = setting("center", "Where an image is cut to size.", label="Cut", choices=("center", "random"))
    random_flip: bool = setting(
        False, "Mirror images at random. Not for faces and writing.", label="Mirror at random"
    )
    rotation: float = setting(
        0.0,
        "Turn images by up to this angle, at random.",
        label="Rotate at random",
        minimum=0,
        maximum=45,
        unit="degrees",
    )
    brightness: float = setting(
        0.0,
        "Change brightness by up to this share, at random.",
        label="Vary the brightness",
        minimum=0,
        maximum=0.9,
    )
    aspect_ratio_buckets: bool = setting(
        False,
        "Keep the images' shapes (in buckets) instead of cutting squares. With class images, which are square, the shape "
        "may be learned as part of the subject.",
        label="Aspect ratio buckets",
    )
    background: str = setting(
        "white", "Colour behind transparent images: a name or #rrggbb.", label="Background colour"
    )
    allow_bad_images: bool = setting(
        False, "Go on without images that cannot be read.", label="Leave out bad images"
    )
    cache_latents: bool = setting(
        True, "Encode every image once, before training, and keep the results.", label="Encode once"
    )
    vae_tiling: str = setting(
        "auto",
        "Encode and draw pictures above 512 pixels in tiles, which takes less memory and gives slightly other pictures. "
        "auto: where the card is too small.",
        label="VAE in tiles",
        choices=("auto", "yes", "no"),
    )


@dataclass
class CaptionSettings:
    """How captions are read and varied."""

    caption_dropout: float = setting(
        0.0, "Share of samples that are trained without their caption.", minimum=0, maximum=1
    )
    shuffle_tags: bool = setting(
        False, "Shuffle the comma-separated tags of a caption at every step.", label="Shuffle tags"
    )
    keep_tokens: int = setting(
        0, "Tags at the beginning that stay where they are.", label="Tags that stay", minimum=0
    )
    max_prompt_chunks: int = setting(
        3,
        "Longest prompt, in chunks of 75 tokens, as the WebUI counts them.",
        label="Longest prompt",
        minimum=1,
        maximum=10,
    )


@dataclass
class PriorSettings:
    """Prior preservation: pictures of the class keep the model from forgetting it (DreamBooth, arXiv 2208.12242)."""

    prior_loss_weight: float = setting(
        1.0,
        "Weight of the class images' loss. 0: no prior preservation (native training).",
        label="Weight of the prior",
        minimum=0,
        maximum=100,
        common=True,
    )
    prior: str = setting(
        "class_images",
        "base_prediction: the model without the adapter says what a class is; no class images are made. Adapters only.",
        label="Source of the prior",
        choices=("class_images", "base_prediction"),
        kinds=ADAPTERS,
    )
    num_class_images: int = setting(
        100,
        "Class images per concept; the missing ones are made.",
        label="Class images",
        minimum=0,
        maximum=100_000,
        common=True,
    )
    class_guidance_scale: float = setting(
        7.5, "Guidance of the class images.", label="Guidance of class images", minimum=0, maximum=50
    )
    class_infer_steps: int = setting(
        20,
        "Sampling steps of a class image.",
        label="Sampling steps of class images",
        minimum=1,
        maximum=1000,
    )
    class_sampler: str = setting(
        "dpmpp_2m", "Sampler of the class images.", label="Sampler of class images", choices=SAMPLERS
    )
    class_seed: int = setting(0, "Seed of the class images.", label="Seed of class images", minimum=0)
    sample_batch_size: int = setting(
        4, "Pictures made at once.", label="Pictures at once", minimum=1, maximum=64
    )


@dataclass
class Settings:
    """All settings, by group. In a file the names stand at the top level; groups only order page and help."""

    model: ModelSettings = field(default_factory=ModelSettings)
    result: ResultSettings = field(default_factory=ResultSettings)
    concepts: ConceptSettings = field(default_factory=ConceptSettings)
    images: ImageSettings = field(default_factory=ImageSettings)
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    prior: PriorSettings = field(default_factory=PriorSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    saving: SavingSettings = field(default_factory=SavingSettings)
    adapters: AdapterSettings = field(default_factory=AdapterSettings)
    # what a concepts file held that means nothing here: said in the plan, never dropped in silence
    not_taken: tuple[str, ...] = ()


GROUPS = ("model", "result", "concepts", "images", "captions", "prior", "training", "saving", "adapters")
