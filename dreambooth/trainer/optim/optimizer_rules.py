"""Which optimizer goes with which other settings, on which device: refused with both names before anything is loaded."""

from __future__ import annotations

import torch

from dreambooth.shared.errors import InputError
from dreambooth.shared.settings import Settings, TrainingSettings
from dreambooth.trainer.optim.optimizer_class import class_of, require
from dreambooth.trainer.optim.optimizer_table import BITSANDBYTES, TABLE, OptimizerKind, kind_of
from dreambooth.trainer.optim.optimizers import ParameterGroup, build_optimizer

# The rate that an optimizer finds is multiplied by the setting; from here on that is a factor and not a mistake.
_SMALL_FACTOR = 0.1
_DEVICES = {"cuda": "a card with CUDA or ROCm", "mps": "an Apple GPU", "cpu": "the processor"}


def check_optimizer(settings: Settings) -> None:
    """Raises InputError if the optimizer is not installed, refuses its arguments, or does not go with other settings.

    bitsandbytes is left for `eightbit.instead.check_8bit`, which proves it in another process before it is imported
    here; `try_arguments` comes after that.
    """
    training = settings.training
    kind = kind_of(training.optimizer)
    proved_later = kind.library is BITSANDBYTES and kind.eight_bit
    if not proved_later:
        require(kind)
    for check in (_check_schedule, _check_average, _check_rates):
        check(kind, training)
    if not proved_later:
        try_arguments(training)


def try_arguments(training: TrainingSettings) -> None:
    """Raises InputError if the optimizer refuses its arguments; tried on one number."""
    class_of(kind_of(training.optimizer))
    group = ParameterGroup("tried", [torch.nn.Parameter(torch.zeros(1))], training.learning_rate or 1e-6)
    build_optimizer(training, [group], torch.device("cpu"))


def check_device(name: str, device: torch.device) -> None:
    """Raises InputError if an optimizer cannot run on the device."""
    kind = kind_of(name)
    if device.type in kind.devices:
        return
    there = ", ".join(row.name for row in TABLE.values() if device.type in row.devices)
    needs = " or ".join(_DEVICES[device] for device in ("cuda", "mps", "cpu") if device in kind.devices)
    why = "moves its state between a card's memory and the computer's, so it " if kind.paged else ""
    raise InputError(
        f"{kind.title} {why}needs {needs}, and this run uses {_DEVICES.get(device.type, device.type)}",
        where="optimizer",
        remedy=f"here {there} work",
    )


def check_fused_backward(settings: Settings, precision: str, processes: int) -> None:
    """Raises InputError if something needs the gradients that `fused_backward` drops: an optimizer that looks at all of
    them, a sum over batches, parts of one or processes, fp16's loss scaler."""
    training = settings.training
    kind = kind_of(training.optimizer)
    batches, part = training.gradient_accumulation_steps, training.forward_batch_size
    images = training.train_batch_size * (2 if settings.prior.prior_loss_weight > 0 else 1)
    able = ", ".join(row.name for row in TABLE.values() if row.fused_backward)
    reasons = (
        (
            not kind.fused_backward,
            f"optimizer {kind.name} needs all gradients at once",
            f"use one of {able}",
        ),
        (
            batches > 1,
            f"gradient_accumulation_steps {batches} adds up gradients",
            "use 1, and a larger train_batch_size",
        ),
        (
            0 < part < images,
            f"forward_batch_size {part} cuts a batch of {images} images into parts, whose gradients add up",
            f"use 0, or at least {images}",
        ),
        (
            precision == "fp16",
            "mixed_precision fp16 looks at all gradients before it takes a step",
            "use mixed_precision: bf16 or no",
        ),
        (processes > 1, f"{processes} processes add up their gradients", "train with one process"),
    )
    for holds, text, remedy in reasons:
        if training.fused_backward == "yes" and holds:
            raise InputError(
                f"{text}, and fused_backward drops each as soon as it is there",
                where="fused_backward",
                remedy=f"{remedy}, or turn fused_backward off",
            )


