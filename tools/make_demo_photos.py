"""Make the demo's photos: a blue cat, which the small base has never seen, out of scikit-image's Chelsea (CC0).

python -m tools.make_demo_photos dreambooth/assets/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from tools.base import photos

SIDE = 256
# left, top and side of each crop in the photo of 451 × 300 pixels, and whether it is mirrored
CROPS = (
    (60, 0, 300, False),
    (120, 0, 300, True),
    (90, 10, 260, False),
    (130, 20, 250, True),
    (40, 0, 290, True),
)
TINT = (0.25, 0.45, 1.0)  # what is left of red, green and blue
LUMA = (0.299, 0.587, 0.114)


def blue(pixels: np.ndarray) -> np.ndarray:
    """The grey of RGB pixels in 0..1 (h, w, 3), seen through a blue glass."""
    tinted: np.ndarray = (pixels @ np.array(LUMA))[..., None] * np.array(TINT)
    return tinted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    cat = Image.open(photos.folder() / "chelsea.png").convert("RGB")
    for number, (left, top, side, mirrored) in enumerate(CROPS, start=1):
        box = (left, top, left + side, top + side)
        crop = cat.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box)
        if mirrored:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = blue(np.asarray(crop) / 255.0)
        Image.fromarray((pixels * 255).round().astype(np.uint8)).save(
            folder / f"cat-{number}.jpg", quality=90
        )


if __name__ == "__main__":
    main()
