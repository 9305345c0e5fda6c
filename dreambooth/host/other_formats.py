"""What a file is that is none of the pictures which are read, so that its owner can be told what to do with it."""

from __future__ import annotations

READ = "PNG, JPEG, WebP and BMP"
SAVE_ANEW = f"Save it as one of {READ}."
DAMAGED = "it is damaged: a part of the picture is missing or broken"
COPY_ANEW = "Copy it anew from where it came."
_EXPORT = (
    "Export it as JPEG from the Photos app; Settings > Camera > Formats > Most Compatible lets an iPhone take JPEG "
    "from the start."
)
_BRANDS = {  # the first name in the head of an ISO media file (ISO/IEC 14496-12, ftyp)
    b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"heis": "HEIC", b"hevc": "HEIC", b"mif1": "HEIC",
    b"msf1": "HEIC", b"avif": "AVIF", b"avis": "AVIF",
}  # fmt: skip
_BEGINNINGS = {
    b"GIF8": "GIF", b"II*\0": "TIFF or raw", b"MM\0*": "TIFF or raw", b"8BPS": "Photoshop", b"%PDF": "PDF",
    b"\0\0\0\x0cJXL ": "JPEG XL", b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cjP": "JPEG 2000",
}  # fmt: skip


def about(content: bytes) -> tuple[str, str]:
    """What is wrong with a file that no reader knew, from its first bytes, and what to do: two texts."""
    head = content[:16]
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or head[:4] + head[8:12] == b"RIFFWEBP":
        return DAMAGED, COPY_ANEW
    kind = next((name for start, name in _BEGINNINGS.items() if head.startswith(start)), "")
    if head[4:8] == b"ftyp":
        kind = _BRANDS.get(head[8:12], "film")
    if kind == "film":
        return "it is a film, no picture", f"Save single pictures of it as one of {READ}."
    if kind:
        return f"it is a {kind} file; {READ} are read", _EXPORT if kind == "HEIC" else SAVE_ANEW
    return (
        f"it is no picture that can be read; {READ} are",
        "Open it in a viewer, and save it anew as one of these.",
    )
