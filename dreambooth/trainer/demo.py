"""The whole main job on the small base: train a subject it has never seen, and show what that did, and what it did not."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
from PIL import Image, ImageDraw, ImageFont

from dreambooth.shared.config import settings_from
from dreambooth.shared.paths import check_writable, write_whole
from dreambooth.shared.runfolder import RunFolder, is_run, read_result
from dreambooth.shared.settings import Settings
from dreambooth.trainer import run
from dreambooth.trainer.data.images import find_images
from dreambooth.trainer.models.convert import load_model
from dreambooth.trainer.models.place_base import ASSETS, place_base
from dreambooth.trainer.models.tokenizer import Tokenizer
from dreambooth.trainer.reporter import Reporter
from dreambooth.trainer.sampling.pictures import png_bytes
from dreambooth.trainer.sampling.sample import SampleRequest, sample

PHOTOS = ASSETS / "demo"
NAME = "demo"
SIDE = 64
SUBJECT, CLASS = "photo of sks cat", "photo of cat"
OTHERS = ("photo of coffee", "photo of rocket", "photo of coins", "photo of horse")
SEEDS = tuple(range(4))
GUIDANCE_SCALE = 3.0
# The base hardly tells a rare word from none, so its small text encoder learns much faster than a real one would;
# the class images are drawn with the guidance that the pictures are, since 7.5 burns colours at 64 pixels.
RECIPE = {
    "resolution": str(SIDE),
    "max_train_steps": "500",
    "train_batch_size": "4",
    "learning_rate": "5e-5",
    "text_encoder_learning_rate": "8e-4",
    "lr_scheduler": "linear",
    "num_class_images": "24",
    "class_guidance_scale": str(GUIDANCE_SCALE),
    "sample_batch_size": "8",
    "random_flip": "yes",
    "checkpointing_steps": "100",
    "num_validation_images": "0",
}


@dataclass(frozen=True)
class Row:
    """One caption's pictures before and after, (seeds, H, W, 3) uint8, and what is measured on them."""

    caption: str
    before: numpy.ndarray
    after: numpy.ndarray
    photos: numpy.ndarray

    @property
    def likeness_before(self) -> float:
        return distance(self.before, self.photos)

    @property
    def likeness_after(self) -> float:
        return distance(self.after, self.photos)

    @property
    def moved(self) -> float:
        """How far the pictures of one seed lie apart before and after: root mean square, 0 to 255."""
        difference = self.before.astype(numpy.float64) - self.after
        return float(numpy.sqrt(numpy.mean(difference**2)))


def distance(pictures: numpy.ndarray, photos: numpy.ndarray) -> float:
    """How far pictures (n, H, W, 3) are from the nearest of the photos (m, H, W, 3): mean over pictures of the
    root mean square difference, 0 to 255."""
    both = pictures[:, None].astype(numpy.float64) - photos[None]
    apart = numpy.sqrt(numpy.mean(both**2, axis=(2, 3, 4)))
    return float(apart.min(axis=1).mean())


def demo(out: Path) -> int:
    """Trains, and writes `demo.safetensors` and `before-after.png` into `out`. Returns the exit code.

    A demo that was interrupted is gone on with; one that was finished is made anew.
    """
    out = out.absolute()
    check_writable(out, setting="--out")
    out.mkdir(parents=True, exist_ok=True)
    base = place_base(out)
    begun = RunFolder(out / "runs" / NAME)
    if is_run(begun.path) and run.is_finished(begun):
        shutil.rmtree(begun.path)
    code = run.resume(begun) if is_run(begun.path) else run.train(_settings(base, out))
    trained = Path(read_result(begun)["path"])
    reporter = Reporter()
    reporter.write("Making the pictures before and after")
    rows = _rows(base, trained)
    picture = out / "before-after.png"
    write_whole(picture, png_bytes(_sheet(rows), "\n".join(_lines(rows))))
    reporter.write("\n".join(["", *_lines(rows), "", f"Checkpoint {trained}", f"Picture    {picture}"]))
    return code


