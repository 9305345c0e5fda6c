"""Masks for inpainting models, whose UNet also sees what is left of the image.

As in diffusers' train_dreambooth_inpaint.py: a rectangle or an ellipse of random size and place is cut out of each
image; the mask and the latents of the cut image are 1 + 4 further channels of the UNet's input, in this order. The
mask's number decides about it, so that a fixed number of them can be cached and a sample can name its own.
"""

from __future__ import annotations

import numpy
import torch
from PIL import Image, ImageDraw

from dreambooth.trainer.draws import below, words

Size = tuple[int, int]  # width, height in pixels

PIXELS_PER_LATENT = 8


def random_mask(size: Size, content_id: str, number: int) -> torch.Tensor:
    """The mask with this number for an image: float32 (1, height, width), 1 where the image is cut out."""
    width, height = size
    across, down, left, top, shape = words(content_id, "mask", number)[:5]
    half = below(across, width + 1) // 2, below(down, height + 1) // 2
    # the centre lies so that the whole shape is inside
    centre = half[0] + below(left, width - 2 * half[0] + 1), half[1] + below(top, height - 2 * half[1] + 1)
    canvas = Image.new("L", size, 0)
    draw = ImageDraw.Draw(canvas)
    box = (centre[0] - half[0], centre[1] - half[1], centre[0] + half[0], centre[1] + half[1])
    (draw.rectangle if shape & 1 else draw.ellipse)(box, fill=255)
    return torch.from_numpy(numpy.array(canvas)).gt(127).float()[None]


def cut_out(pixels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Pixels (3, H, W) in [-1, 1], grey (0) where the mask (1, H, W) is 1."""
    return pixels * (mask < 0.5)


def latent_mask(mask: torch.Tensor) -> torch.Tensor:
    """The mask at the latents' size: (1, H, W) → (1, H/8, W/8), the nearest pixel's value."""
    return mask[:, ::PIXELS_PER_LATENT, ::PIXELS_PER_LATENT].contiguous()
