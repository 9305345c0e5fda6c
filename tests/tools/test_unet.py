from __future__ import annotations

import pytest
import torch

from tools.base import models, photos, unet


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.UNET, "block_out_channels", [32, 32, 32, 32])
    monkeypatch.setitem(models.CLIP, "num_hidden_layers", 1)
    monkeypatch.setattr(unet, "BATCH", 4)


def losses(steps: int, seed: int) -> tuple[list[float], unet.Trained]:
    seen: list[float] = []
    latents = torch.randn(len(photos.nouns()), 2, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    average = unet.train(latents, steps, seed, lambda step, loss, trained: seen.append(loss))
    return seen, average


def test_training_repeats_with_its_seed_and_the_average_follows_the_weights(narrow: None) -> None:
    (first, one), (second, other) = losses(2, seed=1), losses(2, seed=1)
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    start = unet.build(1).parameters()
    moved = [not torch.equal(a, b) for a, b in zip(start, one.parameters(), strict=True)]
    assert sum(moved) / len(moved) > 0.9