def _settings(base: Path, out: Path) -> Settings:
    values = {
        "model": str(base),
        "output_name": NAME,
        "output_dir": str(out),
        "runs_dir": str(out / "runs"),
        "overwrite": "yes",
        "concepts": [{"instance_prompt": SUBJECT, "class_prompt": CLASS, "instance_data_dir": str(PHOTOS)}],
    }
    return settings_from(values | RECIPE, where="the demo")


def _rows(base: Path, trained: Path) -> list[Row]:
    captions = (SUBJECT, CLASS, *OTHERS)
    photos = _photos()
    before, after = (_draw(model, captions) for model in (base, trained))
    return [Row(caption, before[caption], after[caption], photos) for caption in captions]


def _photos() -> numpy.ndarray:
    opened = [Image.open(path).convert("RGB").resize((SIDE, SIDE)) for path in find_images(PHOTOS)]
    return numpy.stack([numpy.asarray(photo) for photo in opened])


def _draw(path: Path, captions: Sequence[str]) -> dict[str, numpy.ndarray]:
    requests = [
        SampleRequest(
            prompt=caption, seed=seed, steps=20, guidance_scale=GUIDANCE_SCALE, width=SIDE, height=SIDE
        )
        for caption in captions
        for seed in SEEDS
    ]
    pictures = dict(sample(load_model(path), Tokenizer(), requests, batch_size=len(SEEDS)))
    count = len(SEEDS)
    return {
        caption: numpy.stack([numpy.asarray(pictures[index * count + place]) for place in range(count)])
        for index, caption in enumerate(captions)
    }


def _lines(rows: Sequence[Row]) -> list[str]:
    """The measure, as a table of plain text."""
    lines = [f"{'':<18}  far from the photos  changed by", f"{'':<18}    before  →  after    the training"]
    lines += [
        f"{row.caption:<18}  {row.likeness_before:8.1f}  → {row.likeness_after:6.1f}  {row.moved:10.1f}"
        for row in rows
    ]
    return [*lines, "(root mean square difference of pixels, 0 to 255; same seeds before and after)"]


def _sheet(rows: Sequence[Row], *, cell: int = 96, gap: int = 8) -> Image.Image:
    """Photos on top, then a row for each caption: its pictures before, its pictures after, its numbers."""
    count, line = len(SEEDS), 22
    width = 2 * count * cell + 3 * gap
    height = cell + 2 * line + gap + len(rows) * (cell + line + gap)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), _font(13)
    draw.text((gap, 4), f"The photos of {SUBJECT.removeprefix('photo of ')}", fill="black", font=font)
    _paste(sheet, rows[0].photos, gap, line, cell)
    top = line + cell + 4
    draw.text((gap, top), "before", fill="gray", font=font)
    draw.text((2 * gap + count * cell, top), "after", fill="gray", font=font)
    top += line
    for row in rows:
        _paste(sheet, row.before, gap, top, cell)
        _paste(sheet, row.after, 2 * gap + count * cell, top, cell)
        text = (
            f"“{row.caption}”   far from the photos: {row.likeness_before:.0f} before, "
            f"{row.likeness_after:.0f} after; changed by {row.moved:.0f}"
        )
        draw.text((gap, top + cell + 2), text, fill="black", font=font)
        top += cell + line + gap
    return sheet


def _paste(sheet: Image.Image, pictures: numpy.ndarray, left: int, top: int, cell: int) -> None:
    for place, picture in enumerate(pictures):
        shown = Image.fromarray(picture).resize((cell, cell), Image.Resampling.BICUBIC)
        sheet.paste(shown, (left + place * cell, top))


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    try:
        return ImageFont.load_default(size=size)
    except TypeError:  # before Pillow 10.1
        return ImageFont.load_default()
