"""Images as users have them, as RGB pictures of the right way up, as tensors.

PIL and torch do all of it: torchvision is not needed (a torchvision that cannot load breaks more than it gives).
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import (
    BmpImagePlugin,
    Image,
    ImageColor,
    JpegImagePlugin,
    PngImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from dreambooth.shared.errors import InputError, quoted

Size = tuple[int, int]  # width, height in pixels
Colour = tuple[int, int, int]

_READERS = (BmpImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin)  # importing them registers them
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # JPEG's reader also knows MPO, what some phones write
# PIL's own border between a warning and an error; an RGB picture of this size takes half a gigabyte
MAX_PIXELS = 178_956_970
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# what PIL's decoders raise on broken files
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)


class BadImage(ValueError):
    """An image that cannot be used; the text says why, without the path."""


@dataclass(frozen=True)
class Probe:
    """What is known of an image file without its pixels: the size is that of the upright picture."""

    path: Path
    content_id: str  # sha256 of the file's bytes
    size: Size


@dataclass(frozen=True)
class View:
    """How an image is looked at: what is cropped, turned and lit. Equal views of equal images give equal pixels.

    `position` in [0, 1] says where the crop lies along the side that is cut (0.5: the centre), `angle` is in degrees
    anticlockwise, `brightness` a factor.
    """

    size: Size
    position: float = 0.5
    flip: bool = False
    angle: float = 0.0
    brightness: float = 1.0


def find_images(folder: Path) -> list[Path]:
    """All images in a folder and its subfolders, hidden ones left out, in an order that is the same everywhere.

    The order is by name with numbers by value and letters without case ("a2" before "A10"). Links are followed once.
    """
    found, visited = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        found += [Path(place, name) for name in files if _is_image_name(name)]
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder)))


def natural_key(path: Path) -> tuple[object, ...]:
    """Sorts paths alike on every platform: by value where there are digits, without case, accents composed."""
    text = unicodedata.normalize("NFC", path.as_posix())
    parts = re.split(r"([0-9]+)", text.casefold())
    numbers = tuple((int(part), part) if index % 2 else part for index, part in enumerate(parts))
    return (*numbers, text)


def probe(path: Path) -> Probe:
    """Reads a file once: its hash, its upright size, and whether it is whole. Raises `BadImage`."""
    try:
        data = path.read_bytes()
        with warnings_about_size_off(), _open(data) as image:
            width, height = image.size
            if orientation_of(image) >= 5:
                width, height = height, width
            _check_whole(image)
    except BadImage:
        raise
    except BROKEN as error:
        raise BadImage(_reason(error)) from error
    return Probe(path, hashlib.sha256(data).hexdigest(), (width, height))


def probe_all(paths: Iterable[Path], limit: int | None = None) -> tuple[list[Probe], list[str]]:
    """Probes images until `limit` good ones are found; returns these, and path and reason for each bad one."""
    good: list[Probe] = []
    bad: list[str] = []
    for path in paths:
        if limit is not None and len(good) >= limit:
            break
        try:
            good.append(probe(path))
        except BadImage as error:
            bad.append(f"{path}: {error}")
    return good, bad


def bad_images_error(bad: Sequence[str]) -> InputError:
    """One error that lists all images that cannot be used."""
    what = "an image cannot be used" if len(bad) == 1 else f"{len(bad)} images cannot be used"
    return InputError(
        "\n  ".join([f"{what}:", *bad]),
        remedy="Replace or remove them, or set allow_bad_images: yes to leave them out.",
    )


def open_image(source: Probe, background: Colour) -> Image.Image:
    """The picture, upright, RGB with 8 bits, on the background where it is transparent, its first frame if it moves.

    Raises `InputError` if the file is no longer what was probed.
    """
    try:
        data = source.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != source.content_id:
            raise BadImage("it was changed after the run's plan was made")
        with warnings_about_size_off(), _open(data) as image:
            orientation = orientation_of(image)
            picture = as_rgb(image, background)
    except BROKEN as error:
        reason = str(error) if isinstance(error, BadImage) else _reason(error)
        raise InputError(
            reason, where=str(source.path), remedy="Start again, or remove the image."
        ) from error
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture


def parse_colour(text: str, *, where: str = "background") -> Colour:
    """(red, green, blue), 0 to 255, from a name or #hex. Raises `InputError`."""
    try:
        red, green, blue = ImageColor.getrgb(text.strip())[:3]
    except ValueError:
        raise InputError(
            f"{quoted(text)} is not a colour", where=where, remedy="Give a name such as white, or #RRGGBB."
        ) from None
    return red, green, blue


