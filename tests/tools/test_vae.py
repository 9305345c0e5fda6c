from __future__ import annotations

import math

import pytest
import torch

from tools.base import models, vae


def test_the_learning_rate_warms_up_and_ends_at_nothing() -> None:
    factors = [vae.cosine(step, 1000, warmup=10) for step in range(1000)]
    assert factors[0] == pytest.approx(0.1, rel=1e-3)
    assert factors[500] == pytest.approx(0.5)
    assert factors[-1] < 1e-5


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return models.build_vae().eval()


def test_folding_the_scale_gives_latents_sd1s_scale_and_leaves_the_pictures(autoencoder) -> None:
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        posterior = autoencoder.encode(images).latent_dist
        before, width = (
            autoencoder.decode(posterior.mean).sample,
            posterior.std / posterior.mean.std(dim=(0, 2, 3), keepdim=True),
        )
        vae.fold_scale(autoencoder, images)
        folded = autoencoder.encode(images).latent_dist
        after = autoencoder.decode(folded.mean).sample
    scaled = folded.mean * models.SCALING_FACTOR
    assert torch.allclose(scaled.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3)
    assert torch.allclose(scaled.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(after, before, atol=1e-4)
    # The posterior's own spread moves with the means.
    assert torch.allclose(folded.std * models.SCALING_FACTOR, width, rtol=1e-3)


def test_psnr_is_that_of_the_mean_squared_error(autoencoder) -> None:
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        drawn = autoencoder.decode(autoencoder.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    expected = 20 * math.log10(2.0) - 10 * math.log10(((drawn - images) ** 2).mean().item())
    assert vae.psnr(autoencoder, images) == pytest.approx(expected, abs=1e-4)
