"""The routes of a started WebUI: ours, asked as a page does, and its own for a picture."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from typing import Any

from PIL import Image

PREFIX = "/dreambooth-trainer/v1"


class Refused(Exception):
    """The answer is an error: its status, and what it says."""

    def __init__(self, status: int, said: Any) -> None:
        super().__init__(f"{status}: {said}")
        self.status, self.said = status, said


def ask(url: str, path: str, body: Any = None, *, method: str = "", timeout: float = 120.0) -> Any:
    """GET, or POST of `body` as JSON. Raises Refused, and OSError where nobody answers."""
    return _ask(f"{url}{PREFIX}{path}", body, method=method, timeout=timeout)


def txt2img(url: str, **asked: Any) -> tuple[Image.Image, dict[str, Any]]:
    """A picture through the WebUI's own API, and what it says of it."""
    found = _ask(f"{url}/sdapi/v1/txt2img", asked, timeout=300)
    return Image.open(io.BytesIO(base64.b64decode(found["images"][0]))), json.loads(found["info"])


def _ask(address: str, body: Any, *, method: str = "", timeout: float) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} if data is not None else {}
    request = urllib.request.Request(address, data, headers, method=method or None)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise Refused(error.code, error.read().decode(errors="replace")) from error
