"""The VAE in tiles: pictures that are larger than a card's free memory allows are encoded and decoded in parts.

diffusers cuts a picture into tiles of 512 pixels that overlap by a quarter, and blends them. Its norms then see a tile in
the place of the picture, so that the result is another one, a little. That is why it depends on the settings alone,
which a run keeps, and not on what memory happens to be free later; what is cached in tiles is kept apart.

Pictures go through the VAE one at a time anyhow, which changes no bit (cache.py, sample.py).
"""

from __future__ import annotations

from typing import Any

TILE = 512  # pixels; what SD1's VAE was trained on
OVERLAP = 0.25
_DOWNSCALE = 8


def use_tiles(vae: Any, on: bool) -> None:
    """Has a VAE work in tiles, or in one piece."""
    if on:
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // _DOWNSCALE
        vae.tile_overlap_factor = OVERLAP
    else:
        vae.disable_tiling()


def tiles_id(vae: Any) -> str:
    """What the results of a VAE in tiles depend on beside its weights, "" for one that works in one piece."""
    return f" in tiles of {vae.tile_sample_min_size}" if getattr(vae, "use_tiling", False) else ""
