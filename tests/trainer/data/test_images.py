import io
import os
import struct
import zlib
from hashlib import sha256
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from dreambooth.shared.errors import InputError
from dreambooth.trainer.data.images import (
    BadImage,
    Probe,
    View,
    bad_images_error,
    crop_box,
    find_images,
    is_cropped,
    open_image,
    parse_colour,
    pixels_of,
    probe,
    probe_all,
)

WHITE = (255, 255, 255)
# a picture without any symmetry: each corner has a colour of its own
CORNERS = numpy.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], dtype=numpy.uint8)


def photo(width: int = 48, height: int = 32, seed: int = 0) -> Image.Image:
    """Smooth, so that lossy formats change little."""
    y, x = numpy.mgrid[:height, :width] / max(width, height)
    channels = [127 + 120 * numpy.sin(3 * x + seed), 255 * y, 255 * x]
    return Image.fromarray(numpy.stack(channels, -1).clip(0, 255).astype(numpy.uint8))


def save(image: Image.Image, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def opened(path: Path, background=WHITE) -> Image.Image:
    return open_image(probe(path), background)


def array(image: Image.Image) -> numpy.ndarray:
    return numpy.asarray(image).astype(int)


def test_images_are_found_in_subfolders_in_one_natural_order_without_hidden_and_other_files(tmp_path):
    names = ["b10.png", "B9.PNG", "a/x2.jpg", "a/x10.Jpeg", "c.webp", "d.bmp", "é.png"]
    others = [".hidden.png", "._mac.png", ".cache/x.png", "__MACOSX/y.png", "notes.txt", "z.gif", "png"]
    for name in names + others:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a/x2.jpg", "a/x10.Jpeg", "B9.PNG", "b10.png", "c.webp", "d.bmp", "é.png"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_linked_folders_are_followed_but_not_in_circles(tmp_path):
    save(photo(), tmp_path / "elsewhere" / "x.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "photos")
    assert [path.name for path in find_images(tmp_path / "photos")] == ["x.png"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_each_format_is_probed_and_read(tmp_path, suffix):
    path = save(photo(), tmp_path / f"x.{suffix}")
    about = probe(path)
    assert about == Probe(path, sha256(path.read_bytes()).hexdigest(), (48, 32))
    assert numpy.abs(array(open_image(about, WHITE)) - array(photo())).mean() < 8


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_rotation_is_undone(tmp_path, orientation, suffix):
    upright = Image.fromarray(CORNERS).resize((64, 32), Image.Resampling.NEAREST)
    # what a camera stores for each orientation, from the standard's table of where row 0 and column 0 are
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[::-1],
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    }[orientation](numpy.asarray(upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(
        Image.fromarray(numpy.ascontiguousarray(stored)), tmp_path / f"x.{suffix}", exif=exif, quality=95
    )
    about = probe(path)
    picture = open_image(about, WHITE)
    assert about.size == picture.size == (64, 32)
    assert numpy.abs(array(picture) - array(upright)).mean() < 12


def test_transparency_shows_the_background(tmp_path):
    pixels = numpy.zeros((1, 3, 4), dtype=numpy.uint8)
    pixels[0, :, 0] = 200
    pixels[0, :, 3] = (0, 255, 51)
    path = save(Image.fromarray(pixels), tmp_path / "x.png")
    row = array(opened(path, (0, 100, 0)))[0]
    assert row.tolist() == [[0, 100, 0], [200, 0, 0], [40, 80, 0]]


def test_a_palettes_transparent_colour_and_a_grey_pictures_too(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    path = save(palette, tmp_path / "p.png", transparency=1)
    assert array(opened(path, (1, 2, 3)))[0].tolist() == [[10, 20, 30], [1, 2, 3]]
    grey = Image.fromarray(numpy.array([[7, 9]], dtype=numpy.uint8))
    path = save(grey, tmp_path / "l.png", transparency=9)
    assert array(opened(path, (1, 2, 3)))[0].tolist() == [[7, 7, 7], [1, 2, 3]]
    both = Image.fromarray(numpy.array([[[7, 255], [9, 0]]], dtype=numpy.uint8), "LA")
    assert array(opened(save(both, tmp_path / "la.png"), (1, 2, 3)))[0].tolist() == [[7, 7, 7], [1, 2, 3]]


def test_sixteen_bits_become_eight_without_being_cut_off(tmp_path):
    values = numpy.array([[0, 257, 0x8000, 65535]], dtype=numpy.uint16)
    path = save(Image.fromarray(values), tmp_path / "x.png")
    assert array(opened(path))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_black_and_white_grey_and_print_colours_become_rgb(tmp_path):
    assert array(opened(save(Image.new("1", (2, 2), 1), tmp_path / "b.png"))).min() == 255
    assert array(opened(save(Image.new("L", (2, 2), 77), tmp_path / "g.jpg")))[0, 0].tolist() == [77] * 3
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    picture = opened(save(red, tmp_path / "c.jpg", quality=95))
    assert picture.mode == "RGB"
    assert numpy.abs(array(picture)[8, 8] - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_of_a_moving_picture_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = save(frames[0], tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    assert array(opened(path))[4, 4].tolist() == [255, 0, 0]


def test_the_two_pictures_of_a_phones_jpeg_are_one_image(tmp_path):
    path = save(photo(), tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[photo(seed=2)])
    assert numpy.abs(array(opened(path)) - array(photo())).mean() < 8


def test_a_wrong_ending_and_broken_exif_do_no_harm(tmp_path):
    assert probe(save(photo(), tmp_path / "x.jpg", format="PNG")).size == (48, 32)
    path = save(photo(), tmp_path / "y.jpg", exif=b"Exif\x00\x00nonsense")
    assert opened(path).size == (48, 32)


def enormous_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def encoded(suffix: str) -> bytes:
    file = io.BytesIO()
    photo(200, 150).save(file, suffix)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.98])
def test_a_truncated_image_is_noticed(tmp_path, kind, share):
    data = encoded(kind)
    path = tmp_path / "x.png"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadImage):
        probe(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is text", "not a PNG, JPEG, WebP or BMP"),
        (b"GIF89a" + bytes(50), "not a PNG"),
        (enormous_png(), "more than 178 million pixels"),
    ],
)
def test_a_bad_image_is_refused_with_the_reason(tmp_path, data, reason):
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(BadImage, match=reason):
        probe(path)


def test_a_damaged_png_is_noticed_by_its_checksum(tmp_path):
    data = bytearray(encoded("PNG"))
    data[len(data) // 2] ^= 1
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(BadImage, match="damaged"):
        probe(tmp_path / "x.png")


def test_all_bad_images_are_listed_and_the_good_ones_kept(tmp_path):
    good = save(photo(), tmp_path / "good.png")
    bad = [tmp_path / "bad1.png", tmp_path / "bad2.jpg"]
    for path in bad:
        path.write_bytes(b"no image")
    found, reasons = probe_all([bad[0], good, bad[1]])
    assert [entry.path for entry in found] == [good]
    error = bad_images_error(reasons)
    assert isinstance(error, InputError)
    assert all(str(path) in str(error) for path in bad)
    assert "allow_bad_images" in error.remedy


def test_probing_stops_at_the_limit_of_good_ones(tmp_path):
    paths = [save(photo(seed=n), tmp_path / f"{n}.png") for n in range(3)]
    (tmp_path / "0.png").write_bytes(b"")
    found, reasons = probe_all([*paths, tmp_path / "missing.png"], limit=2)
    assert [entry.path for entry in found] == paths[1:]
    assert len(reasons) == 1


def test_an_image_that_changed_since_it_was_probed_is_refused(tmp_path):
    path = save(photo(), tmp_path / "x.png")
    about = probe(path)
    save(photo(seed=1), path)
    with pytest.raises(InputError, match="changed") as caught:
        open_image(about, WHITE)
    assert caught.value.where == str(path)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        open_image(about, WHITE)


def test_colours_are_named_or_hexadecimal():
    assert parse_colour(" white ") == WHITE
    assert parse_colour("#102030") == (16, 32, 48)
    with pytest.raises(InputError, match="'greenish' is not a colour") as caught:
        parse_colour("greenish")
    assert caught.value.where == "background"


@pytest.mark.parametrize("size", [(100, 50), (50, 100), (64, 64), (1, 1000), (1000, 1), (333, 77), (7, 5)])
@pytest.mark.parametrize("target", [(64, 64), (32, 128), (128, 40)])
@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_a_crop_is_the_largest_part_of_the_targets_shape(size, target, position):
    left, top, right, bottom = crop_box(size, target, position)
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    assert (right - left) / (bottom - top) == pytest.approx(target[0] / target[1], rel=1e-9)
    assert right - left == pytest.approx(size[0]) or bottom - top == pytest.approx(size[1])
    whole = right - left == pytest.approx(size[0]) and bottom - top == pytest.approx(size[1])
    assert is_cropped(size, target) != whole


def test_the_position_moves_the_crop_from_end_to_end():
    assert crop_box((100, 50), (64, 64), 0.0) == (0, 0, 50, 50)
    assert crop_box((100, 50), (64, 64), 0.5) == (25, 0, 75, 50)
    assert crop_box((100, 50), (64, 64), 1.0) == (50, 0, 100, 50)
    assert crop_box((50, 100), (64, 64), 1.0) == (0, 50, 50, 100)


def test_pixels_run_from_minus_one_to_one_in_channel_row_column_order():
    image = Image.fromarray(CORNERS)
    pixels = pixels_of(image, View((2, 2)))
    expected = torch.tensor(CORNERS.transpose(2, 0, 1).astype("float32")) / 255 * 2 - 1
    assert pixels.dtype == torch.float32 and pixels.is_contiguous()
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(pixels_of(image, View((2, 2), flip=True)), expected.flip(2))


def test_resizing_is_antialiased():
    checks = numpy.indices((64, 64)).sum(0) % 2 * 255
    image = Image.fromarray(numpy.repeat(checks[..., None], 3, 2).astype(numpy.uint8))
    assert pixels_of(image, View((16, 16))).abs().max() < 0.05


def test_a_crop_equals_resizing_first_and_cropping_then():
    image = photo(120, 60)
    resized = image.resize((64, 32), Image.Resampling.LANCZOS).crop((0, 0, 32, 32))
    expected = torch.from_numpy(numpy.array(resized)).permute(2, 0, 1) / 127.5 - 1
    ours = pixels_of(image, View((32, 32), position=0.0))
    # the box ends inside the image, where resizing first sees beyond it: only the last columns may differ
    torch.testing.assert_close(ours[:, :, :28], expected[:, :, :28], rtol=0, atol=0.02)


def test_rotation_turns_anticlockwise_and_leaves_no_black_corners():
    image = Image.new("RGB", (64, 64), (200, 200, 200))
    image.paste((255, 0, 0), (32, 0, 64, 32))  # the upper right quarter
    turned = pixels_of(image, View((64, 64), angle=90.0))
    plain = pixels_of(image, View((64, 64)))
    torch.testing.assert_close(turned[:, 2:-2, 2:-2], plain.rot90(1, (1, 2))[:, 2:-2, 2:-2], rtol=0, atol=0.1)
    lightest = pixels_of(Image.new("RGB", (64, 40), (200, 190, 180)), View((64, 40), angle=-17.0))
    assert lightest.min() > 0.4  # a black corner would be -1


def test_brightness_multiplies_light_and_stays_in_range():
    image = Image.new("RGB", (8, 8), (100, 200, 0))
    pixels = pixels_of(image, View((8, 8), brightness=1.5))
    expected = torch.tensor([150 / 255, 1.0, 0.0]) * 2 - 1
    torch.testing.assert_close(pixels[:, 4, 4], expected, rtol=0, atol=1e-6)
