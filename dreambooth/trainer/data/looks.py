"""What can be seen of photos at a glance: whether they are blurred, and which ones are nearly the same.

Nothing is kept on the disk, since a plan writes nothing; so a glance must be cheap. Each photo is decoded small where
its format allows that, and there is a limit on the pixels that are decoded in all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy
from PIL import Image

from dreambooth.trainer.data.images import BROKEN, FORMATS, Probe, as_rgb, warnings_about_size_off

SIDE = 256  # of the picture that is looked at, in pixels: blur that is not seen here is not learned at 512 either
TILES = 4
# Measured on photos of scikit-image: sharp ones have 190 and more, with a blur of radius 4 at 512 pixels below 35
BLURRED_BELOW = 40.0
ALIKE_BITS = 5  # of 64
WHITE = (255, 255, 255)
MOST_PIXELS = 600_000_000
_JPEG_SHARE = 4  # a JPEG that is decoded small costs about a quarter
_THREADS = 4


@dataclass(frozen=True)
class Look:
    """A glance at a photo. `sharpness` is the variance of the Laplacian of its sharpest part, `pattern` 64 bits that
    nearly equal photos nearly share (whether each of 8 by 8 places is brighter than its right neighbour)."""

    sharpness: float
    pattern: int

    @property
    def is_blurred(self) -> bool:
        return self.sharpness < BLURRED_BELOW

    def is_like(self, other: Look) -> bool:
        return (self.pattern ^ other.pattern).bit_count() <= ALIKE_BITS


def look_at(images: Sequence[Probe]) -> Mapping[str, Look]:
    """Content id → a glance at it, for as many images as the limit allows, in their order.

    An image that cannot be decoded whole has none.
    """
    different = {image.content_id: image for image in images}
    wanted = list(_affordable(list(different.values())))
    with warnings_about_size_off(), ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        seen = list(pool.map(_look, wanted))
    return {image.content_id: look for image, look in zip(wanted, seen, strict=True) if look is not None}


def alike(images: Sequence[Probe], looks: Mapping[str, Look]) -> list[list[Probe]]:
    """Groups of two and more photos that are the same or nearly so; each is like the first of its group."""
    groups: list[list[Probe]] = []
    for image in images:
        for group in groups:
            if _same(group[0], image, looks):
                group.append(image)
                break
        else:
            groups.append([image])
    return [group for group in groups if len(group) > 1]


def _same(one: Probe, other: Probe, looks: Mapping[str, Look]) -> bool:
    if one.content_id == other.content_id:
        return True
    mine, theirs = looks.get(one.content_id), looks.get(other.content_id)
    return mine is not None and theirs is not None and mine.is_like(theirs)


def _affordable(images: Sequence[Probe]) -> Iterator[Probe]:
    left = MOST_PIXELS
    for image in images:
        share = _JPEG_SHARE if image.path.suffix.lower() in (".jpg", ".jpeg") else 1
        left -= image.size[0] * image.size[1] // share
        if left < 0:
            return
        yield image


def _look(image: Probe) -> Look | None:
    try:
        with Image.open(image.path, formats=FORMATS) as picture:
            picture.draft("L", (SIDE, SIDE))
            small = _small(picture)
    except BROKEN:
        return None
    return Look(_sharpness(small), _pattern(small))


def _small(picture: Image.Image) -> Image.Image:
    """Grey, its shorter side at most `SIDE`."""
    width, height = picture.size
    scale = min(1.0, SIDE / min(width, height))
    grey = as_rgb(picture, WHITE).convert("L")
    return grey.resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS
    )


def _sharpness(grey: Image.Image) -> float:
    """The largest variance of the Laplacian among 4 by 4 parts: a subject may be sharp before a soft background."""
    pixels = numpy.pad(numpy.asarray(grey, dtype=numpy.float32), 1, mode="edge")
    centre = 4 * pixels[1:-1, 1:-1]
    laplacian = centre - pixels[:-2, 1:-1] - pixels[2:, 1:-1] - pixels[1:-1, :-2] - pixels[1:-1, 2:]
    rows = numpy.array_split(laplacian, TILES)
    parts = [part for row in rows for part in numpy.array_split(row, TILES, axis=1) if part.size]
    return max((float(part.var()) for part in parts), default=0.0)


def _pattern(grey: Image.Image) -> int:
    values = numpy.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=numpy.int32)
    bits = (values[:, 1:] < values[:, :-1]).ravel()
    return sum(1 << index for index, bit in enumerate(bits) if bit)
