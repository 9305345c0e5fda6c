"""The photos that the small base learns from: those inside scikit-image's own wheel, all free to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SIZE = 64


@dataclass(frozen=True)
class Photo:
    """One photo, and which square crops of it still show what its caption says.

    `frame` is the part that crops are taken from (left, top, right, bottom, as fractions) and `side` the
    range of a crop's side as a fraction of the frame's shorter side. A photo without a noun is seen by the
    VAE only: it must draw more than the UNet knows, or no new subject could be taught.
    """

    file: str
    noun: str
    licence: str
    frame: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    side: tuple[float, float] = (0.8, 1.0)
    share: int = 1  # how often the VAE sees it, next to the others


CC0 = "CC0"
PUBLIC = "public domain"
FREE = "no known copyright restrictions"
SHIPPED = "shipped by scikit-image without a note on its terms"
MIDDLEBURY = "permission to use and publish, see below"

PHOTOS = (
    Photo("chelsea.png", "cat", CC0, (0.08, 0.0, 0.95, 1.0), (0.75, 1.0), share=4),
    Photo("coffee.png", "coffee", CC0, (0.1, 0.0, 0.9, 1.0), (0.8, 1.0), share=2),
    Photo("rocket.jpg", "rocket", PUBLIC, (0.12, 0.0, 0.88, 1.0), (0.8, 1.0)),
    Photo("astronaut.png", "astronaut", PUBLIC, (0.0, 0.0, 0.95, 0.95), (0.8, 1.0), share=2),
    Photo("coins.png", "coins", FREE, side=(0.55, 0.8)),
    Photo("moon.png", "moon", SHIPPED, side=(0.7, 1.0)),
    Photo("retina.jpg", "retina", CC0, side=(0.9, 1.0)),
    Photo("motorcycle_left.png", "motorcycle", MIDDLEBURY, (0.1, 0.0, 0.95, 1.0), (0.85, 1.0), share=2),
    Photo("hubble_deep_field.jpg", "galaxies", PUBLIC, side=(0.2, 0.3)),
    Photo("horse.png", "horse", CC0, side=(0.9, 1.0)),
    Photo("brick.png", "bricks", CC0, side=(0.3, 0.45)),
    Photo("camera.png", "", CC0, side=(0.5, 1.0)),
    Photo("grass.png", "", CC0, side=(0.1, 0.4)),
    Photo("gravel.png", "", CC0, side=(0.1, 0.3)),
    Photo("ihc.png", "", FREE, side=(0.3, 1.0)),
    Photo("cell.png", "", CC0, side=(0.3, 1.0)),
    Photo("text.png", "", PUBLIC, side=(0.5, 1.0)),
)


def folder() -> Path:
    import skimage

    return Path(skimage.__file__).parent / "data"


def _open(photo: Photo) -> Image.Image:
    image = Image.open(folder() / photo.file)
    if image.mode != "RGBA":
        return image.convert("RGB")
    side = max(image.size)  # a silhouette on glass: whole, in the middle of a white square
    canvas = Image.new("RGBA", (side, side), "white")
    canvas.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas.convert("RGB")


def crops(
    photo: Photo, count: int, generator: np.random.Generator, *, anywhere: bool = False
) -> torch.Tensor:
    """`count` random square crops, half of them mirrored: uint8 (count, 3, SIZE, SIZE).

    With `anywhere` they come from the whole photo and may be half as wide.
    """
    image = _open(photo)
    left, top, right, bottom = (0.0, 0.0, 1.0, 1.0) if anywhere else photo.frame
    low, high = photo.side[0] * (0.5 if anywhere else 1.0), photo.side[1]
    width, height = (right - left) * image.width, (bottom - top) * image.height
    pixels = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for index in range(count):
        side = min(width, height) * generator.uniform(low, high)
        x = left * image.width + generator.uniform(0.0, width - side)
        y = top * image.height + generator.uniform(0.0, height - side)
        crop = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))
        pixels[index] = np.asarray(crop)[:, ::-1] if generator.random() < 0.5 else np.asarray(crop)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels to float32 in -1..1."""
    return pixels.float() / 127.5 - 1.0


def _uniform(count: int, low: float, high: float, generator: torch.Generator, width: int = 1) -> torch.Tensor:
    return torch.empty(count, width, 1, 1).uniform_(low, high, generator=generator)


# RGB to luma and two colour axes (YIQ), in which a hue is an angle.
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], np.float32)


def shift_colours(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random hue, tint, saturation and brightness for each image in -1..1, so that the VAE draws any colour."""
    count = len(images)
    unit = (images + 1.0) / 2.0
    angle = _uniform(count, -torch.pi, torch.pi, generator) * _coin(count, 0.5, generator)
    strength = _uniform(count, 0.0, 1.4, generator)
    luma, first, second = torch.einsum("kc,nchw->nkhw", torch.from_numpy(YIQ), unit).chunk(3, dim=1)
    cos, sin = strength * angle.cos(), strength * angle.sin()
    turned = torch.cat([luma, cos * first - sin * second, sin * first + cos * second], dim=1)
    unit = torch.einsum("kc,nchw->nkhw", torch.linalg.inv(torch.from_numpy(YIQ)), turned)
    tint = 1.0 + (_uniform(count, 0.25, 1.25, generator, 3) - 1.0) * _coin(count, 0.6, generator)
    unit = unit * tint * _uniform(count, 0.6, 1.25, generator) + _uniform(count, -0.1, 0.1, generator)
    return unit.clamp(0.0, 1.0) * 2.0 - 1.0


def _coin(count: int, chance: float, generator: torch.Generator) -> torch.Tensor:
    return (torch.rand(count, 1, 1, 1, generator=generator) < chance).float()


def shift_light(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A slightly different light for each image in -1..1: what the UNet sees of a photo."""
    unit = (images + 1.0) / 2.0
    gain = _uniform(len(images), 0.9, 1.08, generator) * _uniform(len(images), 0.96, 1.04, generator, 3)
    return (unit * gain).clamp(0.0, 1.0) * 2.0 - 1.0


def plain_colours(count: int, generator: torch.Generator) -> torch.Tensor:
    """Smooth gradients between random colours, in -1..1: colours that no photo has."""
    corners = torch.rand(count, 3, 2, 2, generator=generator)
    smooth = torch.nn.functional.interpolate(corners, SIZE, mode="bilinear", align_corners=True)
    return smooth * 2.0 - 1.0


def nouns(photos: Sequence[Photo] = PHOTOS) -> list[str]:
    return [photo.noun for photo in photos if photo.noun]
