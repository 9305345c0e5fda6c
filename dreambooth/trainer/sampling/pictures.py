"""Pictures as PNG files that say how they were made, as the WebUI's own do."""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING

from PIL import PngImagePlugin

if TYPE_CHECKING:
    from PIL import Image

    from dreambooth.trainer.sampling.sample import SampleRequest

PARAMETERS = "parameters"
_DIGITS = 12


def png_bytes(image: Image.Image, parameters: str) -> bytes:
    """The picture as a PNG file, with `parameters` in the text chunk where the WebUI keeps and reads them."""
    info = PngImagePlugin.PngInfo()
    info.add_text(PARAMETERS, parameters)
    written = io.BytesIO()
    image.save(written, "PNG", pnginfo=info)
    return written.getvalue()


def content_digits(content: bytes) -> str:
    """The first digits of the content's SHA-256, for a file's name."""
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def parameters_text(
    request: SampleRequest, *, sampler_title: str, model: str = "", clip_skip: int = 1
) -> str:
    """How a picture was made, in the form that the WebUI's "PNG Info" page reads.

    `sampler_title` may carry the schedule: "DPM++ 2M, Schedule type: Karras".
    """
    fields = {
        "Steps": request.steps,
        "Sampler": sampler_title,
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model": _quoted(model),
        "Clip skip": clip_skip if clip_skip > 1 else "",
    }
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in fields.items() if value != ""))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    """As the WebUI quotes values that would otherwise break its list of fields apart."""
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',:"\n') else value
