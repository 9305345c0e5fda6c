"""What a diffusion model is asked to predict, and how wrong it is.

Notation of DDPM (arXiv 2006.11239): x_t = √ᾱ_t·x_0 + √(1−ᾱ_t)·ε, SNR(t) = ᾱ_t / (1−ᾱ_t).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

TIMESTEPS = 1000


def scaled_linear_alphas_cumprod(
    start: float = 0.00085, end: float = 0.012, steps: int = TIMESTEPS
) -> torch.Tensor:
    """ᾱ of Stable Diffusion's schedule: betas linear in their square roots. Shape (steps,), float32."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def zero_terminal_snr(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """ᾱ rescaled so that the last step is pure noise (arXiv 2305.08891, algorithm 1)."""
    root = alphas_cumprod.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * first / (first - last)) ** 2


def _epsilon(latents: torch.Tensor, noise: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return noise


def _velocity(latents: torch.Tensor, noise: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """v = √ᾱ_t·ε − √(1−ᾱ_t)·x_0 (arXiv 2202.00512, section 4 / appendix D)."""
    return a * noise - b * latents


def _epsilon_weight(snr: torch.Tensor, gamma: float) -> torch.Tensor:
    return snr.clamp(max=gamma) / snr


def _velocity_weight(snr: torch.Tensor, gamma: float) -> torch.Tensor:
    """min(SNR, γ)/(SNR + 1): the x_0 weight in terms of v. It is 0 at a zero terminal SNR."""
    return snr.clamp(max=gamma) / (snr + 1.0)


TARGETS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "epsilon": _epsilon,
    "v_prediction": _velocity,
}
# min-SNR-γ (arXiv 2303.09556, section 3.4), for the loss in the space of each prediction
MIN_SNR_WEIGHTS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "epsilon": _epsilon_weight,
    "v_prediction": _velocity_weight,
}


@dataclass(frozen=True)
class Losses:
    """Scalars on the device: `total` = instance + weight · prior; `prior` is 0 without prior preservation."""

    total: torch.Tensor
    instance: torch.Tensor
    prior: torch.Tensor


class Objective:
    """Noises latents and measures predictions, for one prediction type and schedule, on one device."""

    def __init__(self, prediction_type: str, alphas_cumprod: torch.Tensor, *, snr_gamma: float = 0.0) -> None:
        alphas = alphas_cumprod.double()
        self._target = TARGETS[prediction_type]
        self._signal = alphas.sqrt().float()
        self._noise = (1.0 - alphas).sqrt().float()
        self._weights: torch.Tensor | None = None
        if snr_gamma > 0:
            # ᾱ = 0 would give 0/0 for epsilon; the least SNR that float32 holds weighs that step by 1
            snr = (alphas / (1.0 - alphas)).clamp(min=1e-12)
            self._weights = MIN_SNR_WEIGHTS[prediction_type](snr, snr_gamma).float()

    def _coefficients(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (-1, 1, 1, 1)
        return self._signal[timesteps].view(shape), self._noise[timesteps].view(shape)

    def to(self, device: torch.device) -> Objective:
        """Moves the schedule's tables; returns itself."""
        self._signal, self._noise = self._signal.to(device), self._noise.to(device)
        self._weights = None if self._weights is None else self._weights.to(device)
        return self

    def noised(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_t, target) for latents and noise of shape (B, C, h, w) and int64 timesteps of shape (B,)."""
        a, b = self._coefficients(timesteps)
        return a * latents + b * noise, self._target(latents, noise, a, b)

    def per_sample(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean squared error of each sample, in float32: shape (B,)."""
        return (prediction.float() - target.float()).pow(2).flatten(1).mean(1)

    def instance_loss(self, errors: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Mean of the samples' errors (B,), weighted by min-SNR when it is on."""
        return (errors if self._weights is None else errors * self._weights[timesteps]).mean()

    def combine(
        self,
        errors: torch.Tensor | None,
        timesteps: torch.Tensor | None,
        prior_errors: torch.Tensor | None,
        prior_weight: float,
        shares: tuple[float, float] = (1.0, 1.0),
    ) -> Losses:
        """DreamBooth's loss (arXiv 2208.12242, eq. 2): instance + λ · prior.

        As in diffusers' train_dreambooth.py the prior half is a plain mean, without min-SNR's weights. Of a part of a
        micro-batch, `shares` are those of the instance and the class half that are in it, and None is a half that is
        not: the parts' losses add up to the whole's.
        """
        if errors is None or timesteps is None:
            assert prior_errors is not None, "a part has samples"
            prior = _shared(prior_errors.mean(), shares[1])
            return Losses(prior_weight * prior, torch.zeros_like(prior.detach()), prior.detach())
        instance = _shared(self.instance_loss(errors, timesteps), shares[0])
        if prior_errors is None:
            return Losses(instance, instance.detach(), torch.zeros_like(instance.detach()))
        prior = _shared(prior_errors.mean(), shares[1])
        return Losses(instance + prior_weight * prior, instance.detach(), prior.detach())


def _shared(loss: torch.Tensor, share: float) -> torch.Tensor:
    return loss if share == 1 else loss * share
