"""A glance at photos: what is blurred and what is nearly the same, told on pictures that are made so."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageFilter

from dreambooth.trainer.data import looks
from dreambooth.trainer.data.images import probe
from dreambooth.trainer.data.looks import alike, look_at


def scene(seed: int, side: int = 512) -> Image.Image:
    """Soft-edged rectangles of all sizes: a picture with structure at every scale, as photos have it."""
    random = numpy.random.default_rng(seed)
    pixels = numpy.zeros((side, side, 3))
    for _ in range(60):
        top, left = random.integers(0, side, 2)
        height, width = random.integers(10, side // 2, 2)
        pixels[top : top + height, left : left + width] = random.integers(0, 256, 3)
    return Image.fromarray(pixels.astype(numpy.uint8)).filter(ImageFilter.GaussianBlur(0.7))


def saved(folder: Path, name: str, picture: Image.Image, **options):
    picture.save(folder / name, **options)
    return probe(folder / name)


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg"])
def test_a_blurred_photo_is_told_from_the_sharp_one(name, tmp_path) -> None:
    sharp = saved(tmp_path, f"sharp {name}", scene(1))
    blurred = saved(tmp_path, f"blurred {name}", scene(1).filter(ImageFilter.GaussianBlur(6)))
    seen = look_at([sharp, blurred])
    assert not seen[sharp.content_id].is_blurred and seen[blurred.content_id].is_blurred


def test_a_sharp_subject_before_a_soft_background_is_not_blurred(tmp_path) -> None:
    picture = scene(1).filter(ImageFilter.GaussianBlur(6))
    picture.paste(scene(1).crop((150, 150, 350, 350)), (150, 150))
    image = saved(tmp_path, "portrait.png", picture)
    assert not look_at([image])[image.content_id].is_blurred


def test_nearly_equal_photos_are_grouped_and_others_are_not(tmp_path) -> None:
    first = saved(tmp_path, "a.png", scene(1))
    brighter = saved(tmp_path, "b.jpg", scene(1).point(lambda value: value * 0.9 + 10), quality=60)
    smaller = saved(tmp_path, "c.png", scene(1).resize((300, 300)))
    other, another = saved(tmp_path, "d.png", scene(2)), saved(tmp_path, "e.png", scene(3))
    images = [first, other, brighter, another, smaller]
    assert alike(images, look_at(images)) == [[first, brighter, smaller]]


def test_the_same_file_twice_is_alike_also_where_nobody_looked(tmp_path) -> None:
    one, two = saved(tmp_path, "a.png", scene(1)), saved(tmp_path, "b.png", scene(1))
    other = saved(tmp_path, "c.png", scene(2))
    assert alike([one, other, two], {}) == [[one, two]]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_every_kind_of_picture_can_be_looked_at(mode, tmp_path) -> None:
    if mode == "I;16":
        picture = Image.fromarray(numpy.asarray(scene(1).convert("L")).astype(numpy.uint16) * 257)
    else:
        picture = scene(1).convert(mode)
    image = saved(tmp_path, "a.jpg" if mode == "CMYK" else "a.png", picture)
    assert not look_at([image])[image.content_id].is_blurred


def test_no_more_pixels_are_decoded_than_the_limit_allows(tmp_path, monkeypatch) -> None:
    images = [saved(tmp_path, f"{n}.png", scene(n, 100)) for n in range(4)]
    monkeypatch.setattr(looks, "MOST_PIXELS", 25_000)
    assert list(look_at(images)) == [image.content_id for image in images[:2]]


def test_an_image_that_is_gone_or_damaged_has_no_look(tmp_path) -> None:
    gone, damaged = saved(tmp_path, "a.png", scene(1)), saved(tmp_path, "b.png", scene(2))
    gone.path.unlink()
    damaged.path.write_bytes(damaged.path.read_bytes()[:1000])
    assert look_at([gone, damaged]) == {}


def test_a_picture_of_one_pixel_can_be_looked_at(tmp_path) -> None:
    image = saved(tmp_path, "dot.png", Image.new("RGB", (1, 1)))
    assert look_at([image])[image.content_id].sharpness == 0
