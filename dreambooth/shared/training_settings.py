"""The settings of a training itself, of what is kept and shown on its way, and of what an adapter is (see settings.py)."""

from __future__ import annotations

from dataclasses import dataclass

from .definition import ADAPTERS, WHOLE, setting

SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
OPTIMIZERS = (
    "adamw", "adamw8bit", "pagedadamw8bit", "lion", "lion8bit", "adafactor", "prodigy", "dadaptadam",
    "adamwschedulefree", "came",
)  # fmt: skip
# A class anywhere, as `torch.optim.SGD`
IMPORT_PATH = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+"


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
        "Step each tensor as soon as its gradient is there: gradients take nearly no memory, each clipped to its "
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
        kinds=WHOLE,
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
        "", "Trackers, comma-separated: tensorboard, wandb. Empty: none.", label="Trackers", listed=True
    )


@dataclass
class AdapterSettings:
    """An adapter (output_kind: lora or lycoris): small and trained alone, the model stays as it is."""

    adapter: str = setting(
        "auto",
        "Kind of adapter: lora or dora with output_kind lora; loha or lokr with lycoris. auto: lora, or lokr.",
        label="Kind of adapter",
        choices=("auto", "lora", "dora", "loha", "lokr"),
        kinds=ADAPTERS,
        choice_kinds={"lora": ("lora",), "dora": ("lora",), "loha": ("lycoris",), "lokr": ("lycoris",)},
    )
    rank: int = setting(
        0,
        "Rank: how much an adapter can learn, and its size. 0: 16, or that of init_from.",
        minimum=0,
        maximum=1024,
        kinds=ADAPTERS,
    )
    lora_alpha: float = setting(
        0.0,
        "What an adapter adds is multiplied by this / rank. 0: the rank, or as init_from has it.",
        label="Alpha",
        minimum=0,
        maximum=4096,
        kinds=ADAPTERS,
    )
    lora_dropout: float = setting(
        0.0,
        "Share of an adapter's input that is left out at each step.",
        label="Dropout",
        minimum=0,
        maximum=0.9,
        kinds=ADAPTERS,
    )
    target_blocks: str = setting(
        "",
        "What an adapter changes: attention, feed-forward, projections, convolutions, embeddings, all; down, mid, up.1. "
        "Empty: the first two.",
        label="Adapted layers",
        kinds=ADAPTERS,
        listed=True,
    )
    clip_rank: bool = setting(
        False,
        "Lower the rank where a layer is narrower, instead of refusing it.",
        label="Clip the rank",
        kinds=ADAPTERS,
    )
    init_from: str = setting(
        "",
        "An adapter's file to go on from: kohya's, diffusers' or peft's. Empty: a new one.",
        label="Start from",
        kinds=ADAPTERS,
    )
