"""Diffusers' train_dreambooth.py with the draws of one of our runs: then both must learn the same, seed by seed.

    python benchmarks/same_draws.py CONFIG PEER [PEER's arguments]

CONFIG is our run's; PEER, as it is, gets our order of photos and class images, our noise, timesteps and draws from the
VAE's posterior in place of torch's. How the images are made small stays its own. quality.py --same-draws calls this.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from dreambooth.shared.config import load_settings  # noqa: E402
from dreambooth.trainer.data.dataset import Sample, all_samples, timestep_of  # noqa: E402
from dreambooth.trainer.noise import seeded_normal  # noqa: E402
from dreambooth.trainer.objectives import TIMESTEPS  # noqa: E402
from dreambooth.trainer.planning.plan import data_plan, make_plan  # noqa: E402


class Draws:
    """Our samples, one photo and one class image a step; `now` are those of the step that is being made."""

    def __init__(self, config: Path, steps: int) -> None:
        settings = load_settings(config, [f"output_name={config.stem}-draws"])  # its own name is taken
        plan = make_plan(settings)
        self._data = data_plan(plan, plan.survey)
        samples = list(all_samples(self._data, settings.training.seed, steps))
        self.steps = list(zip(samples[::2], samples[1::2], strict=True))
        self._step = -1

    @property
    def now(self) -> tuple[Sample, Sample]:
        return self.steps[self._step]

    def next(self) -> None:
        self._step += 1

    def name(self, sample: Sample) -> str:
        return self._data.items[sample.item].image.path.name

    def noise(self, like: torch.Tensor, **_: object) -> torch.Tensor:
        return seeded_normal([sample.noise_seed for sample in self.now], like.shape[1:])

    def timesteps(self, *_: object, **__: object) -> torch.Tensor:
        return torch.tensor([timestep_of(sample, TIMESTEPS) for sample in self.now])

    def latents(self, posterior: Any, generator: object = None) -> torch.Tensor:
        """What the VAE's posterior is asked for first in each step."""
        self.next()
        seeds = [sample.latent_seed for sample in self.now]
        drawn: torch.Tensor = posterior.mean + posterior.std * seeded_normal(seeds, posterior.mean.shape[1:])
        return drawn


def order_of(draws: Draws, photos: Sequence[str], class_images: Sequence[str]) -> list[int]:
    """Indices for which the peer's dataset, which counts both folders round, gives each step's two images."""
    both = {
        (photos[index % len(photos)], class_images[index % len(class_images)]): index
        for index in range(len(photos) * len(class_images))
    }
    return [both[draws.name(photo), draws.name(class_image)] for photo, class_image in draws.steps]


def in_order(make: Callable[..., None], order: Sequence[int]) -> Callable[..., None]:
    """A DataLoader's `__init__` that takes this order in place of a shuffled one."""

    def init(self: object, dataset: object, *rest: Any, shuffle: bool = False, **options: Any) -> None:
        make(self, dataset, *rest, **options, **({"sampler": order} if shuffle else {}))

    return init


def load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("peer_script", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    config, script, arguments = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    peer = load(script)
    told = peer.parse_args(arguments)
    assert told.train_batch_size == 1 and told.with_prior_preservation
    draws = Draws(config, told.max_train_steps)
    folders = (Path(told.instance_data_dir), Path(told.class_data_dir))
    photos, class_images = ([path.name for path in folder.iterdir()] for folder in folders)
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    loader: Any = torch.utils.data.DataLoader
    loader.__init__ = in_order(loader.__init__, order_of(draws, photos, class_images))
    posterior: Any = DiagonalGaussianDistribution
    posterior.sample = lambda self, generator=None: draws.latents(self, generator)
    library: Any = torch
    library.randn_like, library.randint = draws.noise, draws.timesteps
    peer.main(told)


if __name__ == "__main__":
    main()
