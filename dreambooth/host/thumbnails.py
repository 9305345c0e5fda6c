"""Small pictures of photos that the page may show, made when they are asked for and kept.

An address of one is a random-looking name that only we can make, not a path.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from ..shared.errors import InputError
from ..shared.paths import write_whole
from . import other_formats
from .answers import NotFound

SIDE = 256
MOST_PIXELS = 120_000_000
MOST_BYTES = 100 << 20
_MILLION = 10**6
FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp"}
_KNOWN = 20_000
_KEPT_FILES = 5_000


@dataclass(frozen=True)
class Size:
    """A photo's size as it is shown, in pixels, and its format."""

    width: int
    height: int
    format: str


def look_at(source: Path | bytes) -> Size:
    """The size of an image, read from its head alone: nothing is decoded. Raises InputError if it is none that can be
    used, or would need too much memory."""
    length = len(source) if isinstance(source, bytes) else source.stat().st_size
    if length > MOST_BYTES:
        raise InputError(f"it is larger than {MOST_BYTES >> 20} MB", remedy="Save it smaller.")
    with opened(source) as image:
        width, height = image.size
        turned = _orientation(image) in (5, 6, 7, 8)
        # MPO is a JPEG with more pictures behind it, as some phones write
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        return Size(*((height, width) if turned else (width, height)), kind)


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would unpack the whole picture to look for it behind the pixels
    return int(image.getexif().get(0x0112, 1))


def check_whole(content: bytes) -> None:
    """Notices a damaged image at the lowest cost that its format allows. Raises InputError.

    Ask `look_at` first: it refuses what would need too much memory.
    """
    with opened(content) as image:
        try:
            if image.format == "PNG":
                image.verify()  # the checksums of all parts, without unpacking them
                return
            image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))  # JPEG alone knows this
            image.load()
        except Exception as error:
            # Pillow's decoders raise nearly anything for a broken file
            raise InputError(other_formats.DAMAGED, remedy=other_formats.COPY_ANEW) from error


@contextlib.contextmanager
def opened(source: Path | bytes):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """An image that is open and not decoded. Raises InputError for what is no image, or one of too many pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of many pixels; we refuse them
            image = Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source, formats=tuple(FORMATS)
            )
            with image:
                if image.size[0] * image.size[1] > MOST_PIXELS:
                    raise Image.DecompressionBombError
                yield image
    except InputError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit may be lower
        most = f"it has too many pixels: {MOST_PIXELS // _MILLION} million are the most"
        raise InputError(most, remedy="Save it smaller.") from error
    except Exception as error:
        # Pillow's decoders raise nearly anything for a broken file
        what, remedy = other_formats.about(_head(source))
        raise InputError(what, remedy=remedy) from error


def _head(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:64]
    with contextlib.suppress(OSError), source.open("rb") as file:
        return file.read(64)
    return b""


class Thumbnails:
    """Small JPEGs in `folder`, which may be deleted at any time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths: OrderedDict[str, Path] = OrderedDict()
        self._secret = os.urandom(16)
        self._lock = threading.Lock()

    def name(self, path: Path) -> str:
        """The name under which `path`'s small picture can be asked for, as long as this process lives."""
        about = path.stat()
        text = f"{path}\0{about.st_mtime_ns}\0{about.st_size}"
        name = hashlib.blake2b(
            text.encode(errors="surrogatepass"), key=self._secret, digest_size=16
        ).hexdigest()
        with self._lock:
            self._paths[name] = path
            self._paths.move_to_end(name)
            while len(self._paths) > _KNOWN:
                self._paths.popitem(last=False)
        return name

    def picture(self, name: str) -> bytes:
        """The JPEG of that name. Raises NotFound for a name that was never given, InputError for a broken photo."""
        with self._lock:
            path = self._paths.get(name)
        if path is None:
            raise NotFound("there is no such picture", remedy="look at the folder again")
        try:
            about = path.stat()
            known = f"{path}\0{about.st_mtime_ns}\0{about.st_size}".encode(errors="surrogatepass")
            kept = self.folder / f"{hashlib.blake2b(known, digest_size=16).hexdigest()}.jpg"
            with contextlib.suppress(FileNotFoundError):
                return kept.read_bytes()
            made = make(path)
        except OSError as error:
            raise NotFound("the photo is gone", remedy="look at the folder again") from error
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(kept, made)
        return made

    def sweep(self) -> None:
        """Forgets the oldest of too many."""
        with contextlib.suppress(OSError):
            files = sorted(self.folder.glob("*.jpg"), key=lambda path: path.stat().st_mtime)
            for path in files[:-_KEPT_FILES]:
                path.unlink(missing_ok=True)


def make(path: Path) -> bytes:
    """A JPEG of at most SIDE pixels, upright as the camera meant it. Raises InputError for what is no image."""
    with opened(path) as image:
        image.draft("RGB", (SIDE * 2, SIDE * 2))
        image.thumbnail((SIDE, SIDE), reducing_gap=2.0)
        upright = ImageOps.exif_transpose(image) or image
        if upright.mode in ("RGBA", "LA", "P", "PA"):
            upright = upright.convert("RGBA")
            ground = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(ground, upright)
        made = io.BytesIO()
        upright.convert("RGB").save(made, "JPEG", quality=80)
        return made.getvalue()
