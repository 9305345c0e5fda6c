import codecs
import locale

import pytest

from dreambooth.shared.errors import InputError
from dreambooth.shared.text_files import decode_text, read_text

TEXT = "café, 犬"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
    ],
)
def test_unicode_is_read_with_and_without_its_mark(data):
    assert decode_text(data) == TEXT


def test_legacy_text_is_read_in_the_computers_own_encoding_first(monkeypatch):
    monkeypatch.setattr(locale, "getpreferredencoding", lambda *_: "gbk")
    assert decode_text("一只狗的照片".encode("gbk")) == "一只狗的照片"


def test_legacy_text_is_read_as_windows_text_where_the_computers_own_is_utf8(monkeypatch):
    monkeypatch.setattr(locale, "getpreferredencoding", lambda *_: "UTF-8")
    assert decode_text("café “sks”".encode("cp1252")) == "café “sks”"


def test_line_ends_of_all_systems_are_the_same():
    assert decode_text(b"a\r\nb\rc\n") == "a\nb\nc\n"


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\x00\x00", b"a\x00b", b"\xff\xfe\x00"])
def test_what_is_no_text_is_refused_with_the_files_name(data, tmp_path):
    path = tmp_path / "picture.txt"
    path.write_bytes(data)
    with pytest.raises(InputError, match="not a text file") as caught:
        read_text(path)
    assert caught.value.where == str(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read") as caught:
        read_text(tmp_path / "none.txt")
    assert "none.txt" in caught.value.where
