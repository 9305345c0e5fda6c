"""The single training step: batches in, gradients, new weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch

from dreambooth.shared.errors import RunFailed
from dreambooth.trainer.models import text
from dreambooth.trainer.models.embeddings import Embeddings, combined, unet_arguments
from dreambooth.trainer.objectives import Losses, Objective
from dreambooth.trainer.optim.ema import Average
from dreambooth.trainer.optim.optimizers import Stepper
from dreambooth.trainer.optim.schedules import Schedule
from dreambooth.trainer.parts import Part, alike, parts_of

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Half:
    """The instance or the class half of a micro-batch, on the device.

    latents and noise (B, 4, h, w); timesteps (B,) int64; condition: token ids (B, chunks, 77) while the text
    encoders are needed, else their output; extra: the inpainting model's further input channels (B, 5, h, w), or
    None; sizes: what SDXL is told of them (B, 6), or None; target: what is to be predicted (B, 4, h, w), None for what
    the objective makes of latents and noise.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    condition: Embeddings | torch.Tensor
    extra: torch.Tensor | None = None
    sizes: torch.Tensor | None = None
    target: torch.Tensor | None = None


# What the class half is to look like: a prediction (B, 4, h, w) for the UNet's input and that half
Teacher = Callable[[torch.Tensor, Half], torch.Tensor]


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once; `prior` is None without prior preservation."""

    instance: Half
    prior: Half | None = None


class Batches(Protocol):
    """Gives this process's micro-batches of a step; `encoded`: conditions are the text encoders' output."""

    def of_step(self, step: int, *, encoded: bool) -> Iterable[MicroBatch]: ...


class Denoiser(torch.nn.Module):
    """UNet and text encoders (none if their output is given) as one module, so that wrappers (DDP, autocast) see one
    forward."""

    def __init__(
        self,
        unet: torch.nn.Module,
        text_encoders: Sequence[torch.nn.Module],
        rules: text.TextRules,
        clip_skip: int,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoders = torch.nn.ModuleList(text_encoders)
        self._rules = rules
        self._clip_skip = clip_skip

    def forward(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        condition: Embeddings | torch.Tensor,
        sizes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The UNet's prediction (B, 4, h, w) for its input (B, 4 or 9, h, w)."""
        if isinstance(condition, torch.Tensor):
            condition = text.encode(
                list(self.text_encoders),
                self._rules,
                condition,
                clip_skip=self._clip_skip,
                unconditional=True,
            )
        told = unet_arguments(condition, sizes)
        prediction: torch.Tensor = self.unet(noisy, timesteps, **told, return_dict=False)[0]
        return prediction


@dataclass(frozen=True)
class TextEncoderSpan:
    """Whether the text encoders are trained, and the step from which they are left as they are."""

    trained: bool
    stop: int

    def active(self, step: int) -> bool:
        return self.trained and step < self.stop


# Models that several processes train together, for as long as this process lives, see `_shared_out`.
_together: list[torch.nn.Module] = []


def _shared_out(accelerator: Accelerator, denoiser: Denoiser) -> torch.nn.Module:
    """`denoiser` as all processes train it together. It is never taken apart: the end of gloo's group waits for its own
    threads while it holds Python's lock, which these were seen to want. `__main__` ends such a process without it."""
    model: torch.nn.Module = accelerator.prepare_model(denoiser)
    _together.append(model)
    return model


