"""Photos that come in, and folders that are looked at."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib

import pytest
from PIL import Image

from dreambooth.host.answers import NotFound
from dreambooth.host.thumbnails import SIDE, Thumbnails, look_at, make
from dreambooth.host.uploads import Incoming, Photos, look
from dreambooth.shared.errors import InputError


def picture(size=(40, 30), colour="red", kind="PNG", **more) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", size, colour).save(made, kind, **more)
    return made.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """A PNG of some kilobytes that says it has `side` × `side` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 10_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture
def photos(tmp_path) -> Photos:
    return Photos(tmp_path / "photos")


def everything_below(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


NAMES = [
    "../../../evil.png", "..\\..\\evil.png", "/etc/passwd.png", "C:\\Windows\\x.png", "\\\\server\\share\\x.png",
    "CON.png", "nul", "x" * 300 + ".png", "照片 ünï.png", "a\0b.png", "", ".", "..", ".htaccess", "x.php", "a/b/c.jpg",
    "two\nlines.png", "\udcff.png",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_photo_is_kept_under_a_name_made_from_its_content_whatever_it_was_called(photos, tmp_path, name):
    content = picture()
    stored = photos.store([Incoming(name, content)], "dog")
    expected = f"{hashlib.sha256(content).hexdigest()[:24]}.png"
    assert [path.name for path in stored.files] == [expected]
    assert everything_below(tmp_path) == ["photos/dog/.names.json", f"photos/dog/{expected}"]
    assert (photos.root / "dog" / expected).read_bytes() == content


@pytest.mark.parametrize(
    "name", ["..", "../x", "a/b", "a\\b", "/x", "C:x", "CON", ".hidden", "x" * 300, "a\0b", " "]
)
def test_a_set_is_never_outside_its_folder(photos, tmp_path, name):
    with pytest.raises(InputError):
        photos.store([Incoming("a.png", picture())], name)
    assert everything_below(tmp_path) == []


def test_a_set_that_is_a_link_is_refused(photos, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    photos.root.mkdir()
    (photos.root / "dog").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError):
        photos.store([Incoming("a.png", picture())], "dog")
    assert everything_below(tmp_path / "elsewhere") == []


def test_a_new_set_has_a_folder_of_its_own(photos):
    first = photos.store([Incoming("a.png", picture())])
    second = photos.store([Incoming("a.png", picture())])
    assert first.folder != second.folder
    assert first.folder.parent == photos.root


def test_the_same_photo_twice_is_one(photos):
    stored = photos.store([Incoming("a.png", picture()), Incoming("b.png", picture())], "dog")
    assert len(stored.files) == 1


def test_an_image_that_unpacks_to_gigabytes_is_refused_before_it_is_decoded(photos, monkeypatch):
    content = bomb()
    assert len(content) < 20_000
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    stored = photos.store([Incoming("bomb.png", content)], "dog")
    assert stored.files == []
    assert "pixels" in stored.refused[0]["why"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"GIF89a", "a GIF file; PNG, JPEG, WebP and BMP are read. Save it as one of"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "Most Compatible"),
        (b"\0\0\0\x20ftypisom\0\0\x02\0", "a film"),
        (b"<svg onload=alert(1)>", "no picture that can be read; PNG, JPEG, WebP and BMP are. Open"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (picture((400, 300), kind="JPEG", quality=95)[:-900], "damaged"),
        (picture((400, 300))[:-40], "damaged"),
        (picture((400, 300), kind="WEBP", lossless=True)[:-20], "damaged"),
        (picture((40, 30), kind="BMP")[:-400], "damaged"),
        (bomb(), "120 million are the most. Save it smaller."),
    ],
)
def test_what_is_no_photo_is_refused_by_name(photos, content, why):
    stored = photos.store([Incoming("dir/x.png", content), Incoming("a.png", picture())], "dog")
    assert len(stored.files) == 1
    assert stored.refused[0]["name"] == "x.png"
    assert why in stored.refused[0]["why"]


def test_other_formats_than_the_trainers_are_refused(photos):
    made = io.BytesIO()
    Image.new("RGB", (8, 8)).save(made, "TIFF")
    assert photos.store([Incoming("a.png", made.getvalue())], "dog").files == []


def test_a_folder_of_pngs_is_looked_at_without_unpacking_them(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(picture())
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    assert look(tmp_path, str)["files"][0]["width"] == 40


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_whole_photo_of_every_format_is_taken(photos, kind):
    assert len(photos.store([Incoming("a", picture((333, 123), kind=kind))], "dog").files) == 1


def test_a_photo_of_a_phone_with_more_pictures_behind_it_is_a_jpeg(photos):
    made = io.BytesIO()
    one = Image.new("RGB", (40, 30))
    one.save(made, "MPO", save_all=True, append_images=[one.copy()])
    stored = photos.store([Incoming("IMG_1.JPG", made.getvalue())], "dog")
    assert [path.suffix for path in stored.files] == [".jpg"]


def test_photos_are_shown_and_talked_of_by_the_names_their_owner_gave_them(photos):
    stored = photos.store([Incoming("holiday/tiny.png", picture())], "dog")
    photos.store([Incoming("other\n.png", picture(colour="blue"))], "dog")
    assert sorted(one["called"] for one in look(stored.folder, str)["files"]) == ["other?.png", "tiny.png"]
    said = f"An image cannot be used: {stored.files[0]}: it is damaged"
    again = Photos(photos.root)  # the WebUI was started anew
    assert again.in_users_words(said) == "An image cannot be used: tiny.png: it is damaged"
    assert again.in_users_words(f"caching {stored.files[0].name} …") == "caching tiny.png …"
    strange = said.replace(stored.files[0].name, "0" * 24 + ".png")
    assert again.in_users_words(strange) == strange


@pytest.mark.parametrize("content", [b"no", b"[]", b'{"../x.png": "y", "a": 1}', b"\xff"])
def test_a_list_of_names_that_is_broken_is_none(photos, content):
    stored = photos.store([Incoming("a.png", picture())], "dog")
    (stored.folder / ".names.json").write_bytes(content)
    name = stored.files[0].name
    assert [(one["name"], one["called"]) for one in look(stored.folder, str)["files"]] == [(name, name)]


def test_the_ending_is_that_of_the_content(photos):
    stored = photos.store([Incoming("a.png", picture(kind="JPEG"))], "dog")
    assert stored.files[0].suffix == ".jpg"


def test_a_caption_goes_with_its_photo_also_when_it_comes_later(photos):
    stored = photos.store([Incoming("x/dog.txt", b"a dog"), Incoming("x/dog.png", picture())], "dog")
    assert stored.refused == []
    assert stored.files[0].with_suffix(".txt").read_text() == "a dog"
    photos.store([Incoming("x/dog.txt", "ein Hündchen".encode("cp1252"))], "dog")
    assert stored.files[0].with_suffix(".txt").read_text(encoding="utf-8") == "ein Hündchen"


def test_a_text_without_its_photo_is_refused(photos):
    stored = photos.store([Incoming("notes.txt", b"x"), Incoming("dog.png", picture())], "dog")
    assert [one["name"] for one in stored.refused] == ["notes.txt"]


def test_a_set_is_made_of_copies_of_a_folders_photos_with_their_captions_and_grows(photos, tmp_path):
    own = tmp_path / "own"
    (own / "sub").mkdir(parents=True)
    for name, colour in (("a.png", "red"), ("b.png", "green"), ("sub/a.png", "blue"), ("c.png", "white")):
        (own / name).write_bytes(picture(colour=colour))
    captions = {"a.txt": "one", "b.png.txt": "two", "sub/a.caption": "three"}
    for name, text in captions.items():
        (own / name).write_text(text)
    (own / "broken.png").write_bytes(b"x")
    before = everything_below(own)
    stored = photos.copy_of(own)
    assert [one["name"] for one in stored.refused] == ["broken.png"]
    texts = [path.with_suffix(".txt") for path in stored.files]
    assert [path.read_text() if path.exists() else "" for path in texts] == ["one", "two", "", "three"]
    assert everything_below(own) == before
    photos.store([Incoming("d.png", picture(colour="black"))], stored.folder.name)
    assert len([name for name in everything_below(stored.folder) if name.endswith(".png")]) == 5
    with pytest.raises(InputError, match="no such folder"):
        photos.copy_of(tmp_path / "gone")


def test_a_photo_of_a_set_is_removed_with_its_caption(photos):
    stored = photos.store([Incoming("a.png", picture()), Incoming("a.txt", b"x")], "dog")
    photos.remove(stored.folder, stored.files[0].name)
    assert everything_below(photos.root) == ["dog/.names.json"]


@pytest.mark.parametrize(
    "name", ["../x.png", "a.png", "/etc/passwd", "0" * 24 + ".png/../x", "0" * 24 + ".png"]
)
def test_only_photos_of_our_own_are_removed(photos, tmp_path, name):
    (tmp_path / "x.png").write_bytes(b"mine")
    (photos.root / "dog").mkdir(parents=True)
    (photos.root / "dog" / "a.png").write_bytes(b"mine")
    with pytest.raises(NotFound):
        photos.remove(photos.root / "dog", name)
    with pytest.raises(InputError):
        photos.remove(tmp_path, "x.png")
    assert (tmp_path / "x.png").exists() and (photos.root / "dog" / "a.png").exists()


# folders that are looked at


def test_a_folder_is_shown_with_sizes_and_captions(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(picture((40, 30)))
    (tmp_path / "a.txt").write_text("a dog")
    (tmp_path / "sub" / "b.JPG").write_bytes(picture((10, 20), kind="JPEG"))
    (tmp_path / ".hidden.png").write_bytes(picture())
    (tmp_path / "notes.md").write_text("x")
    found = look(tmp_path, lambda path: f"id of {path.name}")
    assert found["count"] == 2
    assert found["files"] == [
        {
            "name": "a.png",
            "called": "a.png",
            "thumbnail": "id of a.png",
            "width": 40,
            "height": 30,
            "caption": "a dog",
        },
        {
            "name": "sub/b.JPG",
            "called": "sub/b.JPG",
            "thumbnail": "id of b.JPG",
            "width": 10,
            "height": 20,
            "caption": None,
        },
    ]


def test_links_that_lead_out_of_a_folder_are_named_and_not_shown(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "secret.png").write_bytes(picture())
    (tmp_path / "photos" / "a.png").symlink_to(tmp_path / "secret.png")
    found = look(tmp_path / "photos", str)
    assert found["files"] == []
    assert "leads out" in found["problems"][0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_what_is_no_file_hangs_nobody(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    found = look(tmp_path, str)
    assert found["problems"] == ["a.png: it is no file"]


def test_broken_photos_are_named_and_not_counted(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no")
    (tmp_path / "b.png").write_bytes(bomb())
    (tmp_path / "c.png").write_bytes(picture())
    found = look(tmp_path, str)
    assert [text.split(":")[0] for text in found["problems"]] == ["a.png", "b.png"]
    assert (found["count"], len(found["files"])) == (1, 1)


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(InputError):
        look(tmp_path / "none", str)


# small pictures


def test_a_thumbnail_is_small_and_kept(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(picture((2000, 1000)))
    thumbnails = Thumbnails(tmp_path / "kept")
    name = thumbnails.name(path)
    first = thumbnails.picture(name)
    assert Image.open(io.BytesIO(first)).size == (SIDE, SIDE // 2)
    kept = list((tmp_path / "kept").iterdir())
    assert [one.read_bytes() for one in kept] == [first]
    assert thumbnails.picture(name) == first


def test_a_changed_photo_has_another_thumbnail(tmp_path):
    path, thumbnails = tmp_path / "a.png", Thumbnails(tmp_path / "kept")
    path.write_bytes(picture(colour="red"))
    first = thumbnails.picture(thumbnails.name(path))
    path.write_bytes(picture(colour="blue", size=(50, 30)))
    assert thumbnails.picture(thumbnails.name(path)) != first


@pytest.mark.parametrize("name", ["", "0" * 32, "../../etc/passwd", "a" * 10_000])
def test_a_name_that_was_never_given_is_that_of_no_picture(tmp_path, name):
    with pytest.raises(NotFound):
        Thumbnails(tmp_path).picture(name)


def test_a_photo_that_is_gone_is_said(tmp_path):
    path, thumbnails = tmp_path / "a.png", Thumbnails(tmp_path / "kept")
    path.write_bytes(picture())
    name = thumbnails.name(path)
    path.unlink()
    with pytest.raises(NotFound):
        thumbnails.picture(name)


def test_a_photo_is_shown_upright_as_the_camera_meant_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    content = picture((40, 20), kind="JPEG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(content)
    assert (look_at(content).width, look_at(content).height) == (20, 40)
    assert Image.open(io.BytesIO(make(tmp_path / "a.jpg"))).size == (20, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "1", "I;16"])
def test_every_mode_has_a_thumbnail(tmp_path, mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    Image.new(mode, (30, 30)).save(tmp_path / "a", kind)
    assert Image.open(io.BytesIO(make(tmp_path / "a"))).mode == "RGB"
