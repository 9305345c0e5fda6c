"""The REST routes of a started WebUI, asked as a page does."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

PREFIX = "/dreambooth-trainer/v1"


class Refused(Exception):
    """The answer is an error: its status, and what it says."""

    def __init__(self, status: int, said: Any) -> None:
        super().__init__(f"{status}: {said}")
        self.status, self.said = status, said


def ask(url: str, path: str, body: Any = None, *, method: str = "", timeout: float = 120.0) -> Any:
    """GET, or POST of `body` as JSON. Raises Refused, and OSError where nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} if data is not None else {}
    request = urllib.request.Request(f"{url}{PREFIX}{path}", data, headers, method=method or None)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise Refused(error.code, error.read().decode(errors="replace")) from error
