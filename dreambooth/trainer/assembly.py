"""The parts of a training, built from a plan: each function makes one of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dreambooth.shared.config import to_mapping
from dreambooth.trainer import arithmetic
from dreambooth.trainer.adapters.attached import attach
from dreambooth.trainer.adapters.results import from_base
from dreambooth.trainer.draws import words
from dreambooth.trainer.engine import Denoiser, Half, Teacher, TrainingEngine
from dreambooth.trainer.loop import Cadence
from dreambooth.trainer.models import text
from dreambooth.trainer.models.checkpointing import checkpoint_units, units_of, wanted
from dreambooth.trainer.models.convert import LoadedModel
from dreambooth.trainer.objectives import Objective, scaled_linear_alphas_cumprod, zero_terminal_snr
from dreambooth.trainer.optim.ema import EMA, OptimizersAverage
from dreambooth.trainer.optim.optimizer_table import kind_of
from dreambooth.trainer.optim.optimizers import GradScaler, ParameterGroup, Stepper, averages, build_optimizer
from dreambooth.trainer.optim.rounding import StochasticRounding
from dreambooth.trainer.optim.schedules import Schedule
from dreambooth.trainer.saving.keeper import TrainedWeights
from dreambooth.trainer.stepdown import Rung
from dreambooth.trainer.trackers import trackers_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dreambooth.trainer.planning.plan import Plan


def make_accelerator(plan: Plan, folder: Path) -> Accelerator:
    """accelerate's part: device, precision, processes, trackers (which write into `folder`)."""
    from accelerate import Accelerator

    complete_torch()
    trackers = trackers_of(plan.settings)
    accelerator = Accelerator(
        mixed_precision=plan.machine.mixed_precision,
        cpu=plan.machine.device.type == "cpu",
        log_with=trackers or None,
        project_dir=str(folder),
    )
    if trackers:
        _start_trackers(plan, accelerator)
    return accelerator


def complete_torch() -> None:
    """Gives torch.cpu what accelerate calls for each of several processes without a card: older torches have no
    `set_device` there, and in the others it does nothing."""
    if not hasattr(torch.cpu, "set_device"):
        torch.cpu.set_device = lambda device: None


def _start_trackers(plan: Plan, accelerator: Accelerator) -> None:
    """TensorBoard writes into the run's folder `dreambooth`, W&B has all runs in the project of that name."""
    accelerator.init_trackers("dreambooth", init_kwargs={"wandb": {"name": plan.outputs.name}})
    settings = to_mapping(plan.settings)
    plain = {key: value for key, value in settings.items() if isinstance(value, (int, float, str))}
    for tracker in accelerator.trackers:
        if tracker.name != "tensorboard":  # it would show a second run that has settings and no losses
            tracker.store_init_configuration(plain)


def set_up_arithmetic(plan: Plan) -> None:
    """Has the card's libraries compute as fast as the plan's precision lets them, and use only kernels that repeat their
    bits where the settings ask for it."""
    machine = plan.machine
    arithmetic.set_tensor_floats(arithmetic.tensor_floats(machine.device, machine.compute_dtype))
    if not plan.settings.training.deterministic:
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True)


def layout(plan: Plan) -> torch.memory_format:
    """How the weights lie in memory while they are trained.

    An optimizer's state lies as its tensor does, also in a saved state, with which a run may go on on another device.
    AdamW's is put in that one's order then (`lay_alike`); 8-bit states are blocks of memory, which would belong to other
    weights afterwards.
    """
    can = kind_of(plan.settings.training.optimizer).name == "adamw" and arithmetic.steps_any_order()
    if plan.adapter is None and not can:
        return torch.preserve_format
    return arithmetic.memory_format(plan.machine.device, plan.machine.compute_dtype)


def rest(plan: Plan, model: LoadedModel) -> None:
    """Takes off the card what the steps do not need: the VAE once latents are kept, text encoders once their
    output is."""
    if plan.settings.images.cache_latents:
        model.components["vae"].to("cpu")
    if not plan.trains_text and not plan.settings.captions.shuffle_tags:
        for encoder in text.encoders_of(model.components, model.identified.family):
            encoder.to("cpu")


def bring_unet(plan: Plan, model: LoadedModel) -> None:
    """Puts the UNet on the device once what it is trained on is encoded: never beside the encoders at work, nor wider
    than it is trained."""
    unet = model.components["unet"]
    if _narrow(plan) and "unet" in plan.trained:
        torch.nn.Module.to(unet, dtype=torch.bfloat16)  # diffusers' own warns
    unet.to(plan.machine.device, memory_format=layout(plan))  # type: ignore[call-overload]


def _narrow(plan: Plan) -> bool:
    """Whether what is trained whole is so in bfloat16."""
    return plan.adapter is None and plan.settings.training.weights_dtype == "bfloat16"


def rest_later(plan: Plan, model: LoadedModel) -> Callable[[], None]:
    """Takes text encoders off the card that were trained and have stopped, once their output is kept.

    They stay where an average of their weights is kept beside them, and where several processes train: both want all
    that is trained on one device.
    """
    training = plan.settings.training
    stay = training.use_ema or kind_of(training.optimizer).averages or plan.processes > 1

    def rest_encoders() -> None:
        if not stay:
            for encoder in text.encoders_of(model.components, model.identified.family):
                encoder.to("cpu")

    return rest_encoders


