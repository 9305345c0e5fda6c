"""Sizes that images are cropped to: squares, or buckets of one area and several aspect ratios.

The list is the one that is in use for 512 (NovelAI's, https://github.com/NovelAI/novelai-aspect-ratio-bucketing). For
another resolution each side is scaled and rounded down to a multiple of a step: 64 pixels from 512 up, and half of it
for each halving below (32 at 256, 8 at 64), so that small resolutions keep all their aspect ratios. diffusers' UNet
accepts every multiple of 8: where a level's size is odd it hands the upsampler the size to come back to.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from dreambooth.shared.errors import InputError

Size = tuple[int, int]  # width, height in pixels

SIZES_AT_512: tuple[Size, ...] = (
    (256, 1024),
    (320, 1024),
    (384, 1024),
    (384, 960),
    (384, 896),
    (448, 832),
    (512, 768),
    (512, 704),
    (512, 512),
    (576, 640),
    (640, 576),
    (704, 512),
    (768, 512),
    (832, 448),
    (896, 384),
    (960, 384),
    (1024, 384),
    (1024, 320),
    (1024, 256),
)


def bucket_sizes(resolution: int, *, aspect_ratio_buckets: bool, multiple: int = 8) -> tuple[Size, ...]:
    """The sizes that a run uses, whose sides are multiples of `multiple`.

    Raises `InputError` if the resolution is not one.
    """
    if resolution % multiple or resolution < multiple:
        why = {8: ": the VAE makes one latent of 8 by 8 pixels"}.get(multiple, ", as this model needs it")
        raise InputError(
            f"{resolution} is not a multiple of {multiple}",
            where="resolution",
            remedy=f"Take {max(multiple, round(resolution / multiple) * multiple)}{why}.",
        )
    if not aspect_ratio_buckets:
        return ((resolution, resolution),)
    step = max(bucket_step(resolution), multiple)
    scaled = [
        tuple(max(step, side * resolution // 512 // step * step) for side in size) for size in SIZES_AT_512
    ]
    return tuple(dict.fromkeys((width, height) for width, height in scaled))


def bucket_step(resolution: int) -> int:
    """What the sides of buckets are multiples of, in pixels."""
    step = 64
    while step > 8 and resolution * 64 < 512 * step:
        step //= 2
    return step


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose aspect ratio is nearest on a logarithmic scale; of equally near ones the largest."""
    ratio = math.log(size[0] / size[1])

    def distance(bucket: Size) -> tuple[float, int]:
        return round(abs(math.log(bucket[0] / bucket[1]) - ratio), 9), -bucket[0] * bucket[1]

    return min(buckets, key=distance)


def bucket_counts(buckets: Iterable[Size]) -> dict[Size, int]:
    """How many there are of each size, the commonest first."""
    counts = Counter(buckets)
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))
