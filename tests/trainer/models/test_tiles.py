"""The VAE in tiles: what it takes is known before, it is chosen by the settings, and its results are kept apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from held import Held
from tiny import config, dreambooth
from watching import events, run_in

from dreambooth.shared.config import load_settings
from dreambooth.trainer.data.cache import vae_encoder
from dreambooth.trainer.families.topology import VAETopology, vae_config
from dreambooth.trainer.memory.choice import Scale, choose, phases_of
from dreambooth.trainer.memory.passes import vae_pass
from dreambooth.trainer.memory.room import Room
from dreambooth.trainer.models.convert import load_model
from dreambooth.trainer.models.loading import BUILDERS
from dreambooth.trainer.models.tiles import TILE, tiles_id, use_tiles
from dreambooth.trainer.planning.plan import make_plan
from dreambooth.trainer.sampling.sample import decode

EVEN = vae_config(VAETopology(widths=(32,) * 4, layers=2, latent_channels=4, in_channels=3), 0.18215)


def small_vae(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return BUILDERS["vae"](EVEN).eval().requires_grad_(False)


@pytest.mark.parametrize("decoding", [False, True], ids=["encoding", "decoding"])
def test_a_picture_in_tiles_takes_what_a_tile_takes(decoding) -> None:
    base = load_model(tiny.base(), components=())

    def peak(size: tuple[int, int], tiled: bool) -> int:
        return vae_pass(base, torch.float32, size, decode=decoding, tiled=tiled)

    tile, whole, tiled = peak((TILE, TILE), False), peak((1024, 1024), False), peak((1024, 1024), True)
    assert whole > 3.5 * tile
    assert tile <= tiled < 1.6 * tile, "and the results of all of them"
    assert peak((TILE, TILE), True) == tile


def test_tiles_are_another_result_under_another_key_and_small_pictures_the_same() -> None:
    vae = small_vae()
    generator = torch.Generator().manual_seed(1)
    large, small = (torch.rand(3, 64, side, generator=generator) * 2 - 1 for side in (TILE + 64, TILE))
    use_tiles(vae, False)
    plain = vae_encoder(vae, 1.0)
    whole = plain.encode(large), plain.encode(small)
    use_tiles(vae, True)
    tiled = vae_encoder(vae, 1.0)
    assert plain.id != tiled.id and tiled.id.endswith("tiles of 512")
    found = tiled.encode(large)
    assert found.shape == whole[0].shape and not torch.equal(found, whole[0])
    assert (found - whole[0]).abs().mean() < 0.3 * whole[0].abs().mean()
    assert torch.equal(tiled.encode(small), whole[1])
    use_tiles(vae, False)
    assert torch.equal(vae_encoder(vae, 1.0).encode(large), whole[0]) and tiles_id(vae) == ""


def test_one_picture_after_the_other_takes_the_memory_of_one_and_gives_the_same_bits() -> None:
    vae = small_vae()
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    peaks = []
    for rows in (latents[:1], latents):
        with Held() as held, torch.no_grad():
            pictures = decode(vae, rows, 1.0)
        peaks.append(held.peak)
    assert peaks[1] < 1.3 * peaks[0]
    with torch.no_grad():
        assert pictures[0].tobytes() == decode(vae, latents[:1], 1.0)[0].tobytes()


@pytest.mark.parametrize(("side", "comes_to"), [(768, ["no", "yes"]), (TILE, ["no", "no"])])
def test_auto_takes_tiles_where_the_whole_does_not_fit_and_only_for_large_pictures(
    side, comes_to, tmp_path
) -> None:
    """Everything else is fixed, and encoding alone is looked at."""
    fixed = {
        "resolution": side, "num_class_images": 0, "prior_loss_weight": 0, "optimizer": "adamw", "vae_tiling": "no",
        "gradient_checkpointing": "no", "fused_backward": "no", "weights_dtype": "float32", "forward_batch_size": 1,
    }  # fmt: skip
    plain = make_plan(load_settings(config(tmp_path, **fixed)))
    asked = replace(plain.settings, images=replace(plain.settings.images, vae_tiling="auto"))

    def caching(made, usable=2**60) -> list:
        return [phase for phase in phases_of(made, 2**60) if phase.name == "caching"]

    (whole,) = caching(plain)
    scale = Scale(phases=caching, least=lambda made: 0)
    found = []
    for usable in (whole.bytes + 2**20, whole.bytes - 2**20):
        room = Room("this computer's memory", "cpu", total=2**40, free=int(usable / 0.9) + 1)
        chosen = choose(plain, asked, room, lambda name: True, scale)
        found.append(chosen.settings.images.vae_tiling)
        assert chosen.fits or side == TILE
    assert found == comes_to


def test_a_run_in_tiles_is_kept_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("dreambooth.trainer.models.tiles.TILE", 32)
    assert dreambooth("train", config(tmp_path, num_validation_images=1, vae_tiling="yes")) == 0
    run = run_in(tmp_path)
    assert load_settings(run.config).images.vae_tiling == "yes"
    assert not events(run, "warning")
