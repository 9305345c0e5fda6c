from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dreambooth.trainer.models import place_base
from tools.base import photos


def test_the_note_on_the_bases_terms_names_every_photo_with_its_own() -> None:
    note = (Path(place_base.BASE).parent / "LICENSE.md").read_text(encoding="utf-8")
    for photo in photos.PHOTOS:
        assert f"| `{photo.file}` | {photo.noun or '(VAE only)'} | {photo.licence} |" in note


def test_crops_repeat_with_their_seed_and_differ_from_each_other() -> None:
    pytest.importorskip("skimage")
    cat = photos.PHOTOS[0]
    first, second = (photos.crops(cat, 3, np.random.default_rng(5)) for _ in range(2))
    assert first.shape == (3, 3, 64, 64)
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_colours_change_and_stay_in_range() -> None:
    generator = torch.Generator().manual_seed(0)
    grey = torch.zeros(64, 3, 4, 4)
    shifted = photos.shift_colours(grey, generator)
    assert shifted.min() >= -1.0 and shifted.max() <= 1.0
    spread = (shifted.amax(dim=1) - shifted.amin(dim=1)).amax(dim=(1, 2))
    assert (spread > 0.1).sum() > 16  # tinted
    assert (spread < 1e-2).sum() > 8  # and not: about four in ten stay grey


def test_a_different_light_changes_no_colour_by_much() -> None:
    shifted = photos.shift_light(torch.zeros(32, 3, 4, 4), torch.Generator().manual_seed(0))
    assert shifted.abs().max() <= 1.08 * 1.04 - 1.0 + 0.04
