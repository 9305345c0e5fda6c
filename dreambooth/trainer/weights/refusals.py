"""What a file is that is no model, told from its first bytes: one message each, with what to do."""

from __future__ import annotations

from pathlib import Path

from dreambooth.shared.errors import InputError

AGAIN = "download or copy it again"
OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
STARTS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer (a few lines of text)",
        "fetch the file with `git lfs pull`",
    ),
    (b"GGUF", "a GGUF file", "take the same model as .safetensors"),
    (b"\x89HDF", "an HDF5 file", "take the same model as .safetensors"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it first"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"\x89PNG", "a picture", "name the checkpoint"),
    (b"\xff\xd8\xff", "a picture", "name the checkpoint"),
    (b"RIFF", "a picture or a sound", "name the checkpoint"),
)
OLD_PICKLE = "open it once with a torch that you trust and save it again, or take the .safetensors form"


def not_a_model(path: Path, start: bytes) -> InputError:
    """The error for a file that begins with `start` (some hundred bytes) and is not in a known format."""
    if not start:
        return InputError("the file is empty", where=str(path), remedy=AGAIN)
    if start.startswith(OLD_TORCH):
        what = "this was written by a torch before 1.6, as a bare pickle, which is not read"
        return InputError(what, where=str(path), remedy=OLD_PICKLE)
    if start[257:262] == b"ustar" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"):
        what = "this is a bare pickle or an old archive, whose reading can run code; it is not read"
        return InputError(what, where=str(path), remedy=OLD_PICKLE)
    for magic, kind, remedy in STARTS:
        if start.startswith(magic):
            return InputError(f"this is {kind}, not a model", where=str(path), remedy=remedy)
    lowered = start[:200].lower()
    if b"<html" in lowered or b"<!doctype" in lowered:
        what = "this is a web page, not a model"
        return InputError(what, where=str(path), remedy="download the model file itself, not its page")
    kind = "a text file" if _is_text(start) else "no .safetensors or .ckpt file"
    return InputError(
        f"this is {kind}, not a model, whatever its name says", where=str(path), remedy="name a checkpoint"
    )


def _is_text(start: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\r\n\f" for byte in start)
