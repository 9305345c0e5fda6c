"""The settings: each written down once, with its default, range, unit and help.

One dataclass per concept of the domain. The page, the command line, the REST schema and the README's table
are all made from these definitions (catalog.py); config.py reads and checks them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .concepts import Concept

SAMPLERS = ("dpmpp_2m", "dpmpp_2m_karras", "unipc", "euler", "euler_a", "ddim", "ddpm")
SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
OPTIMIZERS = (
    "adamw", "adamw8bit", "pagedadamw8bit", "lion", "lion8bit", "adafactor", "prodigy", "dadaptadam",
    "adamwschedulefree", "came",
)  # fmt: skip
# A class anywhere, as `torch.optim.SGD`
IMPORT_PATH = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+"


def setting(
    default: Any,
    help: str,
    *,
    label: str = "",
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    unit: str = "",
    common: bool = False,
    other: tuple[str, str] = ("", ""),
) -> Any:
    """One setting: its default and all that is known of it. `common` ones stand in sight on the page; `other` is a
    pattern of text that is taken beside the choices, and what it is called."""
    about = {
        "help": help,
        "label": label,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "unit": unit,
        "common": common,
        "other": other,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=about)
    return field(default=default, metadata=about)


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
        "Name of the result, without ending. Empty: the model's name and a number.",
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
        "safetensors", "File format of a checkpoint.", label="File format", choices=("safetensors", "ckpt")
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
class TrainingSettings:
    """The training itself."""

    max_train_steps: int = setting(
        0, "Steps to train. 0: so many for each photo.", label="Steps", minimum=0, common=True
    )
    steps_per_image: int = setting(
        100,
        "Steps for each photo, where the number of steps is 0.",
        label="Steps per photo",
        minimum=1,
        common=True,
    )
    train_batch_size: int = setting(
        1,
        "Instance images per step (class images come beside them).",
        label="Batch size",
        minimum=1,
        maximum=256,
        common=True,
    )
    gradient_accumulation_steps: int = setting(
        1, "Batches that make one step.", label="Gradient accumulation", minimum=1, maximum=1024
    )
    forward_batch_size: int = setting(
        0,
        "Images, instance and class, that go through the model at once: less memory, and still the same step. "
        "0: as many as fit.",
        label="Images at once",
        minimum=0,
        maximum=512,
    )
    learning_rate: float = setting(
        0.0,
        "Learning rate of the UNet. 0: the usual, 2e-6, or 1e-4 for an adapter.",
        minimum=0,
        maximum=1,
        common=True,
    )
    train_unet: bool = setting(True, "Train the UNet.", label="Train the UNet")
    train_text_encoder: bool = setting(
        True,
        "Train the text encoder too: better likeness, more memory.",
        label="Train the text encoder",
        common=True,
    )
    text_encoder_learning_rate: float = setting(
        0.0,
        "Learning rate of the text encoder. 0: the UNet's, or half of it for an adapter.",
        label="Learning rate of the text encoder",
        minimum=0,
        maximum=1,
    )
    text_encoder_stop: float = setting(
        1.0,
        "Share of the steps after which the text encoder is left as it is.",
        label="Stop the text encoder at",
        minimum=0,
        maximum=1,
    )
    lr_scheduler: str = setting(
        "constant", "How the learning rate changes.", label="Learning rate schedule", choices=SCHEDULERS
    )
    lr_warmup_steps: int = setting(
        0, "Steps in which the learning rate rises from 0.", label="Warm-up", minimum=0, unit="steps"
    )
    lr_num_cycles: int = setting(1, "Restarts of cosine_with_restarts.", label="Cycles", minimum=1)
    lr_power: float = setting(
        1.0, "Power of the polynomial scheduler.", label="Power", minimum=0.01, maximum=10
    )
    optimizer: str = setting(
        "auto",
        "The optimizer. auto: the first that fits of AdamW, its 8-bit form and Adafactor.",
        choices=("auto", *OPTIMIZERS),
        other=(IMPORT_PATH, "a class's import path"),
    )
    optimizer_args: dict[str, str] = setting(
        {}, "More arguments of the optimizer, by name.", label="Optimizer arguments"
    )
    fused_backward: str = setting(
        "auto",
        "Step each tensor as soon as its gradient is there: gradients take nearly no memory, and each is clipped to its "
        "share of max_grad_norm. auto: where no less fits.",
        label="Step within the backward pass",
        choices=("auto", "yes", "no"),
    )
    adam_beta1: float = setting(0.9, "Adam's decay of the mean.", label="Adam β1", minimum=0, maximum=0.9999)
    adam_beta2: float = setting(
        0.999, "Adam's decay of the variance.", label="Adam β2", minimum=0, maximum=0.999999
    )
    adam_weight_decay: float = setting(
        0.01, "AdamW's weight decay.", label="Weight decay", minimum=0, maximum=1
    )
    adam_epsilon: float = setting(1e-8, "Adam's epsilon.", label="Adam ε", minimum=1e-16, maximum=1)
    max_grad_norm: float = setting(
        1.0, "Gradients are scaled down to this norm. 0: never.", label="Gradient clipping", minimum=0
    )
    mixed_precision: str = setting(
        "auto",
        "Precision of the computation. auto: bf16 or fp16 on a card, no on a CPU.",
        choices=("auto", "no", "fp16", "bf16"),
    )
    weights_dtype: str = setting(
        "auto",
        "Precision of what is trained. bfloat16, with mixed_precision: bf16, halves it; steps are rounded at random. "
        "auto: float32 where that fits.",
        label="Precision of the trained weights",
        choices=("auto", "float32", "bfloat16"),
    )
    gradient_checkpointing: str = setting(
        "auto",
        "Blocks of the UNet that are computed twice instead of kept: less memory, about a quarter more time if all are "
        "(yes). A number: so many.",
        choices=("auto", "yes", "no"),
        other=(r"\d{1,4}", "a number of blocks, those first that hold most"),
    )
    snr_gamma: float = setting(
        0.0,
        "min-SNR weighting (arXiv 2303.09556); 5 is usual. 0: off.",
        label="min-SNR γ",
        minimum=0,
        maximum=100,
    )
    offset_noise: float = setting(
        0.0,
        "Noise that shifts whole images, for dark and bright ones; 0.05 is usual. 0: off.",
        minimum=0,
        maximum=1,
    )
    use_ema: bool = setting(
        False, "Keep an average of the weights and write that as the result.", label="Keep an average (EMA)"
    )
    ema_decay: float = setting(
        0.9999, "Decay of the average.", label="Decay of the average", minimum=0, maximum=0.999999
    )
    seed: int = setting(0, "Everything random comes from this number.", minimum=0, maximum=2**53)
    deterministic: bool = setting(
        False, "On a card: the same bits at every run, somewhat slower. A CPU always repeats."
    )


@dataclass
class SavingSettings:
    """What is kept and shown while it trains."""

    checkpointing_steps: int = setting(
        500,
        "Save the state every so many steps, to go on from. 0: only at the end.",
        label="Save the state every",
        minimum=0,
        unit="steps",
    )
    checkpoints_total_limit: int = setting(1, "Saved states that are kept.", label="States kept", minimum=1)
    validation_prompt: str = setting(
        "", "What the sample pictures show. Empty: the instance prompts.", label="Sample prompt"
    )
    validation_negative_prompt: str = setting(
        "", "What the sample pictures do not show.", label="Negative sample prompt"
    )
    validation_steps: int = setting(
        0,
        "Make sample pictures every so many steps. 0: only before the first step and at the end.",
        label="Sample pictures every",
        minimum=0,
        unit="steps",
        common=True,
    )
    num_validation_images: int = setting(
        1,
        "Pictures per sample prompt. 0: none at all.",
        label="Pictures per sample prompt",
        minimum=0,
        maximum=64,
    )
    report_to: str = setting(
        "", "Trackers, comma-separated: tensorboard, wandb. Empty: none.", label="Trackers"
    )


@dataclass
class AdapterSettings:
    """An adapter (output_kind: lora or lycoris): small and trained alone, the model stays as it is."""

    adapter: str = setting(
        "auto",
        "Kind of adapter: lora or dora with output_kind lora; loha or lokr with lycoris. auto: lora, or lokr.",
        label="Kind of adapter",
        choices=("auto", "lora", "dora", "loha", "lokr"),
    )
    rank: int = setting(
        0,
        "Rank: how much an adapter can learn, and its size. 0: 16, or that of init_from.",
        minimum=0,
        maximum=1024,
    )
    lora_alpha: float = setting(
        0.0,
        "What an adapter adds is multiplied by this / rank. 0: the rank, or as init_from has it.",
        label="Alpha",
        minimum=0,
        maximum=4096,
    )
    lora_dropout: float = setting(
        0.0,
        "Share of an adapter's input that is left out at each step.",
        label="Dropout",
        minimum=0,
        maximum=0.9,
    )
    target_blocks: str = setting(
        "",
        "What an adapter changes: attention, feed-forward, projections, convolutions, embeddings, all; down, mid, up.1. "
        "Empty: the first two.",
        label="Adapted layers",
    )
    clip_rank: bool = setting(
        False, "Lower the rank where a layer is narrower, instead of refusing it.", label="Clip the rank"
    )
    init_from: str = setting(
        "",
        "An adapter's file to go on from: kohya's, diffusers' or peft's. Empty: a new one.",
        label="Start from",
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