def check_weights_dtype(settings: Settings, precision: str) -> None:
    """Raises InputError if weights in bfloat16 do not go with the rest: they are computed with as they are, and stepped
    tensor by tensor, each in float32 for the moment."""
    training = settings.training
    kind = kind_of(training.optimizer)
    reasons = (
        (precision != "bf16", f"mixed_precision is {precision}", "use mixed_precision: bf16"),
        (
            not kind.fused_backward,
            f"optimizer {kind.name} steps all tensors at once",
            f"use one of {', '.join(row.name for row in TABLE.values() if row.fused_backward)}",
        ),
        (
            settings.result.output_kind not in ("checkpoint", "diffusers"),
            f"output_kind {settings.result.output_kind} trains few weights, which stay in float32",
            "use weights_dtype: float32",
        ),
    )
    for holds, text, remedy in reasons:
        if training.weights_dtype == "bfloat16" and holds:
            raise InputError(
                f"weights_dtype is bfloat16, and {text}",
                where="weights_dtype",
                remedy=f"{remedy}, or weights_dtype: float32" if "float32" not in remedy else remedy,
            )


def notes_on(settings: Settings) -> list[str]:
    """What a plan says of the optimizer that is no error."""
    training = settings.training
    kind = kind_of(training.optimizer)
    notes = []
    if kind.own_rate and training.learning_rate < _SMALL_FACTOR:
        notes.append(
            f"{kind.title} finds the learning rate by itself and multiplies it by learning_rate: 1 is meant, and "
            f"{training.learning_rate:g} will hardly learn anything"
        )
    if training.fused_backward == "yes" and training.max_grad_norm:
        notes.append(
            f"with fused_backward each tensor's gradient is clipped by itself, to its usual share of max_grad_norm "
            f"({training.max_grad_norm:g}): all together are never above it, but it is not the clipping of other runs"
        )
    if kind.exact_resume is None:
        notes.append(
            f"optimizer {kind.name} is not one that was tried here: its arguments are those of optimizer_args alone, "
            "its memory is counted as AdamW's, and whether an interrupted run goes on to the same bits is not known"
        )
    return notes


def _check_schedule(kind: OptimizerKind, training: TrainingSettings) -> None:
    if not kind.averages:
        return
    if training.lr_scheduler != "constant":
        raise InputError(
            f"optimizer {kind.name} takes the place of a schedule, and lr_scheduler is {training.lr_scheduler}",
            where="lr_scheduler",
            remedy="use lr_scheduler: constant, or another optimizer",
        )
    if training.lr_warmup_steps:
        raise InputError(
            f"optimizer {kind.name} warms up by itself, and lr_warmup_steps is {training.lr_warmup_steps}",
            where="lr_warmup_steps",
            remedy=f"use 0, and optimizer_args: {{warmup_steps: {training.lr_warmup_steps}}}",
        )


def _check_average(kind: OptimizerKind, training: TrainingSettings) -> None:
    if kind.averages and training.use_ema:
        raise InputError(
            f"optimizer {kind.name} keeps an average of the weights itself, and use_ema asks for another",
            where="use_ema",
            remedy="turn use_ema off: the optimizer's average is what is exported",
        )
    if kind.averages and not training.adam_beta1:
        raise InputError(
            f"optimizer {kind.name} needs an adam_beta1 above 0", where="adam_beta1", remedy="0.9 is usual"
        )


def _check_rates(kind: OptimizerKind, training: TrainingSettings) -> None:
    both = training.train_unet and training.train_text_encoder
    own = training.text_encoder_learning_rate
    if kind.own_rate and both and own not in (0, training.learning_rate):
        raise InputError(
            f"optimizer {kind.name} finds one learning rate for all that is trained, and text_encoder_learning_rate "
            f"({own:g}) is another than learning_rate ({training.learning_rate:g})",
            where="text_encoder_learning_rate",
            remedy="use 0, or an optimizer whose rate you choose",
        )