def trained_weights(plan: Plan, model: LoadedModel) -> TrainedWeights:
    """Makes what is trained want gradients, as the settings have it, and averages if they are asked for."""
    training = plan.settings.training
    attached = None
    if plan.adapter is not None:
        attached = attach(model.components, plan.adapter, training.seed)
    else:
        _want_gradients(plan, model)
    for name in plan.trained:
        model.components[name].train()
    checkpoint(plan, model, training.gradient_checkpointing)
    if plan.machine.attention == "xformers":
        model.components["unet"].enable_xformers_memory_efficient_attention()  # type: ignore[operator]
    weights = TrainedWeights(model, tuple(plan.trained), attached=attached)
    if training.use_ema:
        weights.ema = EMA([parameter for *_, parameter in weights.parameters()], training.ema_decay)
    return weights


def checkpoint(plan: Plan, model: LoadedModel, setting: str) -> None:
    """Has as many of the UNet's blocks be computed twice as `gradient_checkpointing` says, and trained text encoders if it
    says any."""
    count = wanted(setting, units_of(model))
    checkpoint_units(model.components["unet"], count)
    if plan.trains_text:
        for encoder in text.encoders_of(model.components, model.identified.family):
            switch = "gradient_checkpointing_enable" if count else "gradient_checkpointing_disable"
            getattr(encoder, switch)()


def step_down(plan: Plan, model: LoadedModel, engine: TrainingEngine, rung: Rung) -> None:
    """Has the steps from here on be made with what the run came to when memory ran out."""
    if "gradient_checkpointing" in rung:
        checkpoint(plan, model, rung["gradient_checkpointing"])
    if "forward_batch_size" in rung:
        engine.forward_batch = rung["forward_batch_size"]


def _want_gradients(plan: Plan, model: LoadedModel) -> None:
    family = model.identified.family
    for name in plan.trained:
        if _narrow(plan):
            torch.nn.Module.to(model.components[name], dtype=torch.bfloat16)  # diffusers' own warns
        model.components[name].requires_grad_(True)
    if plan.trains_text:
        encoders = text.encoders_of(model.components, family)
        for unused in text.unused_modules(encoders, family, plan.settings.model.clip_skip):
            unused.requires_grad_(False)


def teacher(plan: Plan, weights: TrainedWeights, denoiser: Denoiser) -> Teacher | None:
    """What the class half is to look like where the prior is the base's own prediction, None elsewhere."""
    attached = weights.attached
    if attached is None or not (plan.prior and from_base(plan.settings)):
        return None

    @torch.no_grad()
    def predict(noisy: torch.Tensor, half: Half) -> torch.Tensor:
        with attached.off():
            prediction: torch.Tensor = denoiser(noisy, half.timesteps, half.condition, half.sizes)
        return prediction

    return predict


def before_step(plan: Plan, process: int) -> Callable[[int], None]:
    """What is done before each step: dropout's draws depend on seed, step and process alone, so that they are the
    same in a resumed run."""
    if plan.adapter is None or not plan.adapter.dropout:
        return lambda step: None
    seed = plan.settings.training.seed

    def reseed(step: int) -> None:
        torch.manual_seed(words(seed, "dropout", step, process)[0] % 2**63)

    return reseed


def stepper(plan: Plan, weights: TrainedWeights, scaler: GradScaler | None) -> Stepper:
    """The optimizer over all that is trained, a group for each component with a rate of its own."""
    training = plan.settings.training
    text_rate = training.text_encoder_learning_rate or training.learning_rate
    trained = weights.parameters()
    groups = [
        ParameterGroup(
            name,
            [parameter for component, _, parameter in trained if component == name],
            training.learning_rate if name == "unet" else text_rate,
        )
        for name in weights.components
    ]
    optimizer = build_optimizer(training, groups, plan.machine.device)
    if averages(optimizer):
        weights.ema = OptimizersAverage([parameter for *_, parameter in trained], optimizer)
    rounding = None
    if training.weights_dtype == "bfloat16":
        rounding = StochasticRounding(training.seed, plan.machine.device)
    return Stepper(
        optimizer,
        training.max_grad_norm,
        scaler,
        fused_backward=training.fused_backward == "yes",
        rounding=rounding,
    )


def objective(plan: Plan, model: LoadedModel) -> Objective:
    """The loss of this model's prediction type and noise schedule."""
    alphas = scaled_linear_alphas_cumprod()
    if model.identified.zero_terminal_snr:
        alphas = zero_terminal_snr(alphas)
    made = Objective(model.identified.prediction_type, alphas, snr_gamma=plan.settings.training.snr_gamma)
    return made.to(plan.machine.device)


def schedule(plan: Plan) -> Schedule:
    """The learning rate's shape."""
    training = plan.settings.training
    return Schedule(
        training.lr_scheduler, plan.steps, training.lr_warmup_steps, training.lr_num_cycles, training.lr_power
    )


def cadence(plan: Plan) -> Cadence:
    """How often what happens."""
    saving = plan.settings.saving
    return Cadence(
        steps=plan.steps,
        save=saving.checkpointing_steps,
        export=plan.settings.result.export_steps,
        sample=saving.validation_steps if saving.num_validation_images else 0,
        sample_first=saving.num_validation_images > 0,
    )