class TrainingEngine:
    """Makes training steps; everything that a step needs is handed in.

    `forward_batch`: so many images at most go through the model at once, 0 for all of a micro-batch. It may be changed
    between two steps: what follows are the same steps in other parts.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        stepper: Stepper,
        objective: Objective,
        batches: Batches,
        schedule: Schedule,
        *,
        accelerator: Accelerator,
        prior_weight: float,
        text_span: TextEncoderSpan,
        ema: Average | None = None,
        teacher: Teacher | None = None,
        before_step: Callable[[int], None] = lambda step: None,
        forward_batch: int = 0,
    ) -> None:
        self.forward_batch = forward_batch
        self.denoiser = denoiser
        self.stepper = stepper
        self.ema = ema
        self._objective = objective
        self._batches = batches
        self._schedule = schedule
        self._accelerator = accelerator
        self._prior_weight = prior_weight
        self._text_span = text_span
        self._teacher = teacher
        self._before_step = before_step
        self._parameters = [p for group in stepper.optimizer.param_groups for p in group["params"]]
        self._model: torch.nn.Module = denoiser
        if accelerator.num_processes > 1:
            self._model = _shared_out(accelerator, denoiser)
        self._text_left = not text_span.trained
        # the failure flag of the step before, on its way to the host without making it wait
        self._flag = torch.zeros((), pin_memory=stepper.failed.is_cuda)
        self._flag_event: torch.cuda.Event | None = None
        self._flagged = 0  # the step that the flag is of

    @property
    def rate(self) -> float:
        return self.stepper.rate

    def step(self, step: int) -> Losses | None:
        """Optimizer step `step` (0 is the first). None: an fp16 overflow, nothing changed.

        Raises RunFailed when the step before had a NaN or infinite loss or gradient (weights are unharmed).
        """
        self.stepper.begin(step)
        if not self._text_left and not self._text_span.active(step):
            self._leave_text_encoder()
        self.stepper.set_rates(lambda rate: self._schedule.factor(step, rate))
        self._before_step(step)
        # a teacher has text encoders of its own, which the embeddings of the trained ones say nothing of
        encoded = self._text_left and self._teacher is None
        micro_batches = list(self._batches.of_step(step, encoded=encoded))
        losses = [
            self._backward(micro, share=1 / len(micro_batches), last=number == len(micro_batches))
            for number, micro in enumerate(micro_batches, 1)
        ]
        mean = losses[0] if len(losses) == 1 else _mean(losses)
        if self._accelerator.num_processes > 1:
            mean = Losses(*self._accelerator.reduce(_stacked(mean), reduction="mean").unbind())
        self._check_flag()
        if not self.stepper.step(mean.total):
            return None
        self._flagged = step
        self._send_flag()
        if self.ema is not None:
            self.ema.update(self._parameters)
        return mean

    def _backward(self, micro: MicroBatch, *, share: float, last: bool) -> Losses:
        parts = [Part(micro.instance, micro.prior)]
        if self.forward_batch:
            parts = parts_of(micro, self.forward_batch)
        losses = [
            self._backward_part(part, share=share, last=last and number == len(parts))
            for number, part in enumerate(parts, 1)
        ]
        return losses[0] if len(losses) == 1 else _sum(losses)

    def _backward_part(self, part: Part, *, share: float, last: bool) -> Losses:
        several = self._accelerator.num_processes > 1
        waits = self._accelerator.no_sync(self._model) if several and not last else contextlib.nullcontext()
        with waits:
            with self._accelerator.autocast():
                losses = self._losses(part)
            self._accelerator.backward(losses.total * share)
        return Losses(losses.total.detach(), losses.instance, losses.prior)

    def _losses(self, part: Part) -> Losses:
        """What the part adds to its micro-batch's losses."""
        instance, prior = part.instance, part.prior
        if self._teacher is not None and prior is not None:
            instance = None if instance is None else self._with_target(instance)
            prior = self._taught(prior, self._teacher)
        own: torch.Tensor | None
        others: torch.Tensor | None
        if instance is not None and prior is not None and alike(instance, prior):
            errors = self._errors(_joined(instance, prior))
            own, others = errors[: len(instance.latents)], errors[len(instance.latents) :]
        else:
            own, others = (None if half is None else self._errors(half) for half in (instance, prior))
        timesteps = None if instance is None else instance.timesteps
        return self._objective.combine(own, timesteps, others, self._prior_weight, part.shares)

    def _errors(self, half: Half) -> torch.Tensor:
        noisy, target = self._noised(half)
        prediction = self._model(noisy, half.timesteps, half.condition, half.sizes)
        return self._objective.per_sample(prediction, target)

    def _noised(self, half: Half) -> tuple[torch.Tensor, torch.Tensor]:
        """The UNet's input and what it is to predict."""
        noisy, target = self._objective.noised(half.latents, half.noise, half.timesteps)
        if half.extra is not None:
            noisy = torch.cat([noisy, half.extra], dim=1)
        return noisy, target if half.target is None else half.target

    def _with_target(self, half: Half) -> Half:
        return replace(half, target=self._noised(half)[1])

    def _taught(self, half: Half, teacher: Teacher) -> Half:
        """The class half with the teacher's prediction of the same noisy latents as its target."""
        return replace(half, target=teacher(self._noised(half)[0], half).float())

    def _leave_text_encoder(self) -> None:
        """Stops training the text encoders: from here their output for a caption never changes."""
        for parameter in self.denoiser.text_encoders.parameters():
            parameter.requires_grad_(False)
        if self._accelerator.num_processes > 1:  # DDP would wait for gradients that never come
            self._model = _shared_out(self._accelerator, self.denoiser)
        self._text_left = True

    def _send_flag(self) -> None:
        self._flag.copy_(self.stepper.failed, non_blocking=True)
        if self.stepper.failed.is_cuda:
            self._flag_event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._flag_event.record()

    def _check_flag(self) -> None:
        if self._flag_event is not None:
            self._flag_event.synchronize()  # long past: a whole forward and backward were queued behind it
        if self._flag:
            raise NotFinite(self._flagged)

    def check_finite(self) -> None:
        """Raises RunFailed if the last step had a NaN or infinite loss or gradient."""
        if self.stepper.failed.item():
            raise NotFinite(self._flagged)


class NotFinite(RunFailed):
    """The loss or a gradient of `step` (0 is the first) was NaN or infinite, and no weight was touched by it."""

    def __init__(self, step: int) -> None:
        super().__init__("the loss became NaN or infinite; the weights were not touched by it")
        self.step = step


def _joined(one: Half, other: Half) -> Half:
    if isinstance(one.condition, Embeddings) and isinstance(other.condition, Embeddings):
        condition: Embeddings | torch.Tensor = combined([one.condition, other.condition])
    else:
        assert isinstance(one.condition, torch.Tensor) and isinstance(other.condition, torch.Tensor)
        condition = torch.cat([one.condition, other.condition])
    return Half(
        latents=torch.cat([one.latents, other.latents]),
        noise=torch.cat([one.noise, other.noise]),
        timesteps=torch.cat([one.timesteps, other.timesteps]),
        condition=condition,
        extra=_both(one.extra, other.extra),
        sizes=_both(one.sizes, other.sizes),
        target=_both(one.target, other.target),
    )


def _both(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    return None if one is None or other is None else torch.cat([one, other])


def _stacked(losses: Losses) -> torch.Tensor:
    return torch.stack([losses.total, losses.instance, losses.prior])


def _sum(losses: list[Losses]) -> Losses:
    return Losses(
        total=torch.stack([loss.total for loss in losses]).sum(),
        instance=torch.stack([loss.instance for loss in losses]).sum(),
        prior=torch.stack([loss.prior for loss in losses]).sum(),
    )


def _mean(losses: list[Losses]) -> Losses:
    count, whole = len(losses), _sum(losses)
    return Losses(whole.total / count, whole.instance / count, whole.prior / count)
