"""From planned samples to tensors on the device: latents, noise, timesteps and what is said of each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from dreambooth.trainer.data.cache import Latents
from dreambooth.trainer.data.dataset import DataPlan, Sample, samples_of_step, share, sizes_of, timestep_of
from dreambooth.trainer.data.text_cache import TextSource
from dreambooth.trainer.draws import words
from dreambooth.trainer.engine import Half, MicroBatch
from dreambooth.trainer.noise import seeded_normal, to_device
from dreambooth.trainer.objectives import TIMESTEPS


class StepBatches:
    """One process's micro-batches of every step; the samples themselves do not depend on how many there are.

    `tokens` serves while the text encoders are trained, `embeddings` otherwise; `sized` models are told sizes.
    """

    def __init__(
        self,
        plan: DataPlan,
        seed: int,
        latents: Latents,
        *,
        tokens: TextSource | None,
        embeddings: TextSource,
        micro_batches: int,
        offset_noise: float,
        device: torch.device,
        process: tuple[int, int] = (0, 1),
        sized: bool = False,
    ) -> None:
        self._plan = plan
        self._seed = seed
        self._latents = latents
        self._tokens = tokens
        self._embeddings = embeddings
        self._micro_batches = micro_batches
        self._offset_noise = offset_noise
        self._device = device
        self._process = process
        self._sized = sized

    def of_step(self, step: int, *, encoded: bool) -> Iterator[MicroBatch]:
        """The step's micro-batches; `encoded`: conditions are embeddings, else token ids."""
        texts = self._embeddings if encoded or self._tokens is None else self._tokens
        samples = samples_of_step(self._plan, self._seed, step)
        for part in share(samples, self._micro_batches, *self._process):
            prior = self._half(part.prior, texts) if part.prior else None
            yield MicroBatch(self._half(part.instance, texts), prior)

    def _half(self, samples: Sequence[Sample], texts: TextSource) -> Half:
        latents = self._latents.batch(samples)
        timesteps = torch.tensor([timestep_of(sample, TIMESTEPS) for sample in samples])
        return Half(
            latents=latents,
            noise=to_device(self._noise(samples, latents.shape[1:]), self._device),
            timesteps=to_device(timesteps, self._device),
            condition=texts.batch([sample.caption for sample in samples]),
            extra=self._latents.inpainting(samples) if self._plan.masks else None,
            sizes=self._sizes(samples) if self._sized else None,
        )

    def _sizes(self, samples: Sequence[Sample]) -> torch.Tensor:
        told = [sizes_of(self._plan, sample) for sample in samples]
        return to_device(torch.tensor(told, dtype=torch.float32), self._device)

    def _noise(self, samples: Sequence[Sample], shape: Sequence[int]) -> torch.Tensor:
        """Unit noise (B, C, h, w) on the CPU, shifted per image and channel by `offset_noise`.

        The shift lets whole pictures become dark or bright (N. Guttenberg, "Diffusion With Offset Noise", 2023).
        """
        noise = seeded_normal([sample.noise_seed for sample in samples], shape)
        if self._offset_noise:
            seeds = [words(sample.noise_seed, "offset")[0] for sample in samples]
            noise += self._offset_noise * seeded_normal(seeds, (shape[0], 1, 1))
        return noise