def crop_box(size: Size, target: Size, position: float) -> tuple[float, float, float, float]:
    """The part of an image, in its own pixels, that fills `target` when scaled: as large as fits."""
    width, height = size
    scale = max(target[0] / width, target[1] / height)
    # never beyond the image by rounding: PIL refuses that
    inner_width, inner_height = min(width, target[0] / scale), min(height, target[1] / scale)
    left, top = (width - inner_width) * position, (height - inner_height) * position
    return left, top, min(width, left + inner_width), min(height, top + inner_height)


def is_cropped(size: Size, target: Size) -> bool:
    """Whether filling `target` cuts anything off an image, so that it matters where the crop lies."""
    return size[0] * target[1] != size[1] * target[0]


def pixels_of(image: Image.Image, view: View) -> torch.Tensor:
    """A view of an RGB picture as float32 (3, height, width) in [-1, 1]: cropped, resized (Lanczos), turned, lit."""
    box = crop_box(image.size, view.size, view.position)
    picture = image.resize(view.size, Image.Resampling.LANCZOS, box=box)
    if view.angle:
        picture = _rotated(picture, view.angle)
    values = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).float().div_(255.0)
    if view.brightness != 1.0:
        values = values.mul_(view.brightness).clamp_(0.0, 1.0)
    if view.flip:
        values = values.flip(2)
    return values.mul_(2.0).sub_(1.0).contiguous()


@contextmanager
def warnings_about_size_off() -> Iterator[None]:
    """PIL warns of pictures above half of `MAX_PIXELS`, which a camera can make."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none or it cannot be read."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # PIL would unpack the whole picture to look for it behind the pixels
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except BROKEN:
        return 1
    return value if value in _TURNS else 1


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image_name(name: str) -> bool:
    return not _is_hidden(name) and Path(name).suffix.lower() in SUFFIXES


def _open(data: bytes) -> Image.Image:
    if not data:
        raise BadImage("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadImage(f"it has more than {MAX_PIXELS // 10**6} million pixels") from None
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"it has more than {MAX_PIXELS // 10**6} million pixels")
    return image


def _check_whole(image: Image.Image) -> None:
    """Notices a truncated file at the lowest cost that its format allows."""
    if image.format == "PNG":
        image.verify()  # the checksums of all parts, without unpacking them
        return
    if image.format in ("JPEG", "MPO"):
        image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
    image.load()


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not a PNG, JPEG, WebP or BMP image"
    if isinstance(error, OSError) and error.strerror:
        return f"it cannot be read ({error.strerror})"
    return f"it is damaged ({error})" if str(error) else "it is damaged"


def as_rgb(image: Image.Image, background: Colour) -> Image.Image:
    """RGB with 8 bits, whatever it was; what is transparent shows the background."""
    if image.mode.startswith("I") or image.mode == "F":
        # PIL would cut 16 bits off at 255
        values = numpy.asarray(image).astype(numpy.float64)
        image = Image.fromarray(numpy.clip(numpy.rint(values / 257.0), 0, 255).astype(numpy.uint8))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        opaque = Image.new("RGB", image.size, background)
        layered = image.convert("RGBA")
        opaque.paste(layered, mask=layered.getchannel("A"))
        return opaque
    return image.convert("RGB")


def _rotated(picture: Image.Image, degrees: float) -> Image.Image:
    """Turned about its centre; what comes in at the corners is the picture's own mirror image, not black."""
    width, height = picture.size
    reach = 2 * math.sin(math.radians(min(abs(degrees), 180.0)) / 2) * math.hypot(width, height) / 2
    margin = math.ceil(reach) + 2
    mirrored = numpy.pad(
        numpy.asarray(picture), ((margin, margin), (margin, margin), (0, 0)), mode="symmetric"
    )
    turned = Image.fromarray(mirrored).rotate(degrees, Image.Resampling.BICUBIC)
    return turned.crop((margin, margin, margin + width, margin + height))
