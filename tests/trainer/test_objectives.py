import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, rescale_zero_terminal_snr
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from dreambooth.trainer.objectives import (
    MIN_SNR_WEIGHTS,
    Objective,
    scaled_linear_alphas_cumprod,
    zero_terminal_snr,
)

ALPHAS = scaled_linear_alphas_cumprod()
TERMINAL = zero_terminal_snr(ALPHAS)
PREDICTIONS = ("epsilon", "v_prediction")


def stable_diffusion() -> dict[str, object]:
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    }


def batch(count=5, seed=0):
    torch.manual_seed(seed)
    latents, noise, prediction = torch.randn(3, count, 4, 6, 8)
    return latents, noise, prediction, torch.tensor([0, 1, 420, 998, 999])[:count]


def formula_loss(latents, noise, prediction, timesteps, alphas, prediction_type, gamma):
    """One sample after the other, one number after the other, in Python's double precision."""
    losses = []
    for row, timestep in enumerate(timesteps.tolist()):
        alpha = float(alphas[timestep])
        total = 0.0
        cells = zip(latents[row].flatten().tolist(), noise[row].flatten().tolist(), strict=True)
        for (x, eps), guess in zip(cells, prediction[row].flatten().tolist(), strict=True):
            target = (
                eps if prediction_type == "epsilon" else math.sqrt(alpha) * eps - math.sqrt(1 - alpha) * x
            )
            total += (guess - target) ** 2
        weight = 1.0
        if gamma:
            snr = alpha / (1 - alpha)
            weight = min(snr, gamma) / (snr + (prediction_type == "v_prediction")) if snr else 1.0
            if not snr and prediction_type == "v_prediction":
                weight = 0.0
        losses.append(weight * total / latents[row].numel())
    return sum(losses) / len(losses)


def test_the_noise_schedule_is_bit_for_bit_the_one_that_diffusers_trains_with():
    assert torch.equal(ALPHAS, DDPMScheduler(**stable_diffusion()).alphas_cumprod)


def test_a_zero_terminal_snr_ends_in_pure_noise_and_is_diffusers_own():
    theirs = DDIMScheduler(**stable_diffusion(), rescale_betas_zero_snr=True).alphas_cumprod
    assert TERMINAL[-1] == 0 and TERMINAL[0] == pytest.approx(float(ALPHAS[0]))
    torch.testing.assert_close(TERMINAL, theirs, rtol=1e-3, atol=1e-6)  # theirs goes through betas and back
    exact = rescale_zero_terminal_snr(DDPMScheduler(**stable_diffusion()).betas.double())
    torch.testing.assert_close(
        zero_terminal_snr(torch.cumprod(1 - DDPMScheduler(**stable_diffusion()).betas.double(), 0)),
        torch.cumprod(1 - exact, 0), rtol=1e-9, atol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_noised_latents_and_targets_are_those_of_diffusers(prediction_type):
    latents, noise, _, timesteps = batch()
    scheduler = DDPMScheduler(**stable_diffusion())
    noisy, target = Objective(prediction_type, ALPHAS).noised(latents, noise, timesteps)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timesteps))
    theirs = noise if prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(target, theirs)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("alphas", [ALPHAS, TERMINAL], ids=["usual", "zero terminal SNR"])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_loss_and_its_gradient_are_those_of_the_papers_formulas(prediction_type, alphas, gamma):
    latents, noise, prediction, timesteps = batch()
    prediction.requires_grad_(True)
    objective = Objective(prediction_type, alphas, snr_gamma=gamma)
    _, target = objective.noised(latents, noise, timesteps)
    losses = objective.combine(objective.per_sample(prediction, target), timesteps, None, 0.0)
    expected = formula_loss(latents, noise, prediction.detach(), timesteps, alphas, prediction_type, gamma)
    assert float(losses.total.detach()) == pytest.approx(expected, rel=2e-6)
    assert float(losses.prior) == 0
    (gradient,) = torch.autograd.grad(losses.total, prediction)
    for row, step in (
        (0, 1e-3),
        (2, 1e-3),
        (3, 1e-3),
    ):  # the loss is a parabola: differences are exact but for rounding
        values = []
        for sign in (1, -1):
            moved = prediction.detach().double().clone()
            moved[row, 1, 2, 3] += sign * step
            values.append(formula_loss(latents, noise, moved, timesteps, alphas, prediction_type, gamma))
        slope = (values[0] - values[1]) / (2 * step)
        assert float(gradient[row, 1, 2, 3]) == pytest.approx(slope, rel=1e-4, abs=1e-10)


def test_min_snr_weighs_v_so_that_the_latents_are_weighed_alike():
    """A v-prediction's error is that of x_0 times √(SNR + 1), epsilon's times √SNR (arXiv 2303.09556, section 3.4)."""
    snr = torch.logspace(-3, 3, 50, dtype=torch.float64)
    weights_of_x0 = {
        "epsilon": MIN_SNR_WEIGHTS["epsilon"](snr, 5.0) * snr,
        "v_prediction": MIN_SNR_WEIGHTS["v_prediction"](snr, 5.0) * (snr + 1),
    }
    for weights in weights_of_x0.values():
        torch.testing.assert_close(weights, snr.clamp(max=5.0))


def test_the_prior_half_is_a_plain_mean_times_its_weight_even_where_the_instance_half_is_weighted():
    errors, timesteps = torch.tensor([2.0, 4.0]), torch.tensor([10, 990])
    prior = torch.tensor([8.0, 2.0])
    objective = Objective("epsilon", ALPHAS, snr_gamma=5.0)
    losses = objective.combine(errors, timesteps, prior, 0.25)
    snr = float(ALPHAS[10] / (1 - ALPHAS[10]))
    assert snr > 5 > float(ALPHAS[990] / (1 - ALPHAS[990]))
    instance = (2.0 * 5 / snr + 4.0) / 2
    assert float(losses.instance) == pytest.approx(instance)
    assert float(losses.prior) == 5.0
    assert float(losses.total) == pytest.approx(instance + 0.25 * 5.0)


def test_only_the_total_holds_the_graph():
    errors = torch.ones(2, requires_grad=True)
    losses = Objective("epsilon", ALPHAS).combine(errors, torch.tensor([1, 2]), errors * 2, 1.0)
    assert losses.total.requires_grad
    assert not losses.instance.requires_grad and not losses.prior.requires_grad


def test_half_precision_predictions_are_measured_in_float32():
    target = torch.zeros(1, 4, 2, 2)
    prediction = torch.full((1, 4, 2, 2), 300.0, dtype=torch.float16)  # its square is more than float16 holds
    errors = Objective("epsilon", ALPHAS).per_sample(prediction, target)
    assert errors.dtype == torch.float32 and errors.tolist() == [90000.0]
